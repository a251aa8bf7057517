"""What users do wrong in their first hour, and the sentence that each mistake gets: it names the
cause and the remedy once, and no other traceback is chained to it.
"""

from __future__ import annotations

import re
import shlex
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openmodal.app import App
from openmodal.build import debian
from openmodal.build.output import Tail
from openmodal.cli._root import run
from openmodal.errors import Error
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.secret import Secret
from openmodal.volume import Volume

pytestmark = pytest.mark.embedded

TYPED = {
    "--json ps": r"no option --json before the command; .* as in `openmodal ps --json`",
    "ps --jsn": r"no option --jsn, but --json;",
    "ps --app nothing": r"No sandbox of the app 'nothing' is running; without --app there (is|are) \d+\.",
    "exec nobody true": r"no sandbox 'nobody'; `openmodal sandbox list` shows those that run",
    "exec '' true": r"no sandbox ''; an id looks like my-app-758f3413",
    "exec GONE true": r"is not running: it was terminated",
    "exec gone-sentences true": r"is not running: it was terminated",
    "top GONE --once": r"None of these is running",
    "exec MAIN -w /tmp ls": r"options stand before the ID: openmodal exec -w",
    "exec MAIN 'echo hi && ls'": r'not found; a line for a shell is run by one, as in "sh", "-c", "the line"',
    "exec -w /nope MAIN ls": r"/nope cannot be entered: No such file or directory; make that folder before",
    "exec -u bob MAIN ls": r"bob is not in the sandbox's /etc/passwd; add the user in the image",
    "create --timeout '5 minutes'": r"'5 minutes' is no duration; write 90, 30s, 5m",
    "create --timeout ''": r"'' is no duration; write 90, 30s, 5m",
    "create --memory lots": r"'lots' is no size; write MiB as a number, or 512m",
    "create --cpu two": r"'two' is no number; write one like 2 or 0.5",
    "create -p http": r"'http' is no whole number; write one like 8000",
    "fork -n many MAIN": r"'many' is no whole number; write one",
    "forward MAIN web": r"'web' is not \[LOCAL:\]PORT; write 8000, or 9000:8000",
    "cp nothere MAIN:/tmp/": r"'nothere' cannot be copied: No such file or directory; check the path",
    "cp MAIN:/nothere .": r"No such file or directory: '/nothere' \(in the sandbox\)",
    "sandboxes": r"no command 'sandboxes', but `openmodal sandbox`",
    "image rm nothing": r"no image is published as 'nothing'; `openmodal image list` shows which are",
    "image history nothing": r"no image 'nothing'; `openmodal image list` shows",
    "build nothere/Dockerfile": r"nothere/Dockerfile' cannot be read: No such file or directory; check the path",
    "run nothere.py": r"nothere.py cannot be read: no such file or directory; give the path",
    "mcp --http 0 --token-file nothere": r"nothere cannot be read: No such file or directory; check the path",
    "config set kubernetes.namespac x": r"`namespac`.*; mend \[kubernetes\] in",
    "volume rm sentences folder": r"'folder' is a folder with files; -r removes it",
    "volume rm sentences nothere": r"No such file or directory: 'nothere' \(in the volume 'sentences'\)",
    "completion": r"Choose from: bash, zsh, fish",
}
"""Commands, and what they say. MAIN is a sandbox that runs, GONE one that has ended."""

