"""Odd surroundings: whatever the program that uses the SDK is in, sandboxes come up, and images are the same."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from openmodal.image import Image
from openmodal.testing.fixtures import python

APP = "surroundings"

LOOK = "cat; umask; stat -c %a /; ulimit -t; ulimit -f; ulimit -d"

SURROUNDINGS = {
    "SIGCHLD ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "SIGPIPE default": "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
    "no stderr": "sys.stderr = None",
    "stderr closed": "sys.stderr.close()",
    "stderr full": "sys.stderr = open('/dev/full', 'w')",
    "stderr without a reader": "r, w = os.pipe(); os.close(r); sys.stderr = os.fdopen(w, 'w')",
    "stderr of ASCII": "import io; sys.stderr = io.TextIOWrapper(io.BytesIO(), 'ascii')",
    "stderr that is no stream": "sys.stderr = object()",
    "stderr that raises": "odd = lambda *_: threading.Lock().release(); "
    "sys.stderr = type('Odd', (), dict.fromkeys(('isatty', 'write', 'flush'), odd))()",
    "stderr a terminal that is gone": "m, s = os.openpty(); sys.stderr = os.fdopen(s, 'w'); os.close(m)",
    "standard streams closed": "out = os.dup(1); [os.close(fd) for fd in (0, 1, 2)]; sys.stdout = open(out, 'w')",
    "no working directory": "import tempfile; d = tempfile.mkdtemp(dir='/var/tmp'); os.chdir(d); os.rmdir(d)",
    "umask 777": "os.umask(0o777)",
    "umask 077": "os.umask(0o077)",
    "limits of its own": "import resource as r; "
    "[r.setrlimit(n, (1 << 31, r.RLIM_INFINITY)) for n in (r.RLIMIT_CPU, r.RLIMIT_FSIZE, r.RLIMIT_DATA)]",
    "umask 0": "os.umask(0)",
    "a real-time policy": "os.geteuid() or os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))",
    "thousands of descriptors": "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (4096, r.getrlimit(r.RLIMIT_NOFILE)[1])); "
    "held = [os.open('/dev/null', 0) for _ in range(3000)]",
    "few descriptors": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))",
    "empty PATH": "os.environ['PATH'] = ''",
    "LANG is C": "os.environ['LC_ALL'] = 'C'; os.environ.pop('LANG', None)",
    "all signals blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "its own session": "os.getpid() == os.getsid(0) or os.setsid()",
    "in a thread": "pass",
    "in a running event loop": "pass",
    "after a fork": "os.fork() and (os.wait(), os._exit(0))",
}


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_it_works_with(surrounding: str, engine_name: str, image: Image) -> None:
    source = f"""
        def main():
            new = image.run_commands(": é " + os.urandom(8).hex())
            with openmodal.Sandbox.create(app=openmodal.App("{APP}"), image=new, engine=argv[0], timeout=60) as sandbox:
                for n in range(3):
                    text = sandbox.exec("sh", "-c", "{LOOK}", stdin="in", user="agent").stdout.read()
                print(text, flush=True)
        {SURROUNDINGS[surrounding]}
        if "{surrounding}" == "in a thread":
            thread = threading.Thread(target=main)
            thread.start()
            thread.join()
        elif "{surrounding}" == "in a running event loop":
            import asyncio
            async def wrapped():
                main()
            asyncio.run(wrapped())
        else:
            main()
        if not hasattr(sys.stderr, "buffer"):
            sys.stderr = sys.__stderr__
    """
    assert python(source, engine_name, image=image).split() == ["in0022", "755", *["unlimited"] * 3]


LIST = "find / -xdev | sort | xargs stat -c '%n %a %u %g %F'; cat seen /local/*"

MAKE = f"""
    new = image.add_local_dir(argv[1], "/local").workdir("/made/for/it").run_commands("touch file; mkdir folder")
    lines = ["RUN --mount=type=cache,target=/kept stat -c %a /kept >seen", "COPY <<x /text/x", "y", "x"]
    new = new.dockerfile_commands(lines, context_dir=argv[1])
    with openmodal.Sandbox.create(app=openmodal.App("layers"), image=new, engine=argv[0], timeout=60) as sandbox:
        print(sandbox.status().image)
        print(ascii(sandbox.exec("sh", "-c", {LIST!r}).stdout.read().splitlines()))
"""


@pytest.mark.parametrize(
    ("surrounding", "variables"),
    [
        ("umask 077", {}),
        ("umask 0", {}),
        ("no working directory", {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ],
)
def test_the_same_recipe_gives_the_same_layers_with(
    surrounding: str,
    variables: dict[str, str],
    engine_name: str,
    image: Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller's umask became the mode of "/" and of folders that images need; names that are no ASCII made another key."""
    (tmp_path / "local").mkdir()
    (tmp_path / "local/tür").write_text("text")
    made = []
    for number, before in enumerate(("pass", SURROUNDINGS[surrounding])):
        monkeypatch.setenv("OPENMODAL_HOME", str(tmp_path / str(number)))
        for name, value in variables.items() if number else ():
            monkeypatch.setenv(name, value)
        source = f"{before}\n{textwrap.dedent(MAKE)}"
        made.append(python(source, engine_name, str(tmp_path / "local"), image=image))
    assert made[0] == made[1]
    assert "/made/for/it/folder 755 0 0 directory" in made[0], "the control"
