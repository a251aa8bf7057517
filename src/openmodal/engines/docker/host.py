"""The machine that the daemon runs on: ours or another, and what a sandbox gets of it."""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmodal import _binary, _config, _trash
from openmodal._dual import is_in_loop
from openmodal._spec import Referenced, SandboxSpec
from openmodal.build.base import BUNDLE, TRUST_VARIABLES
from openmodal.build.layers import Layers
from openmodal.engines import asked, machine
from openmodal.engines.docker import container, links
from openmodal.engines.docker.container import setup
from openmodal.engines.docker.daemon import Daemon
from openmodal.errors import EngineError, UnsupportedError

_LIMITING = ("btrfs", "zfs")  # storage drivers that limit what a container writes by themselves
_LATELY = 60.0
_CPUS = "/sys/devices/system/cpu"


@dataclass(frozen=True)
class Host:
    """What `GET /info` says of a daemon, as far as sandboxes depend on it."""

    daemon: Daemon
    info: Mapping[str, Any]

    @classmethod
    def of(cls, daemon: Daemon) -> Host:
        """Ask the daemon."""
        with daemon.open() as api:
            return cls(daemon, api.get("/info"))

    @classmethod
    def lately(cls, daemon: Daemon) -> Host:
        """What it said less than a minute ago: to answer, it starts programs, which takes ten
        milliseconds. One that is set up anew meanwhile refuses what it cannot do."""
        said, now = _said(daemon), time.monotonic()
        if said.host is None or now - said.at > _LATELY:
            said.host, said.at = cls.of(daemon), now
        return said.host

    @classmethod
    def may_share_sockets(cls, daemon: Daemon) -> bool:
        """As `shares_sockets`, where an event loop does not wait for the daemon: one that was never
        asked, or does not answer, counts as sharing, and `check` refuses what it cannot do."""
        return cls._may(daemon, lambda host: host.shares_sockets)

    @classmethod
    def may_share_networks(cls, daemon: Daemon) -> bool:
        """As `may_share_sockets`, of networks that sandboxes share."""
        return cls._may(daemon, lambda host: host.shares_networks)

    @classmethod
    def _may(cls, daemon: Daemon, so: Callable[[Host], bool]) -> bool:
        try:
            host = _said(daemon).host if is_in_loop() else cls.lately(daemon)
        except EngineError:
            return True
        return host is None or so(host)

    @property
    def is_here(self) -> bool:
        """Whether the daemon sees the files of this machine: not from another machine, Docker Desktop's, or out of a container."""
        return bool(self.daemon.path) and self.info["Name"] == socket.gethostname()

    @property
    def shares_sockets(self) -> bool:
        """Whether an agent can make a socket that this process may connect to: both must be the same user."""
        options = " ".join(self.info.get("SecurityOptions") or ())
        return self.is_here and "name=userns" not in options and (os.geteuid() == 0 or "name=rootless" in options)

    @property
    def is_docker(self) -> bool:
        """Whether it is Docker, and not Podman's service for its API."""
        return "local" in (self.info.get("Plugins") or {}).get("Log", ())

    @property
    def shares_networks(self) -> bool:
        """Whether it has networks that sandboxes may share, and this machine keeps their locks."""
        return self.is_here and self.is_docker

    def check(self, spec: SandboxSpec) -> None:
        """Refuse what this daemon cannot do for a sandbox, as far as what it says of itself tells.

        Raises:
            UnsupportedError: it has no gVisor, nothing that limits disks, or shares no sockets.
        """
        if spec.runtime == "gvisor":
            self.gvisor(network=not spec.network.block)
        driver, told = self.info.get("Driver"), dict(self.info.get("DriverStatus") or ())
        backing = told.get("Backing Filesystem", "xfs")
        if spec.resources.disk and driver not in _LIMITING and backing != "xfs":
            raise no_disk(f"its driver {driver} is on {backing}")
        if has_beside(spec) and (spec.runtime == "gvisor" or not self.shares_sockets):
            raise no_ports() if spec.ports else no_owner() if spec.owner else no_pause()
        if spec.network.shared and (spec.runtime == "gvisor" or not self.shares_networks):
            raise UnsupportedError(
                "network= needs a Docker daemon (not Podman's service) on this machine and runtime='native'; leave it out, "
                "or use engine='embedded' as root"
            )
        if spec.snapshot_on_end and spec.runtime == "gvisor":
            raise UnsupportedError(
                "snapshot_on_end= is not kept with runtime='gvisor' on Docker, where gVisor has the files to itself; "
                "leave one of the two out"
            )

    def gvisor(self, *, network: bool) -> str:
        """The daemon's name for gVisor's runtime.

        Raises:
            UnsupportedError: it has none, or nobody here can put the firewall around a sandbox that
                has a network stack of its own.
        """
        runtimes: Mapping[str, Any] = self.info.get("Runtimes") or {}
        name = next((name for name in container.GVISOR if name in runtimes), "")
        if not name:
            raise UnsupportedError(
                f"runtime='gvisor' needs runsc, which this Docker daemon does not have (it has {', '.join(sorted(runtimes))}); "
                "run `runsc install` on its machine and restart it, or use engine='embedded'"
            )
        if network and not (self.is_here and os.geteuid() == 0):
            raise UnsupportedError(
                "runtime='gvisor' with a network needs a Docker daemon on this machine and root, because its firewall is put around the "
                "sandbox from outside; add block_network=True, or use engine='embedded'"
            )
        return name

    def wall(self, found: Mapping[str, Any], denied: Sequence[str], layers: Layers) -> None:
        """Put the firewall around a described container whose network stack is not the kernel's; it
        ends with the container's network.

        Raises:
            EngineError: it cannot be done.
        """
        command = ["wall", found["NetworkSettings"]["SandboxKey"], found["ResolvConfPath"]]
        if why := self._fails(command, layers, setup({}, denied, caged=False)):
            raise EngineError(
                f"the firewall of a gVisor sandbox cannot be put around it: {why}; add block_network=True"
            )

    def bound(self, found: Mapping[str, Any], layers: Layers) -> None:
        """Have a described container keep within its limit what the daemon has in files beside it,
        such as its /etc/hosts. Who is not root here cannot.

        Raises:
            EngineError: it cannot be done.
        """
        command = ["bound", str(found["State"]["Pid"]), links.RUN]
        if self.is_here and os.geteuid() == 0 and (why := self._fails(command, layers)):
            raise EngineError(
                f"disk= cannot be held for the files that Docker keeps beside a container: {why}; leave it out"
            )

    def _fails(self, command: Sequence[str], layers: Layers, told: bytes = b"") -> str:
        """Why the native program cannot do that to a container; "" if it has done so."""
        done = _binary.run([_binary.find(layers.path, self.info["Architecture"]), *command], told)
        said = done.stderr.decode("utf-8", "replace").strip().removeprefix("error ")
        return (said.partition(" ")[2] or f"exit code {done.returncode}") if done.returncode else ""

    def hang_up(self, found: Mapping[str, Any], layers: Layers) -> None:
        """End the connections of a described container, so that both sides know.

        Who is not root here cannot: they end when they have been silent for too long.
        """
        if self.is_here and os.geteuid() == 0:
            program = _binary.find(layers.path, self.info["Architecture"])
            _binary.run([program, "hangup", found["NetworkSettings"]["SandboxKey"]], b"")

    def denied(self) -> list[str]:
        """What sandboxes must not reach: private networks, and the daemon's machine as far as its addresses are known here."""
        own = machine.own_addresses() if self.is_here else self._addresses()
        return container.joined((*machine.DENIED, *own))

    def place(
        self, spec: SandboxSpec, root: Referenced, folder: Path, layers: Layers
    ) -> tuple[container.Place, dict[str, str], str]:
        """What the container gets, its environment, and the image that it is made of."""
        bundle = _config.authorities()
        trust = TRUST_VARIABLES if bundle else {}
        agent = Path(_binary.find(layers.path, self.info["Architecture"]))
        files = {links.AGENT: agent, **({f"/{BUNDLE}": bundle} if bundle else {})}
        image = root.reference
        gvisor = "" if spec.runtime == "native" else self.gvisor(network=not spec.network.block)
        cpus = tuple(machine.cpus(asked.limits(spec.resources).cpu, range(int(self.info["NCPU"]))))
        if not self.is_here:
            from openmodal.engines.docker.images import with_files

            return (
                container.Place(cpus=cpus, gvisor=gvisor, keeps_local_logs=self.is_docker),
                {**trust, **dict(spec.env)},
                with_files(self.daemon, root, files),
            )
        files |= self._shown(spec, folder, 0 if gvisor else len(cpus))
        # Whoever can write to the folder can fill this machine's disk.
        bounded = bool(gvisor or (spec.resources.disk and not has_beside(spec)))
        run = _anew(folder / "run") if self.shares_sockets and not bounded else ""
        mounts = tuple((str(source), target) for target, source in files.items())
        return container.Place(mounts, run, cpus, gvisor, self.is_docker), {**trust, **dict(spec.env)}, image

    def _shown(self, spec: SandboxSpec, folder: Path, cpus: int) -> dict[str, Path]:
        """Files that show the limits in place of the machine."""
        memory = asked.limits(spec.resources).memory
        shown = {}
        if memory <= int(self.info["MemTotal"]):
            shown["/proc/meminfo"] = _written(folder / "meminfo", container.meminfo(memory))
        if cpus and os.path.exists(f"{_CPUS}/online"):
            shown["/proc/cpuinfo"] = _written(folder / "cpuinfo", machine.cpuinfo(cpus))
            listed = _written(folder / "cpus", f"0-{cpus - 1}\n" if cpus > 1 else "0\n")
            shown |= {f"{_CPUS}/{name}": listed for name in ("online", "possible", "present")}
            # Beyond the sandbox's own a CPU has no files: psutil and hwloc count cores by them.
            nothing, names = Path(_made(folder / "nothing")), os.listdir(_CPUS)
            numbers = (int(name[3:]) for name in names if name[:3] == "cpu" and name[3:].isdigit())
            shown |= {f"{_CPUS}/cpu{number}": nothing for number in numbers if number >= cpus}
        return shown

    def _addresses(self) -> list[str]:
        name = self.daemon.host.removeprefix("tcp://").partition(":")[0]
        found = socket.getaddrinfo(name, None, socket.AF_INET) if name and not self.daemon.path else []
        return sorted({str(address[0]) for *_, address in found})


