"""What this machine can do for the embedded engine, what is missing, and the command that adds it.
`openmodal doctor` prints it.

It is found out by trying (trial.py): what sandboxes do to the kernel, to the store, and to the
programs that they need. What only looks explains a trial that failed, and tells the setting to
change. It reads from a `Machine`, whose folders a test replaces.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import msgspec

from openmodal import _binary, _config, _idmap
from openmodal._spec import Resources, SandboxSpec
from openmodal.build import base, debian, ids
from openmodal.engines import groups
from openmodal.engines.check import Check
from openmodal.engines.embedded import cgroup, container, gvisor, network, rootless, trial, verdict
from openmodal.engines.embedded.engine import MOST_ON_DISK
from openmodal.engines.machine import own_resolvers
from openmodal.errors import EngineError

_ROOT_KERNEL = (5, 19)  # overlayfs on id-mapped layers
_USER_KERNEL = (5, 12)  # mount_setattr; overlayfs in a user namespace came with 5.11
_LEAST_FREE = 2 << 30
_LEAST_PIDS = 65536
_OLD_DAYS = 180
_TRIAL_DISK = 16  # MiB
_PATIENCE = 1.5  # seconds for a registry


@dataclass(frozen=True)
class Machine:
    """Where to look. `root` stands for "/", `which` finds a program of the administrator's."""

    root: Path
    state: Path
    uid: int
    release: str
    cpu: str
    which: Callable[[str], str | None]

    @classmethod
    def here(cls) -> Machine:
        """This machine, this user."""
        return cls(Path("/"), _config.state(), os.geteuid(), os.uname().release, os.uname().machine, network.tool)

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    def text(self, path: str) -> str:
        """A file of the machine; "" if there is none."""
        try:
            return (self.root / path).read_text("utf-8", "replace").strip()
        except OSError:
            return ""

    def number(self, path: str) -> int | None:
        text = self.text(path)
        return int(text) if text.lstrip("-").isdigit() else None


def examine(*, network: bool = False) -> list[Check]:
    """Look at everything and try it. `network`: also try to reach the registries, which takes seconds where there is none."""
    machine = Machine.here()
    tried = verdict.attempt(machine.state, _special(machine))
    checks = [verdict.judged(check, tried) for check in look(machine)]
    checks += [image_registry(), package_index()] if network else []
    return [*checks, *verdict.sandboxes(tried)]


def _special(machine: Machine) -> dict[str, SandboxSpec]:
    """Sandboxes with what not every machine has, where it seems to be there."""
    found: dict[str, SandboxSpec] = {}
    if disk_limit(machine).ok:
        found["disk limit"] = msgspec.structs.replace(trial.bare(), resources=Resources(disk=_TRIAL_DISK))
    if machine.is_root and machine.which("runsc"):
        found["gVisor"] = msgspec.structs.replace(trial.bare(), runtime="gvisor")
    return found


def look(machine: Machine) -> list[Check]:
    """What can be seen without trying."""
    return [
        kernel(machine),
        program(machine),
        user_namespaces(machine),
        overlay(machine),
        seccomp(machine),
        rights(machine),
        user(machine),
        limits(machine),
        way_out(machine),
        resolver(machine),
        base_images(machine),
        store(machine),
        privacy(machine),
        free_space(machine),
        disk_limit(machine),
        process_ids(machine),
        open_files(machine),
        core_dumps(machine),
        runsc(machine),
    ]


# --------------------------------------------------------------------------------------- the kernel


def kernel(machine: Machine) -> Check:
    """Linux, new enough: for root also with id-mapped mounts that overlayfs takes."""
    needed = _ROOT_KERNEL if machine.is_root else _USER_KERNEL
    found = re.match(r"(\d+)\.(\d+)", machine.release)
    ok = found is not None and (int(found[1]), int(found[2])) >= needed
    return Check(
        "kernel",
        ok,
        f"Linux {machine.release}",
        f"install a kernel from {needed[0]}.{needed[1]} on: without it, layers cannot be mounted for a sandbox",
        required=True,
    )


def program(machine: Machine) -> Check:
    """The native program, for this CPU."""
    try:
        path = _binary.find(machine.state)
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (EngineError, OSError, subprocess.TimeoutExpired) as error:
        return Check("native program", False, str(error), "install gcc and reinstall openmodal", required=True)
    said = done.stdout.strip() or f"it exits with {done.returncode}"
    return Check(
        "native program", done.returncode == 0, f"{said} ({machine.cpu})", "reinstall openmodal", required=True
    )


