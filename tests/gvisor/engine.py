"""The embedded engine, every sandbox of which runs in gVisor. A module of its own, for other processes name it as `engine=`."""

from __future__ import annotations

from msgspec.structs import replace

from openmodal._spec import Layered, Root, SandboxSpec, Status
from openmodal.engines.asked import digests
from openmodal.engines.embedded import Embedded, gvisor

_NATIVE = dict(digests(SandboxSpec(app=""), Layered("")))["runtime"]


class Gvisor(Embedded):
    """`runtime="gvisor"`, whatever the caller says."""

    @property
    def lacks(self) -> frozenset[str]:
        """What docs/engines.md says of gVisor."""
        return super().lacks | gvisor.LACKS

    breaks = ("dbus, the system's", "linux-perf")
    """Of tests/programs.py, with release 20240729: D-Bus's system bus closes every connection (a
    session's works), and perf ends when it is told that there is no such device."""

    async def create(self, spec: SandboxSpec, root: Root) -> str:
        return await super().create(replace(spec, runtime="gvisor"), root)

    async def inspect(self, id: str) -> Status:
        """Its caller, who has not said it, asks for the same again."""
        status = await super().inspect(id)
        asked = ((name, _NATIVE if name == "runtime" else digest) for name, digest in status.asked)
        return replace(status, asked=tuple(asked))
