"""`openmodal sandbox …`, `image …`, `gc`, `doctor`, `bench`: on real sandboxes of a tiny image."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, CommandLine

pytestmark = pytest.mark.embedded


def test_list_shows_what_runs_as_text_and_as_json(openmodal: CommandLine, sandbox: str) -> None:
    lines = openmodal("--local", "sandbox", "list", "--app", "cli").splitlines()
    assert lines[0].split("\t") == ["ID", "NAME", "AGE", "ENDS IN", "TAGS"]
    assert lines[1].split("\t")[:2] == [sandbox, "main"]
    (found,) = json.loads(openmodal("--local", "sandbox", "list", "--app", "cli", "--json"))
    assert found["id"] == sandbox
    assert found["tags"] == {"for": "cli"}
    assert found["expires"] > found["created"]


def test_names_and_the_first_letters_of_an_id_mean_a_sandbox(openmodal: CommandLine, sandbox: str) -> None:
    for word in ("main", sandbox[:-2]):
        assert openmodal("--local", "exec", word, "echo", "hi") == "hi\n"
    assert openmodal("--local", "sandbox", "cp", "main:/bin/busybox", "copied") == ""
    other = openmodal("--local", "create", "--app", "cli", "--image", f"{openmodal.program('')}::image").strip()
    try:
        assert sandbox in openmodal.error("--local", "exec", "cli-", "true")
        assert "no sandbox 'cli-x'" in openmodal.error("--local", "exec", "cli-x", "true")
    finally:
        assert openmodal("--local", "rm", other) == f"{other}\n"


def test_short_forms_and_what_programs_read(openmodal: CommandLine, sandbox: str) -> None:
    for listing in (("ps",), ("sandbox", "ls")):
        assert openmodal("--local", *listing, "--app", "cli", "-q") == f"{sandbox}\n"
    (found,) = json.loads(openmodal("--local", "inspect", "main"))
    assert (found["id"], found["ended"]) == (sandbox, None)
    assert found["usage"]["processes"] >= 1
    assert found["held"]["seccomp"]
    top = openmodal("--local", "top", "main").splitlines()
    assert top[0].split("\t")[:3] == ["ID", "NAME", "CPU"]
    assert top[1].split("\t")[:2] == [sandbox, "main"]
    assert "--app" in openmodal.run("--local", "ps", "--app", "nothing").stderr
    openmodal("--local", "sandbox", "stop", sandbox)
    ended = openmodal("--local", "ps", "-a", "--app", "cli").splitlines()
    assert [line.split("\t")[3] for line in ended if sandbox in line] == ["it was terminated"]
    for word in ("main", sandbox[:-2]):
        assert "it was terminated" in openmodal("--local", "show", word), "one that has ended is found by its name, too"
    (found,) = json.loads(openmodal("--local", "sandbox", "inspect", sandbox))
    assert found["ended"]["reason"] == "terminated"


def test_a_sandbox_is_created_kept_as_an_image_and_forked(openmodal: CommandLine) -> None:
    image = f"{openmodal.program('')}::image"
    made = ("--app", "cli", "--timeout", "2m", "--memory", "64m", "--tag", "a=b", "-e", "A=1")
    id = openmodal("--local", "create", *made, "--image", image, "--", "sleep", "60").strip()
    openmodal("--local", "exec", id, "sh", "-c", "echo $A > /kept")
    (forked,) = openmodal("--local", "fork", id).splitlines()
    openmodal("--local", "sandbox", "snapshot", id, "cli-kept")
    try:
        assert openmodal("--local", "exec", forked, "cat", "/kept") == "1\n"
        assert openmodal("--local", "shell", "--image", "cli-kept", "cat", "/kept") == "1\n"
        assert json.loads(openmodal("--local", "image", "inspect", "cli-kept"))[0]["names"] == ["cli-kept"]
    finally:
        openmodal("--local", "image", "rm", "cli-kept")
        assert openmodal("--local", "rm", id, forked).split() == [id, forked]
    assert "no image 'cli-kept'" in openmodal.error("--local", "image", "inspect", "cli-kept")


def test_the_configuration_is_set_and_shown(openmodal: CommandLine, tmp_path: Path) -> None:
    home = {"OPENMODAL_HOME": str(tmp_path / "home")}
    openmodal("config", "set", "kubernetes.namespace", "agents", env=home)
    assert json.loads(openmodal("config", "show", "--json", env=home)) == {"kubernetes.namespace": "agents"}
    assert openmodal("config", "path", env=home).strip() == str(tmp_path / "home/config.toml")
    assert "there is no engine 'dokcer'" in openmodal.error("config", "set", "engine", "dokcer", env=home)
    assert "did you mean 'engine'" in openmodal.error("config", "set", "engin", "docker", env=home)
    assert json.loads(openmodal("config", "show", "--json", env=home)) == {"kubernetes.namespace": "agents"}
    openmodal("config", "set", "bases.python:3.12", "mirror.example/python:3.12", env=home)
    assert "mirror.example/python:3.12" in json.loads(openmodal("config", "show", "--json", env=home)).values()
    assert tomllib.loads((tmp_path / "home/config.toml").read_text())["bases"] == {
        "python:3.12": "mirror.example/python:3.12"
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_sandboxes(openmodal: CommandLine, sandbox: str, shell: str) -> None:
    assert "_OPENMODAL_COMPLETE" in openmodal("completion", shell)
    asked = {
        "bash": {"COMP_WORDS": "openmodal --local exec ma", "COMP_CWORD": "3"},
        "zsh": {"COMP_WORDS": "openmodal --local exec ma", "COMP_CWORD": "3"},
        "fish": {"COMP_WORDS": "openmodal --local exec ma", "COMP_CWORD": "ma"},
    }[shell]
    assert "main" in openmodal(env={"_OPENMODAL_COMPLETE": f"{shell}_complete", **asked})


def test_list_of_nothing_is_an_empty_list(openmodal: CommandLine) -> None:
    assert openmodal("--local", "sandbox", "list", "--app", "nothing") == ""
    assert openmodal("--local", "sandbox", "list", "--app", "nothing", "--json") == "[]\n"


def test_exec_passes_output_exit_code_and_stdin_on(openmodal: CommandLine, sandbox: str) -> None:
    done = openmodal.run("--local", "sandbox", "exec", sandbox, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")
    assert openmodal("--local", "sandbox", "exec", "-i", sandbox, "cat", input="typed\n") == "typed\n"
    assert openmodal("--local", "sandbox", "exec", sandbox, "cat", input="typed\n") == ""
    assert openmodal("--local", "sandbox", "exec", sandbox, "--", "echo", "-n", "--help") == "--help"


def test_exec_takes_variables_folder_user_and_timeout(openmodal: CommandLine, sandbox: str) -> None:
    shown = openmodal(
        "--local", "sandbox", "exec", "-e", "A=1", "-e", "PATH", "-w", "/tmp", sandbox, "sh", "-c", "echo $A; pwd"
    )
    assert shown == "1\n/tmp\n"
    assert openmodal("--local", "sandbox", "exec", "-u", "1000:1000", sandbox, "id", "-u") == "1000\n"
    done = openmodal.run("--local", "sandbox", "exec", "--timeout", "0.3", sandbox, "sleep", "9")
    assert done.returncode == 124
    assert "timeout" in done.stderr


def test_commands_are_listed(openmodal: CommandLine, sandbox: str) -> None:
    openmodal("--local", "sandbox", "exec", sandbox, "sh", "-c", "exit 0")
    lines = openmodal("--local", "sandbox", "commands", sandbox).splitlines()
    assert lines[0].split("\t") == ["ID", "PID", "USER", "AGE", "EXIT", "COMMAND"]
    found = json.loads(openmodal("--local", "sandbox", "commands", sandbox, "--json"))
    assert [each["id"] for each in found] == [line.split("\t")[0] for line in lines[1:]]
    assert all(each["pid"] > 0 and each["user"] == "root" for each in found)


def test_forward_prints_where_and_ends_with_the_sandbox(openmodal: CommandLine, sandbox: str) -> None:
    serves = ("sandbox", "exec", sandbox, "sh", "-c", "nc -ll -p 8000 -e echo hello >/dev/null 2>&1 &")
    openmodal("--local", *serves)
    command = [*COMMAND, "--local", "sandbox", "forward", sandbox, "8000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        host, _, port = program.stdout.readline().strip().removeprefix("http://").partition(":")
        deadline, got = time.monotonic() + 60, b""
        while got != b"hello\n" and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as visitor:
                got = visitor.recv(100)
        assert got == b"hello\n"
        openmodal("--local", "sandbox", "stop", sandbox)
        assert program.wait(60) == 0
    for wrong in ("http", "1:", ":8000x", "70000"):
        done = openmodal.run("--local", "sandbox", "forward", sandbox, wrong)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr


def test_logs_show_the_main_commands_output(openmodal: CommandLine) -> None:
    program = openmodal.program("print(create('sh', '-c', 'echo out; echo err >&2').id)\n")
    id = openmodal("--local", "run", "--detach", program).strip()
    done = openmodal.run("--local", "sandbox", "logs", id)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_logs_show_errors_before_anything_is_printed(openmodal: CommandLine) -> None:
    program = openmodal.program("print(create('sh', '-c', 'echo err >&2; sleep 100').id)\n")
    id = openmodal("--local", "run", "--detach", program).strip()
    command = [*COMMAND, "--local", "sandbox", "logs", id]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as done:
        assert done.stderr
        assert done.stderr.readline() == "err\n"  # or at the sandbox's end, with what follows it
        assert id in openmodal.running()
        openmodal("--local", "sandbox", "stop", id)


def test_logs_tell_what_is_missing(openmodal: CommandLine) -> None:
    writer = "head -c 9000000 /dev/zero | tr '\\\\0' A"
    program = openmodal.program(f'sandbox = create("sh", "-c", "{writer}"); sandbox.wait(); print(sandbox.id)\n')
    id = openmodal("--local", "run", "--detach", program).strip()
    done = openmodal.run("--local", "sandbox", "logs", id)
    assert (done.returncode, len(done.stdout)) == (0, 8 << 20)
    assert done.stderr.startswith(f"Warning: {9_000_000 - (8 << 20)} bytes of output are missing here")
    assert done.stderr.count("\n") == 1


def test_logs_are_shown_in_any_encoding(openmodal: CommandLine) -> None:
    program = openmodal.program("print(create('sh', '-c', 'echo tür').id)\n")
    id = openmodal("--local", "run", "--detach", program).strip()
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert openmodal("--local", "sandbox", "logs", id, env=ascii_only) == "t\\xfcr\n"


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", "0<&- 2>&-", "0<&- >&- 2>&-"])
def test_streams_that_nobody_reads_change_no_outcome(openmodal: CommandLine, sandbox: str, streams: str) -> None:
    """Messages went to a stderr that is closed or full, and what was to be done was not, or told as failed."""
    program = openmodal.program(
        "import os; image = image.run_commands(': ' + os.urandom(8).hex()); create(); exit(7)\n"
    )
    for arguments, code in (
        (f"--local run {program}", 7),
        ("--local sandbox list", 0),
        ("--local nonsense", 2),
        (f"--local sandbox exec {sandbox} sh -c 'exit 3'", 3),
        (f"--local sandbox stop {sandbox}", 0),
    ):
        line = f"{shlex.join(COMMAND)} {arguments} {streams}"
        assert subprocess.run(["sh", "-c", line], cwd=openmodal.folder, timeout=60, check=False).returncode == code, (
            line
        )
    assert openmodal.running() == []


def test_output_that_nothing_takes_is_an_error_in_one_sentence(openmodal: CommandLine, sandbox: str) -> None:
    for arguments in ("--version", "--help", "--local sandbox list", "--local sandbox list --json"):
        line = f"{shlex.join(COMMAND)} {arguments} >/dev/full"
        done = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (1, "Error: no space left on device\n")


def test_logs_of_a_sandbox_without_main_command_say_so(openmodal: CommandLine) -> None:
    program = openmodal.program("print(create().id)\n")
    id = openmodal("--local", "run", "--detach", program).strip()
    assert "has no main command" in openmodal.error("--local", "sandbox", "logs", id)
    openmodal("--local", "sandbox", "stop", id)


def test_cp_copies_files_and_folders_both_ways(openmodal: CommandLine, sandbox: str) -> None:
    folder = openmodal.folder / "folder"
    folder.mkdir()
    (folder / "file").write_text("text", encoding="utf-8")
    openmodal("--local", "sandbox", "cp", "folder", f"{sandbox}:/tmp/new")
    openmodal("--local", "sandbox", "cp", "folder", f"{sandbox}:/tmp/")
    openmodal("--local", "sandbox", "cp", "folder/file", f"{sandbox}:/tmp")
    assert (
        openmodal("--local", "sandbox", "exec", sandbox, "cat", "/tmp/new/file", "/tmp/folder/file", "/tmp/file")
        == "text" * 3
    )
    openmodal("--local", "sandbox", "cp", f"{sandbox}:/tmp/new", "back")
    openmodal("--local", "sandbox", "cp", f"{sandbox}:/tmp/file", ".")
    assert (openmodal.folder / "back/file").read_text(encoding="utf-8") == "text"
    assert (openmodal.folder / "file").read_text(encoding="utf-8") == "text"
    assert "/tmp/nothing" in openmodal.error("--local", "sandbox", "cp", f"{sandbox}:/tmp/nothing", "x")
    assert "nothing" in openmodal.error("--local", "sandbox", "cp", "nothing", f"{sandbox}:/tmp")


def test_cp_again_does_not_write_where_the_sandbox_chose(openmodal: CommandLine, sandbox: str) -> None:
    """It puts things into a local folder under their own name: what was a link there the first time stayed one."""
    theirs = openmodal.folder / "theirs"
    theirs.mkdir()
    script = f"mkdir /tmp/a /tmp/new; ln -s {theirs} /tmp/a/out; ln -s {theirs} /tmp/out; echo evil > /tmp/new/file"
    openmodal("--local", "sandbox", "exec", sandbox, "sh", "-c", script)
    assert "/tmp/out" in openmodal.error("--local", "sandbox", "cp", f"{sandbox}:/tmp/out", ".")
    openmodal("--local", "sandbox", "cp", f"{sandbox}:/tmp/a", ".")
    assert (openmodal.folder / "a/out").is_symlink(), "the control"
    for source in ("new", "new/file"):
        for target in ("a/out", "a/out/", "a/out//", "a/out/."):
            openmodal.error("--local", "sandbox", "cp", f"{sandbox}:/tmp/{source}", target)
    assert ".." in openmodal.run("--local", "sandbox", "cp", f"{sandbox}:/tmp/a/..", "a").stderr
    assert "link" in openmodal.error("--local", "sandbox", "cp", "a/out", f"{sandbox}:/tmp/got")
    assert list(theirs.iterdir()) == []


def test_stop_ends_those_that_are_named_and_refuses_unknown_ones_before(openmodal: CommandLine, sandbox: str) -> None:
    assert "no sandbox 'unknown-1'" in openmodal.error("--local", "sandbox", "stop", sandbox, "unknown-1")
    assert openmodal.running() == [sandbox]
    assert openmodal("--local", "sandbox", "stop", "--app", "cli") == f"{sandbox}\n"
    assert openmodal.running() == []
    assert "it was terminated" in openmodal.error("--local", "sandbox", "exec", sandbox, "true")


def test_a_new_sandbox_for_a_command_ends_with_it(openmodal: CommandLine) -> None:
    program = openmodal.program("")
    image = f"{program}::image"
    assert openmodal("--local", "shell", "--image", image, "echo", "hi") == "hi\n"
    assert openmodal("--local", "shell", "--image", image, input="echo typed; exit 4\n", code=4) == "typed\n"
    assert openmodal("--local", "sandbox", "list", "--app", "shell") == ""


def test_images_are_built_listed_and_pruned_but_not_under_a_running_sandbox(openmodal: CommandLine) -> None:
    program = openmodal.program("print(create(env={'A': 'B'}).id)\n")
    id = openmodal("--local", "run", "--detach", program).strip()
    key = openmodal("--local", "image", "build", f"{openmodal.program('', 'images.py')}::image").strip()
    assert key in {image["key"] for image in json.loads(openmodal("--local", "image", "list", "--json"))}
    openmodal("--local", "image", "prune", "--older", "9s")  # what other tests use stays
    assert openmodal("--local", "sandbox", "exec", id, "echo", "alive") == "alive\n"
    openmodal("--local", "sandbox", "stop", id)
    assert "has no image 'x'" in openmodal.error("--local", "image", "build", "images.py::x")


def test_a_published_image_is_listed_by_its_name_and_kept_until_that_is_deleted(openmodal: CommandLine) -> None:
    openmodal("--local", "image", "publish", f"{openmodal.program('', 'images.py')}::image", "cli-published")
    try:
        found = json.loads(openmodal("--local", "image", "list", "--json"))
        assert ["cli-published"] in [image["names"] for image in found]
        assert "as cli-published" in openmodal("--local", "image", "list")
    finally:
        openmodal("--local", "image", "delete", "cli-published")
    assert "no image is published as" in openmodal.error("--local", "image", "delete", "cli-published")


@pytest.mark.parametrize("days", ["-1", "nan", "inf", "1e300", "-inf", "x"])
def test_prune_refuses_ages_that_cannot_be_and_removes_nothing(openmodal: CommandLine, days: str) -> None:
    """`--older -1` removed every image without a word."""
    key = openmodal("--local", "image", "build", f"{openmodal.program('')}::image").strip()
    done = openmodal.run("--local", "image", "prune", f"--older={days}")
    assert done.returncode in (1, 2)
    assert "--older" in done.stderr
    assert openmodal.run("--local", "image", "prune", "--older", "3", "--all").returncode == 2
    assert key in {image["key"] for image in json.loads(openmodal("--local", "image", "list", "--json"))}


def test_what_ends_many_asks_in_a_terminal_and_only_there(openmodal: CommandLine, sandbox: str) -> None:
    def asked(arguments: str, answer: str) -> tuple[int, str]:
        typed = f"{shlex.join(COMMAND)} --local {arguments}"
        with subprocess.Popen(
            ["script", "-qec", typed, "/dev/null"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            shown, _ = child.communicate(answer, timeout=60)
        return child.returncode, shown

    code, shown = asked("sandbox stop --app cli", "n\n")
    assert (code, openmodal.running()) == (1, [sandbox])
    assert sandbox in shown
    assert "End 1 sandbox?" in shown
    key = openmodal("--local", "image", "list", "--json")
    assert asked("image prune --all", "\n")[0] == 1, "no is the default"
    assert openmodal("--local", "image", "list", "--json") == key
    assert asked("sandbox stop --app cli --yes", "")[0] == 0
    assert openmodal.running() == []
    assert openmodal("--local", "sandbox", "stop", "--app", "cli") == "", "in a pipe nobody is asked"


def test_a_dockerfile_is_built(openmodal: CommandLine) -> None:
    (openmodal.folder / "Dockerfile").write_text("FROM scratch\nENV A=1\n", encoding="utf-8")
    assert len(openmodal("--local", "image", "build", "Dockerfile").strip()) == 64


def test_gc_has_nothing_to_do(openmodal: CommandLine, sandbox: str) -> None:
    openmodal("--local", "gc")
    assert json.loads(openmodal("--local", "gc", "--check", "--json")) == {"left": []}
    assert openmodal.running() == [sandbox]


@pytest.mark.parametrize(("name", "value"), [("OPENMODAL_ENGINE", "docke"), ("OPENMODAL_ALLOW_DEGRADED", "netwrk")])
def test_doctor_does_not_pass_a_misspelt_setting(
    openmodal: CommandLine, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """It said that sandboxes can run, and every creation failed."""
    monkeypatch.setenv(name, value)
    done = openmodal.run("doctor")
    assert done.returncode == 1
    assert f"{value}" in done.stdout.splitlines()[0]


def test_doctor_finds_this_machine_well(openmodal: CommandLine) -> None:
    assert "Sandboxes can run on this machine." in openmodal("doctor")
    found = json.loads(openmodal("doctor", "--json"))
    assert found["works"] is True
    assert {"kernel", "limits", "network", "store"} <= {check["name"] for check in found["checks"]}


def test_bench_measures_each_step_and_draws_it(openmodal: CommandLine, tmp_path: Path) -> None:
    image, plot = openmodal.program(""), tmp_path / "plot.svg"
    words = ["bench", "--rounds", "2", "--idle", "3", "--plot", str(plot), "--image", image, "--json"]
    shown = json.loads(openmodal("--local", *words))
    assert {"create", "exec true", "terminate"} <= set(shown)
    assert shown["idle"]["sandboxes"] == 3 and shown["idle"]["made_s"] > 0
    drawn = plot.read_text("utf-8")
    assert all(f">{step}<" in drawn for step in set(shown) - {"idle"})


def test_what_a_sandbox_uses_and_changed_is_shown_and_it_is_paused(openmodal: CommandLine, sandbox: str) -> None:
    openmodal("--local", "sandbox", "exec", sandbox, "sh", "-c", "echo x > /new; rm /bin/stty")
    assert openmodal("--local", "sandbox", "diff", sandbox) == "D /bin/stty\nA /new\n"
    assert {change["path"] for change in json.loads(openmodal("--local", "sandbox", "diff", "--json", sandbox))} == {
        "/bin/stty",
        "/new",
    }
    rows = dict(line.split("\t") for line in openmodal("--local", "sandbox", "usage", sandbox).splitlines())
    assert rows["CPU time"].endswith(" s")
    assert json.loads(openmodal("--local", "sandbox", "usage", "--json", sandbox))["processes"] > 0
    openmodal("--local", "pause", sandbox)
    assert ", paused" in openmodal("--local", "ps", "--app", "cli")
    (found,) = json.loads(openmodal("--local", "sandbox", "list", "--app", "cli", "--json"))
    assert found["paused"]
    openmodal("--local", "sandbox", "resume", sandbox)
    (found,) = json.loads(openmodal("--local", "sandbox", "list", "--app", "cli", "--json"))
    assert not found["paused"]


def test_show_tells_what_was_done_while_it_runs_and_after_its_end(openmodal: CommandLine, sandbox: str) -> None:
    assert openmodal.run("--local", "exec", "main", "sh", "-c", "exit 3").returncode == 3
    lines = [line.split("\t") for line in openmodal("--local", "sandbox", "show", "main").splitlines()]
    assert lines[0] == ["TIME", "TOOK", "CALL", "WHAT", "RESULT"]
    (told,) = [line for line in lines if "exit 3" in line[3]]
    assert told[2] == "spawn"
    assert told[4].startswith("exit 3, CPU ")
    openmodal("--local", "sandbox", "stop", sandbox)
    found = json.loads(openmodal("--local", "sandbox", "show", "--json", sandbox))
    assert found["id"] == sandbox
    assert found["ended"]["reason"] == "terminated"
    calls = [event["call"] for event in found["events"]]
    assert calls[0] == "create"
    assert {"spawn", "terminate", "end"} <= set(calls)
    assert [event["returncode"] for event in found["events"] if event["call"] == "spawn"] == [3]
