"""Compile the native program: the one place that knows how, for the build hook, make, and checkouts
at run time.

    python native/build.py                          for this CPU, with the best compiler here, if sources changed
    python native/build.py --cpu aarch64 --compiler zig

No `make` is needed: an sdist is installed where there may be none. The flags are those of
native/Makefile. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "src" / "openmodal"
OUTPUT = PACKAGE / "_native"
CPUS = ("x86_64", "aarch64")


class NoCompilerError(Exception):
    """Nothing here can compile the program; the text tells what to install."""


class CompileError(Exception):
    """The compiler refused; the text is what it said."""


def this_cpu() -> str:
    """Return this machine's CPU as the files are named."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def version() -> str:
    """Return the version of the checkout."""
    text = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__\s*=\s*"([^"]+)"', text, re.MULTILINE)
    if match is None:
        raise CompileError("src/openmodal/__init__.py has no __version__")
    return match.group(1)


def path_of(cpu: str, output: Path = OUTPUT) -> Path:
    """Return where the program for a CPU is, or will be."""
    return output / f"openmodal-agent-{cpu}"


def build(cpu: str = "", compiler: str = "", output: Path = OUTPUT) -> Path:
    """Compile for `cpu` (this one) with `compiler` (the best here), unless that was done, and
    return the program.

    Safe from many processes at once; the program is replaced atomically, so running ones go on.

    Raises:
        NoCompilerError: there is none for that CPU, and no program made earlier either.
        CompileError: the sources do not compile.
    """
    cpu = cpu or this_cpu()
    target = path_of(cpu, output)
    key = _key(cpu)
    if _is_made(target, key, compiler):
        return target
    compilers = find_compilers(cpu, compiler)
    if not compilers:
        if target.exists() and not compiler:  # prebuilt: in an sdist, or by hand
            return target
        raise NoCompilerError(
            f"no {compiler or 'C'} compiler for {cpu} here, and no program made earlier; "
            "install gcc (Debian: apt-get install gcc libc6-dev), or the Python package ziglang"
        )
    output.mkdir(parents=True, exist_ok=True)
    with _locked(output / ".lock"):
        if not _is_made(target, key, compiler):
            name = _compile_with_first(compilers, target)
            _stamp(target).write_text(f"{key} {name}\n", encoding="ascii")
    return target


def find_compilers(cpu: str, wanted: str = "") -> dict[str, list[str]]:
    """Return the compilers that are here, name and command line, those with the smallest programs first."""
    found: dict[str, list[str]] = {}
    if importlib.util.find_spec("ziglang"):
        found["zig"] = [sys.executable, "-m", "ziglang", "cc", "-target", f"{cpu}-linux-musl"]
    if cpu == this_cpu():
        commands = [["musl-gcc"], shlex.split(os.environ.get("CC", "cc")), ["gcc"]]
    else:
        commands = [[f"{cpu}-linux-gnu-gcc"]]
    found |= {command[0]: command for command in commands if command and shutil.which(command[0])}
    return {name: command for name, command in found.items() if wanted in ("", name)}


def sources() -> list[str]:
    """Return the names of the program's C files."""
    return sorted(path.name for path in HERE.glob("*.c"))


def flags() -> list[str]:
    """Return the flags of native/Makefile, without warnings: those are for developers, and differ between compilers."""
    text = (HERE / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    given = shlex.split(f"{_variable(text, 'CFLAGS')} {_variable(text, 'LDFLAGS')}")
    if not given:
        raise CompileError("native/Makefile sets no CFLAGS")
    return [flag for flag in given if (not flag.startswith("-W") or flag.startswith("-Wl,")) and flag != "-fanalyzer"]


def _variable(text: str, name: str) -> str:
    match = re.search(rf"^{name} *[:?]?=(.*)$", text, re.MULTILINE)
    return match[1] if match else ""


def _key(cpu: str) -> str:
    """What the program is made of. Not the compiler: another one need not make it anew."""
    digest = hashlib.sha256(f"{cpu}\0{version()}\0".encode())
    for path in sorted((*HERE.glob("*.[ch]"), *HERE.glob("*.py"), HERE / "Makefile")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _stamp(target: Path) -> Path:
    return target.with_name(f".{target.name}.made")


def _is_made(target: Path, key: str, compiler: str) -> bool:
    try:
        made_key, made_by = _stamp(target).read_text(encoding="ascii").split()
    except (FileNotFoundError, ValueError):
        return False
    return target.exists() and made_key == key and compiler in ("", made_by)


def _compile_with_first(compilers: dict[str, list[str]], target: Path) -> str:
    """Compile with the first one that can: a musl-gcc may be there without what it needs. Return its name."""
    first: CompileError | None = None
    for name, command in compilers.items():
        print(f"compiling {target.name} with {name}", file=sys.stderr)
        try:
            _compile(command, target)
        except CompileError as error:
            first = first or error
        else:
            return name
    assert first is not None
    raise first


def _compile(command: list[str], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        header, program = Path(folder, "seccomp_filter.h"), Path(folder, "program")
        if (HERE / "seccomp.py").exists():
            _run([sys.executable, str(HERE / "seccomp.py"), *command], header)
        define = f'-DOPENMODAL_VERSION="{version()}"'
        _run([*command, *flags(), define, f"-I{folder}", "-static", "-s", "-o", str(program), *sources()])
        program.chmod(0o755)
        program.replace(target)


def _run(command: list[str], output: Path | None = None) -> None:
    done = subprocess.run(command, cwd=HERE, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise CompileError(f"{shlex.join(command)}\n{done.stderr.decode(errors='replace')}")
    if output is not None:
        output.write_bytes(done.stdout)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cpu", choices=CPUS, default="", help="default: this machine's")
    parser.add_argument("--compiler", default="", help="zig, musl-gcc, cc …; default: the first of these that is here")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="a folder; default: in the package")
    options = parser.parse_args()
    try:
        build(options.cpu, options.compiler, options.output)
    except (NoCompilerError, CompileError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
