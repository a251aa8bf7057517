"""The leak check: after every test, whatever it started, mounted or made must be gone.

A ledger is taken before and after each test, and what is new is reported by name. The kernel finishes some things a
moment later (a network namespace, a cgroup), so the check looks again for two seconds before it complains.

Other runs on the same machine have their own sandboxes. Whose a process is tells the OPENMODAL_TEST_RUN in its
environment; a supervisor, which has a clean one, the lock in its sandbox's folder; any other process its ancestors. What
cannot tell its owner (an interface) is not reported while another run has sandboxes. The workers of one run (pytest -n) are such
runs to each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

from openmodal import _config
from openmodal.engines.docker.daemon import Daemon

GRACE = 2.0
TEMPORARY = f"openmodal-{os.environ.get('PYTEST_XDIST_WORKER', 'run')}-"
"""What names of this worker's temporary folders begin with: by that the others know whose they are."""
ROUTER = Path("/run/openmodal/router")

ALLOWED = {
    # Shared infrastructure, made by the first sandbox and kept on purpose.
    "cgroup": ("*/openmodal",),
    "mount": ("/run/openmodal/router", "/run/openmodal/sandboxes", "/run/openmodal"),
    "interface": ("host openmodal0",),
    "file": ("/tmp/pytest-of-*", "/tmp/hsperfdata_*"),
}
"""What may be new after a test: patterns by kind. A test adds its own with the marker `may_leave`."""


class Process:
    """A process as /proc tells; gone processes answer with emptiness."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._folder = f"/proc/{pid}"
        stat = self._read("stat").rpartition(b")")[2].split()
        self.parent = int(stat[1]) if stat else 0
        self.start = stat[19].decode() if stat else ""
        """When it started: with the pid, a name that is never used again."""
        self.program = (stat[19], *stat[45:49]) if stat else ()
        """What it runs: when it started, and where its arguments and variables lie, which each
        execve(2) puts elsewhere (proc_pid_stat(5): starttime, arg_start to env_end)."""
        self.is_kernels = self.parent == 2 or pid == 2

    def _read(self, name: str) -> bytes:
        try:
            with open(f"{self._folder}/{name}", "rb", buffering=0) as file:
                return file.readall()
        except OSError:
            return b""

    @cached_property
    def argv(self) -> list[str]:
        return self._read("cmdline").decode(errors="replace").rstrip("\0").split("\0")

    @cached_property
    def is_openmodals(self) -> bool:
        """A native program of ours, what it starts for gVisor (gvisor.py), or the gate of a sandbox with an allow list."""
        native = "openmodal" in os.path.basename(self.argv[0]) and not self.is_in_container
        return native or self._is_runsc or any("openmodal/_gate/" in word for word in self.argv)

    @property
    def _is_runsc(self) -> bool:
        """The runtime in a box, or of a Docker daemon of these tests."""
        return self.argv[0].startswith("runsc") and any(
            word.startswith(("--root=/state", f"--root={_home()}/")) for word in self.argv
        )

    @property
    def is_in_container(self) -> bool:
        """An agent that an engine's daemon started: whose it is tells the daemon's owner, or the daemon (`_containers`)."""
        return self.argv[0].startswith("/.openmodal/")

    @cached_property
    def run(self) -> str | None:
        """Of which run of tests its environment tells."""
        for entry in self._read("environ").split(b"\0"):
            if entry.startswith(b"OPENMODAL_TEST_RUN="):
                return entry.partition(b"=")[2].decode(errors="replace")
        return None

    @cached_property
    def is_mine(self) -> bool | None:
        """Whether this run of the tests started it; None if nothing tells."""
        if self.pid == os.getpid():  # our own variable was set after our start: /proc does not show it
            return True
        if self.run is not None:
            return self.run.startswith(os.environ["OPENMODAL_TEST_RUN"])
        if self.is_openmodals:
            for path in self._open_files():
                if "/sandboxes/" in path or path.endswith(".egress"):
                    return path.startswith((_home() + "/", _brief()))
        return None

    def _open_files(self) -> Iterator[str]:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"{self._folder}/fd"):
                yield os.readlink(f"{self._folder}/fd/{name}")

    def recall(self, known: Process | None) -> None:
        """Take over what was read of `known`, if that is the process, and runs the same program."""
        if known and self.program and self.program == known.program:
            self.__dict__.update((fact, known.__dict__[fact]) for fact in ("argv", "run") if fact in known.__dict__)

    def __str__(self) -> str:
        return f"{self.pid} {' '.join(self.argv) or self._read('comm').decode(errors='replace').strip()}"


@dataclass(frozen=True)
class Ledger:
    """What is there: kind → identity → how to show it. `foreign`: another run has sandboxes at this moment."""

    entries: dict[str, dict[str, str]]
    foreign: bool

    def since(self, before: Ledger, allowed: Mapping[str, tuple[str, ...]]) -> list[str]:
        """Tell what is here that was not there before."""
        return [
            f"{kind}: {shown}"
            for kind, entries in self.entries.items()
            for identity, shown in entries.items()
            if identity not in before.entries[kind]
            and not (kind == "interface" and (self.foreign or before.foreign))
            and not any(fnmatch.fnmatch(shown, pattern) for pattern in (*allowed.get(kind, ()), *allowed.get("", ())))
        ]

    def renewed(self, kinds: Iterable[str]) -> Ledger:
        """It, with a new look at these kinds."""
        new = take(tuple(kinds))
        return Ledger(self.entries | new.entries, new.foreign)


ON_MACHINE = ("process", "mount", "loop device", "cgroup", "interface", "file", "container")
KINDS = (*ON_MACHINE, "cluster", "table")
JUDGE = "openmodal_test_"
"""What the name of a table of nftables begins with that a judge made; its process's id follows."""
IN_PODS = ("process", "file", "cluster")
"""What tests of Kubernetes may leave. A cluster on this machine makes and ends mounts, control groups and interfaces when it likes."""