WRITTEN: dict[str, tuple[Callable[..., object], str]] = {
    "cpu='2'": (lambda create, _: create(cpu="2"), r"cpu must be a number of cores, not '2'; write cpu=2$"),
    "cpu='two'": (lambda create, _: create(cpu="two"), r"not 'two'; write cpu=2$"),
    "timeout='5m'": (lambda create, _: create(timeout="5m"), r"number of seconds, not '5m'; write timeout=300$"),
    "timeout='x'": (lambda create, _: create(timeout="x"), r"not 'x'; write timeout=300$"),
    "memory='1GB'": (lambda create, _: create(memory="1GB"), r"number of MiB, .* not '1GB'; write memory=1024$"),
    "memory=512.0": (lambda create, _: create(memory=512.0), r"not 512.0; write memory=512$"),
    "ports=8000": (lambda create, _: create(ports=8000), r"list of ports, not 8000; write ports=\[8000\]$"),
    "env=[...]": (lambda create, _: create(env=["A=b"]), r"dict of strings, not list; write env=\{'NAME': 'value'\}$"),
    "region=": (lambda create, _: create(region="eu"), r"here it is engine=: sandboxes are on the machines"),
    "mem_limit=": (lambda create, _: create(mem_limit="1g"), r"here it is memory=, in MiB"),
    "user=": (lambda create, _: create(user="ada"), r"here it is exec\(user=\), or USER in the image"),
    "auto_remove=": (lambda create, _: create(auto_remove=True), r"not needed, nothing of a sandbox is left"),
    "privileged=": (lambda create, _: create(privileged=True), r"refused: a sandbox gets no more rights"),
    "cwd=": (lambda _, main: main.exec("ls", cwd="/"), r"here it is workdir="),
    "shell=True": (lambda _, main: main.exec("ls | wc", shell=True), r'a shell as the command: "sh", "-c", "the line"'),
    "background=": (lambda _, main: main.exec("ls", background=True), r"here it is spawn\(\), which waits for nothing"),
    "check=True": (lambda _, main: main.exec("sh", "-c", "echo why >&2; exit 3", check=True), r"ended with 3: why$"),
    "a list": (lambda _, main: main.exec(["ls"]), r"must be a string, not list; write its items one by one"),
    "no such folder": (lambda _, main: main.exec("ls", workdir="/nope"), r"make that folder before, or name another"),
    "no such user": (lambda _, main: main.exec("ls", user="bob"), r"add the user in the image, or give a number"),
    "no such file": (lambda _, main: main.filesystem.read_text("/nope"), r"'/nope' \(in the sandbox\)$"),
    "no such registry": (
        lambda *_: Image.from_registry("127.0.0.1:1/nothing:1").build(engine="embedded"),
        r"^127.0.0.1:1/nothing:1 cannot be fetched: Connection refused; `openmodal doctor --network` tells",
    ),
    "no such Dockerfile": (
        lambda *_: Image.from_dockerfile("/nope/Dockerfile").build(engine="embedded"),
        r"/nope/Dockerfile' cannot be read: No such file or directory; check the path$",
    ),
    "no such folder here": (
        lambda *_: Image.from_scratch().add_local_dir("/nope", "/").build(engine="embedded"),
        r"'/nope' cannot be added to the image: No such file or directory; check the path$",
    ),
    "no such secret": (
        lambda *_: Secret.from_dotenv("/nope"),
        r"'/nope.*' cannot be read: No such file or directory; check the path$",
    ),
}
"""Mistakes in a program, and what is raised."""


@pytest.fixture
def create(tiny_root: Path) -> Callable[..., Sandbox]:
    image = Image.from_scratch().add_local_dir(tiny_root, "/").env({"PATH": "/bin"})
    return lambda **options: Sandbox.create(
        app=App("sentences"), image=image, engine="embedded", **{"timeout": 300, **options}
    )


@pytest.fixture
def main(create: Callable[..., Sandbox]) -> Iterator[Sandbox]:
    with create() as sandbox:
        yield sandbox


def wrong(sentence: str, pattern: str) -> bool:
    """It is not what was expected, has several lines, or says something twice."""
    paths = re.findall(r"[\w.:/-]*/[\w.:/-]+", sentence)
    return not re.search(pattern, sentence) or "\n" in sentence or "[Errno" in sentence or len(paths) > len({*paths})


def test_a_command_says_cause_and_remedy_in_one_line(
    main: Sandbox,
    create: Callable[..., Sandbox],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENMODAL_ENGINE", "embedded")
    gone = create(name="gone-sentences")
    gone.terminate()
    volume = Volume.from_name("sentences", create_if_missing=True, engine="embedded")
    (tmp_path / "file").write_text("x")
    with volume.batch_upload(force=True) as upload:
        upload.put_file(tmp_path / "file", "/folder/file")
    said: dict[str, str] = {}
    capfd.readouterr()
    for typed in TYPED:
        words = [word.replace("MAIN", main.id).replace("GONE", gone.id) for word in shlex.split(typed)]
        code = run(words)
        out, err = capfd.readouterr()
        said[typed] = err.strip()
        assert (code == 0) == (typed.split()[0] in ("ps", "top") and "jsn" not in typed), (typed, code, out)
    Volume.delete("sentences", engine="embedded")
    assert not {typed: text for typed, text in said.items() if wrong(text, TYPED[typed])}


def test_what_is_raised_says_cause_and_remedy_and_has_no_other_traceback(
    main: Sandbox, create: Callable[..., Sandbox]
) -> None:
    said: dict[str, str] = {}
    for mistake, (make, _) in WRITTEN.items():
        with pytest.raises(Error) as caught:
            make(create, main)
        said[mistake] = str(caught.value)
        shown = "".join(traceback.format_exception(caught.value))
        assert shown.count("Traceback") == 1, f"{mistake}: {shown}"
    assert not {mistake: text for mistake, text in said.items() if wrong(text, WRITTEN[mistake][1])}


def test_of_a_base_that_cannot_be_made_the_first_cause_is_told(tmp_path: Path) -> None:
    """Not six addresses, one for each file that apt tried."""
    tail = Tail(lambda text: None)
    tail.write("".join(f"E: Failed to fetch http://deb.example/{n}  Could not connect\n" for n in range(6)).encode())
    tail.close()
    said = str(debian.failure(tmp_path, 25, "trixie", tail))
    assert said.count("deb.example") == 1
    assert said.endswith("; `openmodal doctor --network` tells what this machine reaches")
