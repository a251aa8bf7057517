"""The machine that the daemon runs on: ours or another, and what a sandbox gets of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmodal import _config
from openmodal._spec import Root, SandboxSpec
from openmodal.build.base import BUNDLE, TRUST_VARIABLES
from openmodal.build.layers import Layers
from openmodal.engines import machine, native
from openmodal.engines.docker import container, links
from openmodal.engines.docker.daemon import Daemon

_CPUS_ONLINE = "/sys/devices/system/cpu/online"


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

    @property
    def is_here(self) -> bool:
        """Whether the daemon sees the files of this machine: not from another machine, Docker Desktop's, or out of a container."""
        return bool(self.daemon.path) and self.info["Name"] == socket.gethostname()

    @property
    def shares_sockets(self) -> bool:
        """Whether an agent can make a socket that this process may connect to: both must be the same user."""
        options = " ".join(self.info.get("SecurityOptions") or ())
        return self.is_here and "name=userns" not in options and (os.geteuid() == 0 or "name=rootless" in options)

    def denied(self) -> list[str]:
        """What sandboxes must not reach: private networks, and the daemon's machine as far as its addresses are known here."""
        own = machine.own_addresses() if self.is_here else self._addresses()
        return container.joined((*machine.DENIED, *own))

    def place(
        self, spec: SandboxSpec, root: Root, folder: Path, layers: Layers
    ) -> tuple[container.Place, dict[str, str], str]:
        """What the container gets, its environment, and the image that it is made of."""
        bundle = _config.authorities()
        trust = dict.fromkeys(TRUST_VARIABLES, f"/{BUNDLE}") if bundle else {}
        agent = Path(native.find(layers.path, self.info["Architecture"]))
        files = {links.AGENT: agent, **({f"/{BUNDLE}": bundle} if bundle else {})}
        image = root.layers[0]
        cpus = tuple(machine.cpus(spec.resources.cpu or container.DEFAULT_CPU, range(int(self.info["NCPU"]))))
        local = "local" in (self.info.get("Plugins") or {}).get("Log", ())
        if not self.is_here:
            from openmodal.engines.docker.images import with_files

            return (
                container.Place(cpus=cpus, keeps_local_logs=local),
                {**trust, **dict(spec.env)},
                with_files(self.daemon, root, files),
            )
        files |= self._shown(spec, folder, len(cpus))
        run = _made(folder / "run") if self.shares_sockets else ""
        mounts = tuple((str(source), target) for target, source in files.items())
        return container.Place(mounts, run, cpus, local), {**trust, **dict(spec.env)}, image

    def _shown(self, spec: SandboxSpec, folder: Path, cpus: int) -> dict[str, Path]:
        """Files that show the limits in place of the machine."""
        memory = spec.resources.memory or container.DEFAULT_MEMORY
        shown = {}
        if memory << 20 <= int(self.info["MemTotal"]):
            shown["/proc/meminfo"] = _written(folder / "meminfo", container.meminfo(memory))
        if cpus and os.path.exists(_CPUS_ONLINE):
            shown[_CPUS_ONLINE] = _written(folder / "online", f"0-{cpus - 1}\n" if cpus > 1 else "0\n")
        return shown

    def _addresses(self) -> list[str]:
        name = self.daemon.host.removeprefix("tcp://").partition(":")[0]
        found = socket.getaddrinfo(name, None, socket.AF_INET) if name and not self.daemon.path else []
        return sorted({str(address[0]) for *_, address in found})


def _made(folder: Path) -> str:
    folder.mkdir(mode=0o700)
    return str(folder)


def _written(file: Path, text: str) -> Path:
    file.write_text(text, "ascii")
    file.chmod(0o644)
    return file
