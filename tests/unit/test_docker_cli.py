"""What `openmodal-docker` reads and writes: flags, names, templates, records."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from openmodal.docker_cli import names, record
from openmodal.docker_cli.asked import FLAGS, arguments, environment, memory
from openmodal.docker_cli.containers import ago
from openmodal.docker_cli.failures import Failure, UsageError
from openmodal.docker_cli.record import Record
from openmodal.docker_cli.templates import Template, lines

VALUE: dict[str, Any] = {
    "Name": "/web",
    "State": {"Running": True, "ExitCode": 0},
    "Args": ["a", "b c"],
    "Ports": {"80/tcp": [{"HostPort": "8080"}]},
    "Labels": {"b": "2", "a": "1"},
    "Nothing": None,
    "Label": lambda name: f"<{name}>",
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.Name}} {{ .State.Running }}\t{{.State.ExitCode}}", "/web true\t0"),
        ("{{json .Args}}{{json .State}}", '["a","b c"]{"Running":true,"ExitCode":0}'),
        ('{{(index (index .Ports "80/tcp") 0).HostPort}}', "8080"),
        ('{{with index .Ports "80/tcp"}}{{(index . 0).HostPort}}{{end}}', "8080"),
        ("{{range .Args}}[{{.}}]{{end}}", "[a][b c]"),
        ("{{range $key, $value := .Labels}}{{$key}}={{$value}};{{end}}", "a=1;b=2;"),
        ("{{range $p, $c := .Ports}}{{$p}}->{{(index $c 0).HostPort}}{{println}}{{end}}", "80/tcp->8080\n"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if .Nothing}}a{{else if .Args}}b{{else}}c{{end}}", "b"),
        ("{{if eq .State.ExitCode 0}}ok{{end}}{{if and .Args (not .Nothing)}}!{{end}}", "ok!"),
        ("{{range .Nothing}}x{{else}}none{{end}}", "none"),
        ('{{.Label "a/b"}} {{join .Args ","}} {{.Name | upper}} {{len .Args}}', "<a/b> a,b c /WEB 2"),
        ('{{$n := .Name}}{{printf "%s:%d" $n 3}}', "/web:3"),
        ("a {{- .Name -}} b", "a/webb"),
        ("{{.Args}} {{.Labels}} {{.Nothing}}", "[a b c] map[a:1 b:2] <no value>"),
        ("{{`raw`}}{{/* said */}}", "raw"),
    ],
)
def test_a_template_gives_what_go_gives(template: str, text: str) -> None:
    assert Template(template).render(VALUE) == text


@pytest.mark.parametrize(
    "template", ["{{.Other}}", "{{.Name", "{{if .Name}}", "{{end}}", "{{nonsense 1}}", "{{(.Name}}", "{{}}"]
)
def test_a_template_that_cannot_be_is_one_sentence(template: str) -> None:
    with pytest.raises(Failure, match="template parsing error"):
        Template(template).render(VALUE)


def test_rows_are_shown_as_json_by_a_template_or_as_a_table() -> None:
    rows = [{"ID": "1", "Names": "a", "Label": str.upper}, {"ID": "22", "Names": "b", "Label": str.upper}]
    heads = {"ID": "CONTAINER ID", "Names": "NAMES"}
    assert [*lines("json", rows, heads)] == ['{"ID":"1","Names":"a"}', '{"ID":"22","Names":"b"}']
    assert [*lines(r"{{.ID}}\t{{.Names}}", rows, heads)] == ["1\ta", "22\tb"]
    assert [*lines("table {{.ID}}\t{{.Names}}", rows, heads)] == [
        "CONTAINER ID   NAMES",
        "1              a",
        "22             b",
    ]


def test_flags_are_taken_as_docker_takes_them() -> None:
    given = FLAGS.parse(
        ["-itd", "-eA=1", "-e", "B=2", "--rm=false", "-w=/srv", "--name", "x", "image", "-v", "--", "y"],
        command_follows=True,
    )
    assert (given.on("interactive"), given.on("tty"), given.on("detach"), given.on("rm")) == (True, True, True, False)
    assert (given.all("env"), given.text("workdir"), given.text("name")) == (["A=1", "B=2"], "/srv", "x")
    assert given.words == ["image", "-v", "--", "y"]
    for wrong in (["--nothing"], ["-y"], ["--name"], ["--rm=maybe"]):
        with pytest.raises(UsageError):
            FLAGS.parse(wrong)


def test_what_a_container_is_asked_for_becomes_the_arguments_of_create(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "yes")
    text = "-e A=1=2 -e HERE -e NOT_HERE -p 127.0.0.1:9000:80/tcp -p 81 -p :82 --cpus 1.5 -m 1.5g --network none -v data:/data:ro"
    asked = arguments(FLAGS.parse([*text.split(), "--runtime", "runsc"]))
    (volume,) = asked.pop("volumes").items()
    assert volume[0] == "/data"
    assert asked == {
        "env": {"A": "1=2", "HERE": "yes"},
        "block_network": True,
        "ports": {80: 9000, 81: 0, 82: 0},
        "cpu": 1.5,
        "memory": 1536,
        "runtime": "gvisor",
    }
    assert [memory(text) for text in ("", "536870912", "64M", "4.0g", "1gb")] == [None, 512, 64, 4096, 1024]
    for wrong in ("-p 80-90:80-90", "-p 53:53/udp", "-p x", "-v /only", "--mount type=tmpfs,target=/x", "-m x"):
        with pytest.raises(UsageError):
            arguments(FLAGS.parse(wrong.split()))


def test_a_file_of_variables_is_read_as_docker_reads_it(tmp_path: Any) -> None:
    (tmp_path / "env").write_text("# a remark\n\nA=1\nB=with space \n")
    assert environment(FLAGS.parse(["--env-file", str(tmp_path / "env"), "-e", "A=2"])) == {
        "A": "2",
        "B": "with space ",
    }


@pytest.mark.parametrize(
    ("reference", "published", "shown"),
    [
        ("python", "python", ("python", "latest")),
        ("docker.io/library/python:3.13", "python..3.13", ("python", "3.13")),
        ("host:5000/team/tool__x:v1", "host_-5000_.team_.tool__x..v1", ("host:5000/team/tool__x", "v1")),
    ],
)
def test_an_images_name_is_published_so_that_it_can_be_read_again(
    reference: str, published: str, shown: tuple[str, str]
) -> None:
    assert names.published(reference) == published
    assert names.reference(published) == shown


def test_names_that_are_too_long_have_one_that_stands_for_them() -> None:
    long = "swebench/sweb.eval.x86_64." + "x" * 100
    assert len(names.published(long)) == 63
    assert names.published(long) != names.published(f"{long}y")
    assert names.published("tool@sha256:" + "0" * 64) == ""


def test_what_docker_remembers_goes_into_tags_and_comes_back() -> None:
    whole = Record(name="web", image="a/b:c", argv=("sh", "-c", "echo ü; " * 50), labels={"a/b": "c d"}, exit_code=3)
    tags = whole.tags()
    assert record.of([("other", "tag"), *reversed(tags.items())]) == whole
    assert record.of([("other", "tag")]) is None


def test_times_are_told_as_docker_tells_them() -> None:
    told = {0: "Less than a second", 1: "1 second", 59: "59 seconds", 60: "About a minute", 150: "2 minutes"}
    told |= {3600: "About an hour", 7300: "2 hours", 180000: "2 days"}
    assert {seconds: ago(seconds) for seconds in told} == told


def test_what_was_printed_before_a_failure_is_there() -> None:
    """The process ends by _exit(2), which writes no buffer."""
    code = """if True:
        from openmodal import docker_cli
        from openmodal.docker_cli.failures import Failure
        def fails(given):
            print("printed")
            raise Failure("failed")
        docker_cli._verb = fails
        docker_cli.main(["rm"])
    """
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=buffered, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("printed\n", "failed\n", 1)