def has_beside(spec: SandboxSpec) -> bool:
    """Whether a child beside the container works for it, through the folder of the agent's socket."""
    return bool(spec.ports or spec.owner or spec.on_idle == "pause")


def no_disk(why: str) -> UnsupportedError:
    """The refusal of `disk=`."""
    return UnsupportedError(
        f"disk= needs a Docker daemon that keeps its data on xfs with project quotas, or on btrfs or zfs ({why})"
    )


def refused_disk(said: str) -> UnsupportedError | None:
    """The same, of a daemon that refused to make a container and said so; None: for another reason."""
    if "quota exceeded" in said:
        return UnsupportedError("disk= is less than the image takes, which counts on btrfs; say a larger disk=")
    return no_disk(said) if "storage" in said.lower() else None


def no_ports() -> UnsupportedError:
    """The refusal of `ports=`."""
    return _nothing_beside("ports=", "leave it out and use sandbox.forward(port)")


def no_owner() -> UnsupportedError:
    """The refusal of `owner=`."""
    return _nothing_beside("owner=", "use lease= and sandbox.renew()")


def no_later_owner() -> UnsupportedError:
    """The refusal of an owner for a sandbox with `disk=` that began without one."""
    return UnsupportedError(
        "a sandbox with disk= can have an owner on the docker engine only if it was created with one; give Sandbox.create owner=, "
        "or use lease= and sandbox.renew()"
    )


def no_pause() -> UnsupportedError:
    """The refusal of `on_idle="pause"`."""
    return _nothing_beside("on_idle='pause'", "leave it out, or call sandbox.pause()")


def _nothing_beside(argument: str, remedy: str) -> UnsupportedError:
    """The refusal of what a child beside the container does."""
    return UnsupportedError(
        f"{argument} needs a Docker daemon on this machine that runs as the same user, and runtime='native'; {remedy}"
    )


@dataclass
class _Said:
    """What a daemon said of itself last, and when."""

    host: Host | None = None
    at: float = 0.0


@functools.lru_cache(maxsize=8)
def _said(daemon: Daemon) -> _Said:
    return _Said()


def _made(folder: Path) -> str:
    folder.mkdir(mode=0o700, exist_ok=True)
    return str(folder)


def _anew(folder: Path) -> str:
    """The folder, with nothing in it: root in the sandbox could write there, if this is a reset."""
    _trash.remove(folder)
    return _made(folder)


def _written(file: Path, text: str) -> Path:
    file.write_text(text, "ascii")
    file.chmod(0o644)
    return file