def user_namespaces(machine: Machine) -> Check:
    """Whether the kernel lets this user make user namespaces."""

    def refused(text: str, remedy: str) -> Check:
        return Check("user namespaces", False, text, remedy, required=True)

    if machine.number("proc/sys/user/max_user_namespaces") in (0, None):
        return refused("the kernel allows none", "sysctl -w user.max_user_namespaces=15000")
    if not machine.is_root and machine.number("proc/sys/kernel/unprivileged_userns_clone") == 0:
        return refused("only root may make them", "sysctl -w kernel.unprivileged_userns_clone=1")
    if not machine.is_root and machine.number("proc/sys/kernel/apparmor_restrict_unprivileged_userns") == 1:
        return refused(
            "AppArmor refuses them to programs without a profile",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give the native program a profile with userns",
        )
    return Check("user namespaces", True, "no setting forbids them", required=True)


def overlay(machine: Machine) -> Check:
    """overlayfs, which a sandbox's files are made of; it may be a module that nobody has loaded yet."""
    there = "overlay" in machine.text("proc/filesystems").split()
    lists = (f"lib/modules/{machine.release}/{name}" for name in ("modules.dep", "modules.builtin"))
    module = not there and any("/overlay.ko" in machine.text(name) for name in lists)
    text = "there" if there else "a module, loaded when it is needed" if module else "not in this kernel"
    ok = there or (module and machine.is_root)
    return Check("overlayfs", ok, text, "modprobe overlay (as root)", required=True)


def seccomp(machine: Machine) -> Check:
    """The system call filter."""
    ok = "errno" in machine.text("proc/sys/kernel/seccomp/actions_avail").split()
    return Check(
        "seccomp", ok, "there" if ok else "not in this kernel", "use a kernel with CONFIG_SECCOMP_FILTER", required=True
    )


# ----------------------------------------------------------------------------------------- the user


def rights(machine: Machine) -> Check:
    """What a container may keep from root in it."""
    lacking = container.lacking(machine.root) if machine.is_root else ""
    text, _, remedy = lacking.partition("; ")
    return Check("rights", not lacking, text or "nothing is kept from this user", remedy, required=True)


def user(machine: Machine) -> Check:
    """Which user ids a sandbox gets."""
    if machine.is_root:
        return Check("user ids", True, "root: each sandbox gets 65,536 ids of its own")
    helper = all(map(machine.which, _idmap.HELPERS))
    ranges = [_idmap.subordinate(machine.text(f"etc/{name}"), machine.uid) for name in ("subuid", "subgid")]
    if helper and all(ranges):
        return Check("user ids", True, "your sub-ids, shared by your sandboxes")
    text = "your own id only: apt-get and `user=` do not work in sandboxes"
    return Check("user ids", False, text, ids.REMEDY.format(name=_idmap.user_name(machine.uid)))


def limits(machine: Machine) -> Check:
    """Which limits the control groups can hold."""
    first = machine.text("proc/1/cgroup") if machine.is_root else ""
    found = groups.hierarchies(machine.text("proc/self/mountinfo"), first)
    if not machine.is_root:
        found = rootless.hierarchies(machine.text("proc/self/cgroup"), found.v2)
    version = (
        "control groups v1" if found.v1 else "control groups v2" if found.v2 else "no control groups that may be used"
    )
    lacking = cgroup.missing(found)
    held = [name for name in ("memory", "pids", "cpu") if name not in lacking]
    remedy = (
        "mount cgroup2 on /sys/fs/cgroup, or boot without cgroup_disable="
        if machine.is_root
        else "start programs with systemd-run --user --scope -p Delegate=yes; if cpu is missing then, as root: systemctl edit "
        "user@.service with [Service] Delegate=memory pids cpu; in a container, start them as its root"
    )
    text = f"{version}; limits of {', '.join(held)} hold" if held else f"{version}; no limits hold"
    allowed = "limits" in _config.allow_degraded()
    try:  # what `create` would do first: only that shows whether it may
        if not lacking:
            cgroup.prepare(found)
    except EngineError as error:
        text, _, remedy = str(error).rpartition("; ")
        return Check("limits", False, text, remedy, required=not allowed)
    if lacking and not allowed:
        remedy += "; or accept it: OPENMODAL_ALLOW_DEGRADED=limits"
    return Check("limits", not lacking, text, remedy, required=not allowed)


# -------------------------------------------------------------------------------------- the network


def way_out(machine: Machine) -> Check:
    """What a sandbox's network is made with."""
    if not machine.is_root:
        return _users_way_out(machine)
    firewall = "iptables" if machine.which("iptables-restore") else "nft" if machine.which("nft") else ""
    missing = [] if firewall else ["iptables"]
    missing += [] if machine.which("nsenter") else ["util-linux"]
    text = f"by {firewall}" if not missing else "only sandboxes with block_network=True can be created"
    allowed = "network" in _config.allow_degraded()
    accept = "" if allowed else "; or accept it: OPENMODAL_ALLOW_DEGRADED=network"
    remedy = f"apt-get install {' '.join(missing)}{accept}" if missing else ""
    return Check("network", not missing, text, remedy, required=not allowed)


