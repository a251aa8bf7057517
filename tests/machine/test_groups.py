"""Control groups of version 2 as machines have them: in podman's containers, which are what CI systems run everything in."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.embedded.test_groups import create, parents, test_sandboxes_together_weigh_what_each_of_them_weighs

__all__ = ["create", "parents", "test_sandboxes_together_weigh_what_each_of_them_weighs"]

pytestmark = [pytest.mark.machine, pytest.mark.root, pytest.mark.timeout(900)]

GROUPS = Path("/sys/fs/cgroup")

PROGRAM = """
import openmodal, pathlib
from openmodal.engines.embedded import doctor
image = openmodal.Image.from_scratch().add_local_file("/bin/busybox", "/bin/busybox")
image = image.dockerfile_commands('RUN ["/bin/busybox", "--install", "-s", "/bin"]')
try:
    with openmodal.Sandbox.create(image=image, timeout=300, memory=64, block_network=True) as sandbox:
        info = sandbox.info()
        bomb = sandbox.exec("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
        print(info.memory, info.cpu, info.pids, info.degraded, bomb.out_of_memory)
except openmodal.EngineError as error:
    print(error)
machine = doctor.Machine.here()
print("doctor:", doctor.rights(machine).ok, doctor.limits(machine).ok)
print(pathlib.Path("/proc/1/cgroup").read_text().strip())
"""
HELD = "64 1.0 512 () True"

# What stands in for --privileged, as docs/engines.md says.
RIGHTS = "--cap-add=NET_ADMIN,SYS_PTRACE,SYS_ADMIN,MKNOD --security-opt unmask=ALL --security-opt apparmor=unconfined"

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Podman's locks in files: in shared memory they stay when it ends."""
    (tmp_path / "containers.conf").write_text('[engine]\nlock_type = "file"\n')
    monkeypatch.setenv("CONTAINERS_CONF", str(tmp_path / "containers.conf"))


@pytest.fixture
def machines_root(tmp_path: Path) -> Iterator[Path]:
    """This machine's own files, for a container that writes to none of them."""
    if not shutil.which("podman") or not (GROUPS / "cgroup.controllers").exists():
        pytest.skip("needs podman, and control groups of version 2 only")
    folder = tmp_path / "root"
    folder.mkdir()
    subprocess.run(["mount", "--bind", "/", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # podman has just let go of it


@pytest.fixture
def start(machines_root: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts a container with the flags, and returns what runs commands in it and returns what they print."""
    started: list[str] = []

    def start(*flags: str) -> Run:
        state = tmp_path / "state"
        state.mkdir()
        prefix = Path(sys.prefix).resolve()
        mounts = [f"--volume={path}:{path}:ro" for path in {ROOT, prefix}] + [f"--volume={state}:/state"]
        command = ["podman", "run", "--detach", "--network=none", *mounts, "--env=OPENMODAL_HOME=/state"]
        command += [f"--env=PYTHONPATH={ROOT}/src", *flags, "--rootfs", f"{machines_root}:O", "sleep", "800"]
        started.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
        return run

    def run(*command: str) -> str:
        done = subprocess.run(["podman", "exec", started[-1], *command], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr
        return done.stdout

    yield start
    for id in started:
        subprocess.run(["podman", "rm", "--force", "--time=0", id], check=True, capture_output=True)


def python(run: Run) -> list[str]:
    return run(f"{sys.prefix}/bin/python", "-c", PROGRAM).splitlines()


@pytest.mark.parametrize("flags", ["--privileged", "--privileged --cgroupns=host", RIGHTS])
def test_in_a_container_with_rights_every_limit_holds(start: Callable[..., Run], flags: str) -> None:
    """Its processes are in its own group, which then may have no children with limits: `Device or resource busy`."""
    run = start(*flags.split())
    [held, said, moved] = python(run)
    assert (held, said) == (HELD, "doctor: True True")
    assert moved.endswith("/init")
    assert run("cat", "/proc/self/cgroup") == f"{moved}\n", "who comes into the container later is there, too"
    inner = [path for path in GROUPS.glob("machine.slice/**/openmodal") if path.is_dir()]
    assert inner, "they are in the container's own group, so its limits hold for them, too"


def test_a_container_without_rights_is_told_the_flags_and_doctor_says_the_same(start: Callable[..., Run]) -> None:
    run = start()
    [refused, said, _] = python(run)
    assert "root lacks the rights NET_ADMIN, SYS_PTRACE, SYS_ADMIN" in refused
    assert "--privileged" in refused
    assert "--cap-add=NET_ADMIN,SYS_PTRACE,SYS_ADMIN" in refused
    assert said == "doctor: False False"


def test_processes_of_a_group_that_is_not_the_containers_own_stay_where_they_are(start: Callable[..., Run]) -> None:
    """Process 1 is the machine's there. And the sentence tells what to change."""
    run = start("--privileged", "--pid=host")
    [refused, said, first] = python(run)
    assert "cannot be set up: Device or resource busy" in refused
    assert "--pid=host" in refused
    assert "init.scope" in first
    assert Path("/proc/1/cgroup").read_text() == "0::/init.scope\n"
    assert said == "doctor: True False"


def test_the_machines_groups_seen_from_a_namespace_of_groups_are_told(start: Callable[..., Run]) -> None:
    """The kernel lets nobody leave such a namespace: `No such file or directory`, it says."""
    # As systemd does it; a container with --cgroupns=host undoes it.
    subprocess.run(["mount", "-o", "remount,nsdelegate", str(GROUPS)], check=True)
    [refused, _, _] = python(start(*RIGHTS.split(), "--volume=/sys/fs/cgroup:/sys/fs/cgroup"))
    assert refused.endswith("start the container with --cgroupns=host, too")


def test_on_the_machine_itself_nothing_is_moved() -> None:
    before = (GROUPS / "init.scope" / "cgroup.procs").read_text()
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [HELD, "doctor: True True", "0::/init.scope"]
    assert (GROUPS / "init.scope" / "cgroup.procs").read_text() == before
    assert not (GROUPS / "init").exists()