def take(kinds: tuple[str, ...] = KINDS) -> Ledger:
    """Look at everything, or at these kinds. Costs some milliseconds."""
    processes = _processes()
    owners = {pid: _owner(process, processes) for pid, process in processes.items() if not process.is_kernels}
    foreign = {pid for pid, mine in owners.items() if mine is False}
    entries = {
        "process": {
            f"{pid} {processes[pid].start}": str(processes[pid])
            for pid, mine in owners.items()
            if pid != os.getpid() and (mine or (mine is None and processes[pid].is_openmodals))
        },
    }
    looks = {
        "mount": _mounts,
        "loop device": _loop_devices,
        "cgroup": lambda: _cgroups(foreign),
        "interface": _interfaces,
        "file": _files,
        "container": _containers,
        "cluster": _objects,
        "table": tables,
    }
    entries |= {kind: _same(look()) for kind, look in looks.items() if kind in kinds}
    others = {pid for pid, mine in owners.items() if mine is None and processes[pid].is_in_container}
    return Ledger(entries, any(processes[pid].is_openmodals for pid in foreign) or bool(others))


KNOWN: dict[int, Process] = {}
"""The processes of the last look. There are hundreds, of which few are new, and looks are many."""


def _processes() -> dict[int, Process]:
    processes = {int(name): Process(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    for pid, process in processes.items():
        if not process.is_kernels:
            process.recall(KNOWN.get(pid))
    KNOWN.clear()
    KNOWN.update(processes)
    return processes


def _same(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}


def _owner(process: Process, processes: dict[int, Process]) -> bool | None:
    """Whose the process is, or its nearest ancestor of which that is known."""
    current: Process | None = process
    for _ in range(64):
        if current is None or current.is_mine is not None:
            break
        current = processes.get(current.parent)
    return None if current is None else current.is_mine


def _home() -> str:
    return _real(os.environ["OPENMODAL_HOME"])


def _brief() -> str:
    """What the folders of this run's sandboxes in memory begin with; "\\0", as no path does, if none are."""
    return _config.brief(Path(_home())) or "\0"


@cache
def _real(path: str) -> str:
    return os.path.realpath(path)


def _mounts() -> Iterator[str]:
    """Mounts in this namespace that have to do with us: by their place or by what is mounted."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        place = line.split()[4]
        # Of a cluster, at which others test.
        in_pod = "/pods/" in place and "/volumes/kubernetes.io~" in place
        if not in_pod and (_is_ours(place) or f"{_home()}/" in line):
            yield place


def _is_ours(path: str) -> bool:
    """Whether it has to do with OpenModal, but not with another run's state or another worker's temporary files."""
    home = _home()
    theirs = path.startswith(home.rstrip("0123456789")) and not path.startswith(home + "/")
    if "PYTEST_XDIST_WORKER" in os.environ and (worker := re.search(r"openmodal-gw\d+-", path)):
        theirs |= worker[0] != TEMPORARY
    return "openmodal" in path and not theirs


def _loop_devices() -> Iterator[str]:
    for device in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = device.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if _is_ours(backing) or backing.startswith(f"{_home()}/"):
            yield f"{device.parts[3]} {backing}"


def _cgroups(foreign: set[int]) -> Iterator[str]:
    """Control groups of ours in every hierarchy, version 1 or 2, but for those that another run's processes are in."""
    for hierarchy in _hierarchies():
        for folder in _groups(str(hierarchy)):
            ours = "openmodal" in folder.removeprefix(str(hierarchy)) and not _is_another_workers(folder)
            if ours and not _pids_in(folder) & foreign:
                yield folder


def _is_another_workers(folder: str) -> bool:
    """Whether it is a parent of control groups that another worker's test has now
    (tests/embedded/test_groups.py), or of a sandbox there whose supervisor was killed."""
    _, _, pid = folder.partition("/openmodal-test-")
    pid = pid.partition("/")[0]
    if pid.isdigit():
        return int(pid) != os.getpid() and os.path.exists(f"/proc/{pid}")
    id = folder.partition("/openmodal/")[2].partition("/")[0]
    return bool(id) and any(place.endswith(f".{id}") and not place.startswith(_brief()) for place in _in_memory())


def _in_memory() -> list[str]:
    """The folders of all sandboxes of this machine that are in memory, whoever has them."""
    folder = str(_config.machine() / "sandboxes")
    return [place.removeprefix(root) for root in _roots() for place in _children(root + folder)]


def _roots() -> Iterator[str]:
    """Where this run's workers see the machine: each may have a mount namespace of its own
    meanwhile (tests/embedded/apart.py)."""
    yield ""
    if "PYTEST_XDIST_WORKER" in os.environ:
        parent = os.getppid()
        with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as file:
            yield from (f"/proc/{pid}/root" for pid in file.read().split())


def _groups(folder: str) -> Iterator[str]:
    """That control group and all below it, but for a cluster's, which keeps those of pods for long."""
    yield folder
    with contextlib.suppress(OSError):  # another run's group goes meanwhile
        # In this file system the number of links counts the groups inside: most have none, and many files.
        if os.stat(folder).st_nlink > 2:
            with os.scandir(folder) as entries:
                inner = [entry.path for entry in entries if entry.is_dir() and entry.name != "kubepods"]
            for path in inner:
                yield from _groups(path)


def _hierarchies() -> Iterator[Path]:
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] in ("cgroup", "cgroup2"):
            yield Path(left.split()[4])


def _pids_in(folder: str) -> set[int]:
    try:
        with open(f"{folder}/cgroup.procs", encoding="ascii") as file:
            return {int(line) for line in file}
    except (OSError, ValueError):
        return set()


def _interfaces() -> Iterator[str]:
    for name in os.listdir("/sys/class/net"):
        # Bridges, and what is in one, are a daemon's or a cluster's.
        if not any(os.path.exists(f"/sys/class/net/{name}/{kind}") for kind in ("bridge", "master")):
            yield f"host {name}"
    if os.geteuid() == 0 and ROUTER.exists():
        with ThreadPoolExecutor(1) as thread:
            lines = thread.submit(_devices_of_router).result()
        for line in lines[2:]:
            name = line.partition(":")[0].strip()
            if name.startswith("om"):  # a sandbox's; the others are the router's own
                yield f"router {name}"


def _devices_of_router() -> list[str]:
    """/proc/net/dev as it is there. A thread may go into a namespace for itself; this one ends with the look."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        with open(ROUTER, "rb") as namespace:
            if libc.setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")
    except OSError:  # it is being made or removed
        return []
    return Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines()


def _files() -> Iterator[str]:
    """Sandboxes' folders, and temporary files. Where nobody else works on the machine, every file in /tmp counts."""
    strict = bool(os.environ.get("OPENMODAL_MUST_WORK"))
    yield from _children(f"{_home()}/sandboxes")
    yield from (path for path in _children(os.path.dirname(_brief())) if path.startswith(_brief()))
    # Unused ones wait for the next sandbox.
    yield from (path for path in _children(f"{_home()}/uppers") if not re.search(r"/(\..*|boot)\Z", path))
    if "PYTEST_XDIST_WORKER" in os.environ:  # the others are at work in the shared places
        yield from _children(tempfile.gettempdir())
        return
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        for path in _children(folder):
            if strict or "openmodal" in path:
                yield path


def _containers() -> Iterator[str]:
    """Containers and volumes of ours, where a Docker daemon answers; nothing makes networks."""
    daemon = Daemon(os.environ.get("OPENMODAL_TEST_DOCKER", ""))
    if not daemon.path or not daemon.answers():
        return
    mine = {"label": [f"openmodal.home={_home()}/docker"]}
    with daemon.open() as api:
        for item in api.get("/containers/json", all=True, filters=mine):
            yield f"{item['Names'][0]} ({item['State']})"
        for volume in api.get("/volumes")["Volumes"] or ():
            yield f"volume {volume['Name']}"
        for network in api.get("/networks"):
            yield f"network {network['Name']}"


def _objects() -> Iterator[str]:
    """What tests of Kubernetes made in the namespace of this run; pods that wait in a pool belong to the pool."""
    if "OPENMODAL_KUBERNETES_NAMESPACE" in os.environ:
        from tests.kubernetes import cluster

        yield from cluster.objects()


def tables() -> Iterator[str]:
    """The rules of judges of NetworkPolicies (tests/kubernetes/enforcer.py) whose processes have ended."""
    if os.geteuid() != 0 or not shutil.which("nft"):
        return
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True, timeout=60)
    for name in listed.stdout.split():
        pid = name.removeprefix(JUDGE)
        if pid != name and not os.path.exists(f"/proc/{pid}"):
            yield name