def _users_way_out(machine: Machine) -> Check:
    """The program that gives a plain user's sandbox its network."""
    allowed = "network" in _config.allow_degraded()
    if missing := rootless.lacking(machine.root, machine.which):
        cause, remedy = missing
        accept = "" if allowed else "; or accept it: OPENMODAL_ALLOW_DEGRADED=network"
        return Check("network", False, f"none, because {cause}", f"{remedy}{accept}", required=not allowed)
    names = dict.fromkeys(os.path.basename(command[0]) for command in rootless.helpers(machine.which, machine.root))
    return Check("network", True, f"by {' or '.join(names)}", required=not allowed)


def resolver(machine: Machine) -> Check:
    """The name server that sandboxes ask."""
    if not machine.is_root:
        asked = rootless.servers(machine.which, machine.root)
        if asked[0] == rootless.RESOLVER:
            named = ", ".join((own_resolvers(machine.root)[0], *asked[1:]))
            return Check("resolver", True, f"sandboxes ask {named}, the first by way of their network's program")
    servers = network.resolvers(machine.root)
    own = [
        word
        for line in machine.text("etc/resolv.conf").splitlines()
        for word in line.split()[1:2]
        if "nameserver" in line
    ]
    public = (
        not any(server in own for server in servers) and not (machine.root / "run/systemd/resolve/resolv.conf").exists()
    )
    return Check(
        "resolver",
        not public,
        f"sandboxes ask {', '.join(servers)}" + (" (public ones: this machine's is on its loopback)" if public else ""),
        "name a server that can be reached from elsewhere in /etc/resolv.conf, if yours knows names that public ones do not",
    )


def base_images(machine: Machine) -> Check:
    """Where `Image.debian_slim()` can come from: a registry is asked only where Debian's packages cannot be made into one."""
    wanted = _config.base()
    lacking = "" if wanted == "registry" else _no_packages()
    if not lacking:
        places = {"registry": "a registry", "packages": "Debian's packages"}.get(
            wanted, "a registry or Debian's packages"
        )
        return Check("base image", True, f"Image.debian_slim() comes from {places}")
    why = base.silence(_PATIENCE) if wanted == "auto" else ""
    if wanted == "auto" and not why:
        return Check("base image", True, f"Image.debian_slim() comes from a registry; not from packages: {lacking}")
    reason = lacking if wanted == "packages" else f"{why}, and {lacking}"
    return Check("base image", False, f"Image.debian_slim() cannot be made: {reason}")


def _no_packages() -> str:
    """Why Debian's packages cannot be made into an image; "" if they can."""
    try:
        debian.attempt()
    except EngineError as error:
        return str(error)
    return ""


# ----------------------------------------------------------------------------------------- the disk


def store(machine: Machine) -> Check:
    """The file system that layers and sandboxes are on. Whether it can hold them, the trial finds out."""
    kind = file_system(machine.text("proc/self/mountinfo"), str(_existing(machine.state)))
    return Check("store", True, f"{machine.state} on {kind or 'an unknown file system'}", required=True)


def privacy(machine: Machine) -> Check:
    """Whoever reaches the sockets in the store can run commands in sandboxes, and its layers hold set-user-id files of images."""
    place = machine.state
    if not place.exists():
        return Check("store's privacy", True, f"{place} is not there yet; it is made with mode 700")
    mode = place.stat().st_mode & 0o777
    return Check(
        "store's privacy",
        not mode & 0o077,
        f"{place} has mode {mode:o}",
        f"chmod 700 {place}, so that only you reach it",
    )


def disk_limit(machine: Machine) -> Check:
    """What `disk=` is made with."""
    needed = (
        ("root", "run as root", machine.is_root),
        ("ext4 in the kernel", "modprobe ext4", "ext4" in machine.text("proc/filesystems").split()),
        ("loop devices", "modprobe loop", (machine.root / "dev/loop-control").exists()),
        ("mkfs.ext4", "apt-get install e2fsprogs", bool(machine.which("mkfs.ext4"))),
    )
    lacking = [what for what, _, there in needed if not there]
    remedy = ", ".join(remedy for _, remedy, there in needed if not there)
    text = f"disk= needs {', '.join(lacking)}" if lacking else "disk= works"
    most = f"{MOST_ON_DISK >> 30} GiB on the store's disk"
    if machine.is_root and has_project_quota(machine.text("proc/self/mountinfo"), str(_existing(machine.state))):
        without = f"without it a project quota gives a sandbox {most}"
    else:
        without = f"without it the guard ends a sandbox that has {most} (no project quota)"
    return Check("disk limit", not lacking, f"{text}; {without}", remedy)


