"""Make the wheel, with the native program for both CPUs, and the sdist; then check the wheel.

    python .ci/wheel.py DIST

Works on a copy of what git knows, so that neither a development build nor a stray file is shipped. Needs the
dependency group `release` (ziglang compiles for both CPUs). The wheel is installed without its dependencies, so the
check needs no network.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MACHINES = {"x86_64": 62, "aarch64": 183}  # ELF's e_machine
MAX_SIZE = 256 * 1024  # a Kubernetes ConfigMap must hold it
PT_INTERP = 3


def run(*command: object, cwd: Path | None = None) -> str:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, check=True, text=True, stdout=subprocess.PIPE).stdout


def copy_checkout(target: Path) -> None:
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())


def make(dist: Path, copy: Path) -> Path:
    for cpu in MACHINES:
        run(sys.executable, "native/build.py", "--compiler", "zig", "--cpu", cpu, cwd=copy)
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", dist, cwd=copy)
    (wheel,) = sorted(dist.glob("*.whl"), key=lambda path: path.stat().st_mtime)[-1:]
    return wheel


def check_program(path: Path, machine: int) -> None:
    """Check that it is a static program for the right CPU, small enough, and executable."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01", f"{path.name} is not a 64-bit little-endian ELF file"
    assert int.from_bytes(data[18:20], "little") == machine, f"{path.name} is for another CPU"
    table, size, count = (int.from_bytes(data[at : at + n], "little") for at, n in ((32, 8), (54, 2), (56, 2)))
    kinds = [int.from_bytes(data[table + i * size :][:4], "little") for i in range(count)]
    assert PT_INTERP not in kinds, f"{path.name} is not static: it asks for a dynamic loader"
    assert len(data) <= MAX_SIZE, f"{path.name} has {len(data):,} bytes, more than {MAX_SIZE:,}"
    assert path.stat().st_mode & 0o111, f"{path.name} is not executable"


def check(wheel: Path, folder: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl"), wheel.name
    venv.create(folder, with_pip=True)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    (native,) = folder.glob("lib/python*/site-packages/openmodal/_native")
    for cpu, machine in MACHINES.items():
        check_program(native / f"openmodal-agent-{cpu}", machine)
    version = wheel.name.split("-")[1]
    said = run(native / f"openmodal-agent-{platform.machine()}", "--version")
    assert said.split()[:2] == ["openmodal-agent", version], said


def main() -> None:
    dist = Path(sys.argv[1]).resolve()
    dist.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="openmodal-wheel-") as folder:
        copy, fresh = Path(folder, "copy"), Path(folder, "venv")
        copy_checkout(copy)
        wheel = make(dist, copy)
        check(wheel, fresh)
    print(f"{wheel} is good: {wheel.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