def _children(folder: str) -> Iterator[str]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        yield f"{folder}/{name}"


def left_since(before: Ledger, allowed: Mapping[str, tuple[str, ...]] = ALLOWED) -> list[str]:
    """Tell what is here now, was not there before, and does not go by itself. What comes later is somebody else's."""
    return compare(before, allowed)[0]


def compare(before: Ledger, allowed: Mapping[str, tuple[str, ...]]) -> tuple[list[str], Ledger]:
    """What `left_since` tells, and the ledger that was taken last for it."""
    after = take(tuple(before.entries))
    left = after.since(before, allowed)
    deadline, pause = time.monotonic() + GRACE, 0.005  # most of what goes by itself has gone after some milliseconds
    while left and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
        after = after.renewed({leak.partition(": ")[0] for leak in left})
        now = set(after.since(before, allowed))
        left = [leak for leak in left if leak in now]
    return left, after


AFTER = pytest.StashKey[Ledger | None]()
"""How it was after the last test: that is how it is before the next one, unless a fixture for several tests came or went between."""


class Check:
    """The leak check of one test."""

    def __init__(self, before: Ledger) -> None:
        self.before = before

    def renew(self) -> None:
        """What is there by now is not this test's."""
        self.before = take(tuple(self.before.entries))


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[Check]:
    """Fail the test that leaves something behind. Set up first, so it looks when all other fixtures are done."""
    if "unit" in request.path.parts:
        yield Check(Ledger({}, foreign=False))
        return
    allowed = ALLOWED | {"": tuple(p for mark in request.node.iter_markers("may_leave") for p in mark.args)}
    kinds = IN_PODS if "kubernetes" in request.path.parts else ON_MACHINE
    stash = request.config.stash
    before = stash.get(AFTER, None)
    if before is None or set(before.entries) != set(kinds):
        before = take(kinds)
    check = Check(before)
    yield check
    left, stash[AFTER] = compare(check.before, allowed)
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


def forget_after(config: pytest.Config, fixture: pytest.FixtureDef[object]) -> None:
    """To be called when a fixture is set up or torn down."""
    if fixture.scope != "function":
        config.stash[AFTER] = None