def free_space(machine: Machine) -> Check:
    """Room for layers and what sandboxes write."""
    found = os.statvfs(_existing(machine.state))
    free = found.f_bavail * found.f_frsize
    return Check(
        "disk space", free >= _LEAST_FREE, f"{free / (1 << 30):.1f} GiB free", "openmodal image prune, openmodal gc"
    )


def file_system(mountinfo: str, path: str) -> str:
    """The type of the file system that a path is on."""
    return _mounted(mountinfo, path)[0]


def has_project_quota(mountinfo: str, path: str) -> bool:
    """Whether the file system that a path is on was mounted so that it limits projects."""
    return "prjquota" in _mounted(mountinfo, path)[1].split(",")


def _mounted(mountinfo: str, path: str) -> tuple[str, str]:
    """The type of the file system that a path is on, and its options (proc(5), mountinfo)."""
    best, kind, options = "", "", ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two mounts on one place, the later covers the earlier
            best, (kind, _, options) = point, after.split(maxsplit=2)
    return kind, options


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


# ----------------------------------------------------------------------------------------- the rest


def process_ids(machine: Machine) -> Check:
    """How many processes the machine can have: a sandbox may use 512."""
    most = machine.number("proc/sys/kernel/pid_max") or 0
    return Check(
        "process ids",
        most >= _LEAST_PIDS,
        f"at most {most}",
        "sysctl -w kernel.pid_max=4194304, for hundreds of sandboxes",
    )


def open_files(machine: Machine) -> Check:
    """How many files the machine can have open: a sandbox has as many as fit into its memory."""
    most = machine.number("proc/sys/fs/file-max") or 0
    total = re.search(r"^MemTotal: +(\d+) kB", machine.text("proc/meminfo"), re.MULTILINE)
    enough = int(total[1]) * 1024 // cgroup.LEAST_FILE if total else 0
    raised = " until the first sandbox raises it" if machine.is_root else ""
    return Check(
        "open files",
        machine.is_root or most >= enough,
        "as many as fit into the memory" if most >= enough else f"at most {most}{raised}",
        f"as root: sysctl -w fs.file-max={enough}, or one sandbox can use up all of them",
    )


def core_dumps(machine: Machine) -> Check:
    """Dumps that the kernel pipes into a program of the machine: sandboxes' are kept from it by a limit of one byte."""
    pattern = machine.text("proc/sys/kernel/core_pattern")
    piped = pattern.startswith("|")
    return Check(
        "core dumps",
        True,
        "piped to a program; those of sandboxes never are" if piped else "files in place; sandboxes write none",
    )


def runsc(machine: Machine, today: date | None = None) -> Check:
    """gVisor's runsc, which `runtime="gvisor"` needs, and its age: what keeps hostile code in is mended weekly."""
    path = machine.which("runsc")
    if not path:
        return Check("gVisor", False, "runsc is not on PATH; runtime='gvisor' cannot be used", gvisor.REMEDY)
    if not machine.is_root:
        return Check("gVisor", False, "runtime='gvisor' needs root", "run as root, or leave runtime= out")
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("gVisor", False, f"{path} does not run: {error}", gvisor.REMEDY)
    released = gvisor.released(said)
    days = ((today or date.today()) - released).days if released else _OLD_DAYS + 1
    text = (said.splitlines() or [path])[0] + (f", {days} days old" if released else ", of unknown age")
    return Check(
        "gVisor",
        days <= _OLD_DAYS,
        text,
        "install a newer one: https://gvisor.dev/docs/user_guide/install/ (what keeps hostile code in is mended weekly)",
    )


def image_registry() -> Check:
    """Whether Docker Hub can be reached."""
    from openmodal.build.reference import HUB

    try:
        with socket.create_connection((HUB, 443), timeout=5):
            return Check("image registry", True, "can be reached")
    except OSError as error:
        text = f"cannot be reached: {error.strerror or str(error) or 'it does not answer'}"
        return Check("image registry", False, text, "OPENMODAL_BASE=packages makes base images without it")


def package_index() -> Check:
    """Whether pip finds packages, with the configuration that it has here."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", "pip"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        done = subprocess.CompletedProcess(command, 1)
    text = "can be reached" if done.returncode == 0 else "cannot be reached"
    return Check("package index", done.returncode == 0, text, "python -m pip index versions pip; it tells why")
