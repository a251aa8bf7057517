"""What an engine is: its verbs, and the promises that it keeps or says that it lacks.

`PROMISES` is the one list of them. The contract suite skips tests by it, `Sandbox.create` refuses
arguments by it before anything is built, and the tables of docs/engines.md and docs/sandboxes.md
are made from it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from openmodal._link import Stream
from openmodal._spec import (
    Built,
    BuiltStep,
    Change,
    Egress,
    EndRecord,
    Info,
    Made,
    Network,
    PoolStatus,
    Recipe,
    Report,
    Resources,
    Root,
    SandboxSpec,
    Status,
    Usage,
    VolumeInfo,
)
from openmodal.errors import AlreadyExistsError, Error, UnsupportedError

if TYPE_CHECKING:
    from openmodal.build.prune import Pruned


class Promise(msgspec.Struct, frozen=True):
    """Something that the users of an engine can rely on.

    Attributes:
        text: the promise, as one sentence.
        refusal: what is said to those who ask an engine for it that lacks it: "the docker engine
            …".
        argument: of `Sandbox.create`, which asks for it; "" for none.
        asked: whether a sandbox as asked for needs it.
        verb: of the engine, which keeps it. An engine without that verb lacks the promise, also if
            it does not say so: what an engine has never heard of must not be ignored.
        said: no verb tells that the engine has heard of it, so it says so in `keeps`.
    """

    text: str
    refusal: str = ""
    argument: str = ""
    asked: Callable[[SandboxSpec], bool] | None = None
    verb: str = ""
    said: bool = False


_OTHER_LISTS = "use engine='embedded', or block_network=True for no network at all"

PROMISES = {
    "build_secrets": Promise(
        "steps of an image are given secrets, which no layer, key or log has",
        "gives no secrets to steps of an image; use what needs them in a sandbox, and snapshot_filesystem(), or engine='embedded'",
        said=True,
    ),
    "checkpoint": Promise(
        "`checkpoint` freezes a sandbox's files for itself and its forks",
        "has no checkpoints; use snapshot_filesystem(), or engine='embedded' or engine='docker'",
        verb="checkpoint",
    ),
    "cgroup": Promise("/sys/fs/cgroup tells the limits `memory` and `cpu`, and cannot be written to"),
    "cpu": Promise("the limit `cpu` holds"),
    "cpu_time": Promise("a command's record tells the CPU time that it really got"),
    "deadline": Promise(
        "`set_timeout` moves the end of a running sandbox",
        "cannot move the end of a running sandbox; give Sandbox.create the timeout= that it needs",
        verb="set_timeout",
    ),
    "diff": Promise(
        "`diff` tells which files differ from the image",
        "cannot tell which files have changed; compare listings that commands make",
        verb="diff",
    ),
    "disk": Promise("the limit `disk` holds"),
    "fork": Promise(
        "`fork` makes sandboxes that go on from the files of a running one",
        "cannot fork a sandbox; create sandboxes from its snapshot_filesystem() instead",
        verb="checkpoint",
    ),
    "gc": Promise(
        "`gc` removes what crashes and power cuts left",
        "has no gc; clear up with its own tools",
        verb="gc",
    ),
    "gpus": Promise(
        "a sandbox has the GPUs that `gpu` asks for",
        "has no gpu=; use engine='kubernetes'",
        argument="gpu",
        asked=lambda spec: spec.resources.gpus > 0,
        verb="check",
    ),
    "gvisor": Promise(
        'with `runtime="gvisor"` a sandbox runs on a kernel of its own',
        "has no runtime='gvisor'; leave runtime= out, or use engine='embedded'",
        argument="runtime",
        asked=lambda spec: spec.runtime == "gvisor",
        verb="check",
    ),
    "holes": Promise("a hole in a file is copied as a hole"),
    "host_folders": Promise(
        "a sandbox sees a folder of this machine that `volumes` names with `HostDirectory`",
        "shows no folders of this machine; copy them with sandbox.filesystem.copy_from_local, or use engine='embedded'",
        argument="volumes",
        asked=lambda spec: any(mount.host for mount in spec.mounts),
        verb="make_volume",
    ),
    "ids": Promise(
        "a sandbox is made under an id of the caller's, once however often it is asked for",
        "takes no ids; leave id= out",
        argument="id",
        asked=lambda spec: bool(spec.id),
        said=True,
    ),
    "idle_pause": Promise(
        'with `on_idle="pause"` an idle sandbox is paused, not ended, and goes on when it is used',
        "cannot pause idle sandboxes; leave on_idle= out",
        argument="on_idle",
        asked=lambda spec: spec.on_idle == "pause",
        said=True,
    ),
    "idle_timeout": Promise(
        "a sandbox ends when nothing happens in it",
        "does not end idle sandboxes; leave idle_timeout= out",
        argument="idle_timeout",
        asked=lambda spec: spec.idle_timeout is not None,
    ),
    "images": Promise(
        "built images are listed, and those that nobody uses are removed",
        "keeps no images of its own; use engine='embedded' or engine='docker'",
        verb="images",
    ),
    "info": Promise(
        "`info` tells which controls and limits hold",
        "cannot tell what holds a sandbox",
    ),
    "init": Promise("nothing that runs in a sandbox can end its process 1"),
    "journal": Promise(
        "`timeline` tells what was done with a sandbox, for a day after its end, too",
        "keeps no journal",
        verb="journal",
    ),
    "lease": Promise(
        "a sandbox ends when nobody calls it for the time of its lease, whatever runs in it",
        "has no leases; leave lease= out",
        argument="lease",
        asked=lambda spec: spec.lease is not None,
        said=True,
    ),
    "loopback6": Promise("::1, where /etc/hosts names it, can be bound"),
    "many_processes": Promise("any process of the user finds and ends a sandbox by its id"),
    "meminfo": Promise("/proc/meminfo tells the limit `memory`"),
    "memory": Promise("the limit `memory` holds, and the sandbox's record tells"),
    "memory_left": Promise("/proc/meminfo tells how much of the limit `memory` is left"),
    "memory_offender": Promise("of what exceeds the limit `memory`, only the offender is killed, and its record tells"),
    "mount_image": Promise(
        "`mount_image` shows an image's files in a folder of a running sandbox",
        "cannot mount images; make a sandbox of the image, or use engine='embedded'",
        verb="mount",
    ),
    "network_allowlists": Promise(
        "with a list of domains a sandbox reaches only what is on it, and `egress_log` tells",
        f"has no allow lists of domains, and no log of them; {_OTHER_LISTS}",
        argument="outbound_domain_allowlist",
        asked=lambda spec: spec.network.domains is not None,
        verb="egress",
    ),
    "network_block": Promise(
        "with `block_network` a sandbox reaches nothing but itself",
        "cannot cut a sandbox off from the network; leave block_network= out",
        argument="block_network",
        asked=lambda spec: spec.network.block,
    ),
    "network_change": Promise(
        "`set_network` cuts a running sandbox off, and connects it again",
        "cannot change the network of a running sandbox; create it with the network that it needs",
        verb="set_network",
    ),
    "network_interfaces": Promise("with `block_network` there is no interface but loopback"),
    "network_isolation": Promise("no sandbox reaches this machine's services, private networks, or another sandbox"),
    "network_lists": Promise(
        "with a list of networks a sandbox reaches only what is on it",
        f"has no allow lists of networks; {_OTHER_LISTS}",
        argument="outbound_cidr_allowlist",
        asked=lambda spec: spec.network.cidrs is not None,
    ),
    "network_outbound": Promise("a sandbox reaches the internet"),
    "network_shared": Promise(
        "sandboxes of one `network` reach each other by their names, and nobody else reaches them",
        "has no networks of several sandboxes; run the services in one sandbox, or use engine='embedded' or "
        "engine='docker'",
        argument="network",
        asked=lambda spec: bool(spec.network.shared),
        said=True,
    ),
    "nproc": Promise("nproc tells the limit `cpu`"),
    "owner": Promise(
        "a sandbox ends when the process that owns it does",
        "cannot see this machine's processes; use lease= and sandbox.renew(), or engine='embedded'",
        argument="owner",
        asked=lambda spec: spec.owner > 0,
        verb="own",
    ),
    "pause": Promise(
        "`pause` stops everything in a sandbox until it is used again",
        "cannot pause sandboxes; terminate this one, or let it run",
        verb="pause",
    ),
    "pids": Promise("at most 512 processes and threads"),
    "pools": Promise(
        "`Pool` keeps sandboxes ready",
        "keeps no pools, its sandboxes need none; use engine='kubernetes'",
        verb="create_pool",
    ),
    "ports": Promise(
        "the ports that `ports` names can be reached on this machine until the sandbox's end",
        "opens no ports of this machine for as long as a sandbox lives; leave ports= out and use sandbox.forward(port)",
        argument="ports",
        asked=lambda spec: bool(spec.ports),
        verb="forward",
    ),
    "proc": Promise("/proc tells the signals that a process blocks and ignores"),
    "published": Promise(
        "an image is published under a name, and found by it in other processes",
        "keeps no names of images; keep the Image object, or its pickle",
        verb="published",
    ),
    "registry_login": Promise(
        "an image of a registry is fetched with the credentials of a secret",
        "fetches no image with the credentials of a secret; log in with `docker login`, or the cluster with a pull secret",
        said=True,
    ),
    "reset": Promise(
        "`reset` makes a sandbox as it was created, or as it was at a checkpoint",
        "cannot reset a sandbox; terminate it and create another one",
        verb="reset",
    ),
    "snapshot": Promise(
        "the files of a running sandbox become an image",
        "cannot take snapshots; build the files into an Image instead",
        verb="snapshot",
    ),
    "ended": Promise(
        "sandboxes that ended are listed for a day, with how they ended",
        "cannot list sandboxes that have ended; leave ended= out",
        verb="ended",
    ),
    "snapshot_on_end": Promise(
        "with `snapshot_on_end` the files of a sandbox that ends are published as an image",
        "keeps no files of sandboxes that end; leave snapshot_on_end= out, and call snapshot_filesystem() in time",
        argument="snapshot_on_end",
        asked=lambda spec: bool(spec.snapshot_on_end),
        said=True,
    ),
    "usage": Promise(
        "`usage` tells the CPU time, memory and processes of a sandbox, and what it wrote and sent",
        "cannot tell what a sandbox has used",
        verb="usage",
    ),
    "users": Promise("commands can run as any user of the image"),
    "volume_rename": Promise(
        "a volume can be given another name",
        "cannot rename a volume; copy its files to a new one",
        verb="rename_volume",
    ),
    "volume_sub_paths": Promise(
        "a part of a volume can be mounted, and nothing in it leads to the rest",
        "cannot mount a part of a volume; leave sub_path= out, or use one volume for each part",
        argument="volumes",
        asked=lambda spec: any(mount.volume and mount.sub_path for mount in spec.mounts),
        verb="make_volume",
    ),
    "volumes": Promise(
        "a volume that `volumes` names outlives its sandboxes, and what one of them writes the others see",
        "has no volumes; use engine='embedded', or copy files with sandbox.filesystem",
        argument="volumes",
        asked=lambda spec: any(mount.volume for mount in spec.mounts),
        verb="make_volume",
    ),
}
"""What `Engine.lacks` may name. A limit (`cpu`, `disk`, `memory`, `pids`) that an engine holds in a
weaker way is not refused: what it cannot hold at all, its `check` refuses."""


class IdTakenError(AlreadyExistsError):
    """An engine's answer to `create` if something has the id that the caller chose."""

    def __init__(self, id: str) -> None:
        super().__init__(f"the id {id!r} is taken, and by no sandbox of yours; choose another one")


class Created(NamedTuple):
    """A new sandbox, and a stream to its agent that is open already: its first."""

    id: str
    first: Stream


class Door(NamedTuple):
    """Where a sandbox's agent listens on this machine: `agent.sock` in a folder.

    A process that can write there could put another socket in its place, so the process `agent`
    must listen; 0: no other can write.
    """

    folder: Path
    agent: int = 0


MONTH = 30 * 86400.0
"""Seconds for which an image of a sandbox's files is kept if nothing else is said."""


FOREVER = 253402300799.0
"""The end of the year 9999, in seconds of the Unix clock: of an image that does not expire."""


class Engine(Protocol):
    """The verbs. They are safe from many threads and processes at once, and coroutines over the
    effects of `_dual`.

    Only the last three block: they keep house, and are called through `Blocking`. The verbs from
    `check` on have a default for an engine that inherits from this class; `lacks` tells which of
    them are not kept.
    """

    name: str
    """The name in `engine=`, `Status.engine` and error texts."""

    @property
    def keeps(self) -> frozenset[str]:
        """The promises that it keeps, of those which `PROMISES` wants to be said."""
        return frozenset()

    @property
    def lacks(self) -> frozenset[str]:
        """The promises that this engine does not keep, by their names in `PROMISES`; the contract suite skips their tests."""
        ...

    async def prepare(self, image: Recipe, report: Report) -> Root:
        """Make the image ready to run and return it. A hit costs about one stat. Idempotent, one
        build for many processes.

        Raises:
            ImageBuildError, RegistryError, DiskFullError: nothing half-made stays.
        """
        ...

    async def create(self, spec: SandboxSpec, root: Root) -> str | Created:
        """Start a sandbox that `check` has let pass. Return its id once its agent answers. On any
        error nothing is left behind.

        An engine object keeps nothing of one sandbox: `choose` makes a new one for each call.

        Raises:
            IdTakenError: something has the id, or a sandbox had it that ended lately. It is left
                alone.
            AlreadyExistsError: a running sandbox of the app has the name.
            EngineError: a control cannot be applied here; the text names it and the remedy.
        """
        ...

    async def connect(self, id: str) -> Stream:
        """Open a byte stream to the sandbox's agent; any number at once.

        Raises:
            ConnectionError: nothing listens (any more); `inspect` tells why.
        """
        ...

    async def inspect(self, id: str) -> Status:
        """Tell how the sandbox is, also for a while after its end.

        Raises:
            NotFoundError: there is none, or it ended long ago.
        """
        ...

    async def info(self, id: str) -> Info:
        """Tell what holds a running sandbox, read from the kernel (or whoever enforces it), not
        from what was asked for.

        Raises:
            ConnectionError: it has ended, or is just ending.
            NotFoundError: as `inspect`.
        """
        ...

    async def list(self) -> list[Status]:
        """Tell of the running sandboxes of this user, oldest first; boxes of builds are none."""
        ...

    async def stop(self, id: str) -> None:
        """End the sandbox and return when nothing of it is left. Idempotent, also for one that ended or never was."""
        ...

    async def wait(self, id: str, timeout: float | None = None) -> EndRecord:
        """Wait until the sandbox has ended and nothing of it is left.

        Raises:
            TimeoutError: it still runs after `timeout` seconds.
            NotFoundError: as `inspect`.
        """
        ...

    async def tag(self, id: str, tags: tuple[tuple[str, str], ...]) -> None:
        """Replace the tags of a running sandbox."""
        ...

    async def main_output(self, id: str, stream: int) -> bytes:
        """What is kept of a main command's stdout (1) or stderr (2) after its sandbox's end.

        That is the newest that nobody had read. `EndRecord.written` tells how many bytes there
        were, so that what is missing can be told.
        """
        ...

    # -------------------------------------------------------- with a default for those that lack it

    async def check(self, spec: SandboxSpec) -> None:
        """Refuse what this engine, or this machine, cannot do for such a sandbox. It is called
        before an image is built.

        What `lacks` names is refused without it. It costs a look or two, and what it lets pass may
        still fail.

        Raises:
            EngineError: a control cannot be applied here; the text names it and the remedy.
        """

    async def egress(self, id: str) -> Sequence[Egress]:
        """Tell what a sandbox with an allow list wanted to reach, oldest first, also for a while
        after its end.

        Raises:
            NotFoundError: as `inspect`.
            InvalidError: the sandbox has no allow list.
        """
        raise refusal(self, "network_allowlists")

    def journal(self, id: str) -> Path:
        """Tell the file of this machine where calls to the sandbox are noted; it may not be there
        yet, and goes a day after the last call."""
        raise refusal(self, "journal")

    async def door(self, id: str) -> Door | None:
        """Tell where the agent listens on this machine; None: `connect` goes another way."""
        return None

    async def forward(self, id: str, listeners: Mapping[int, socket.socket]) -> None:
        """Let listeners of this machine lead to ports of the sandbox until its end, and note that
        in its status.

        They are closed with the sandbox, also if whatever holds it is killed.

        Raises:
            EngineError: it cannot be done.
        """
        raise refusal(self, "ports")

    async def made(self, id: str) -> Made[Any]:
        """Tell what a running sandbox was made of: the spec without its secrets, and the image.

        Raises:
            ConnectionError: it has ended.
        """
        raise refusal(self, "fork")

    async def snapshot(self, id: str, expires: float, timeout: float | None = None) -> str:
        """Keep the sandbox's files as an image until it expires (on the Unix clock), and return the
        key of that image, which is `Snapshot(key)`. The box keeps running; the image is there after
        a power cut, too.

        Raises:
            TimeoutError, DiskFullError: there is no image.
            ConnectionError: the sandbox ended meanwhile; there is no image.
        """
        raise refusal(self, "snapshot")

    async def import_files(self, files: IO[bytes], title: str, expires: float) -> str:
        """Make an image of a tar file, with no settings, and return its key as `snapshot` does. It
        is durable, and kept until it expires; `title` says in a list what it is.

        Raises:
            DiskFullError, ImageError: there is no image.
        """
        raise refusal(self, "snapshot")

    async def checkpoint(self, id: str) -> Root:
        """As `snapshot`, but kept as long as the sandbox only, and not durable. The same again if
        nothing was written since the last one.

        Raises:
            DiskFullError, ConnectionError: as `snapshot`.
        """
        raise refusal(self, "checkpoint")

    async def reset(self, id: str, to: Root | None) -> int:
        """End all that runs in the sandbox, and start it as it was created, or on the files of one
        of its checkpoints; return its new generation. Id, tags, deadline and limits stay.

        Raises:
            InvalidError: the checkpoint is of another sandbox; nothing was done.
            NotFoundError: the checkpoint is not there any more; nothing was done.
            ConnectionError: the sandbox has ended.
            EngineError: it could not be started again, and has ended.
        """
        raise refusal(self, "reset")

    async def mount(self, id: str, path: str, root: Root) -> None:
        """Show an image's files in a folder of the sandbox, writable: what is written there is
        thrown away at the end. The folder is made if it is not there.

        Raises:
            NotFoundError: the image is not there any more.
            EngineError: it cannot be mounted there; nothing was done.
            ConnectionError: the sandbox has ended.
        """
        raise refusal(self, "mount_image")

    async def unmount(self, id: str, path: str) -> None:
        """Take away what `mount` has shown there.

        Raises:
            EngineError: there is nothing to take away.
            ConnectionError: the sandbox has ended.
        """
        raise refusal(self, "mount_image")

    async def publish(self, name: str, root: Root) -> str:
        """Give an image a name, by which any process finds it until the name is deleted; return its
        key, as `published` tells it. The image that had the name loses it."""
        raise refusal(self, "published")

    async def published(self) -> Mapping[str, str]:
        """The keys of published images by their names; each is the image `Snapshot(key)`."""
        raise refusal(self, "published")

    async def unpublish(self, name: str) -> bool:
        """Delete a name; whether it was there. The image stays until it is pruned."""
        raise refusal(self, "published")

    async def own(self, id: str, owner: int) -> None:
        """From now on the sandbox ends with that process of this machine; 0: with none.

        Raises:
            ConnectionError: it has ended.
        """
        raise refusal(self, "owner")

    async def set_timeout(self, id: str, seconds: float) -> None:
        """Let a running sandbox end so many seconds from now.

        Raises:
            ConnectionError: it has ended, or is just ending.
        """
        raise refusal(self, "deadline")

    async def pause(self, id: str) -> None:
        """Stop every process of the sandbox; its lifetime goes on. Idempotent.

        Raises:
            EngineError: a process does not stop in time; then all go on.
            ConnectionError: as `set_timeout`.
        """
        raise refusal(self, "pause")

    async def resume(self, id: str) -> None:
        """Let a paused sandbox go on. Idempotent, and cheap for one that is not paused: whoever
        sends something to a sandbox calls it then.

        Raises:
            ConnectionError: as `set_timeout`.
        """
        return

    async def set_network(self, id: str, network: Network) -> None:
        """Change what a running sandbox reaches; connections to what it may no longer reach end.

        Raises:
            UnsupportedError: the sandbox was not made for such a network.
            ConnectionError: as `set_timeout`.
        """
        raise refusal(self, "network_change")

    async def ended(self) -> Sequence[Status]:
        """Tell of this user's sandboxes that ended lately and whose end was noted here, the oldest
        end first; boxes of builds are none."""
        raise refusal(self, "ended")

    async def usage(self, id: str) -> Usage:
        """Tell what a running sandbox has used.

        Raises:
            ConnectionError: as `set_timeout`.
        """
        raise refusal(self, "usage")

    async def diff(self, id: str) -> Sequence[Change]:
        """Tell which files of a running sandbox differ from its image, sorted by path.

        Raises:
            ConnectionError: as `set_timeout`.
        """
        raise refusal(self, "diff")

    async def create_pool(self, name: str, root: Root, resources: Resources, size: int) -> None:
        """Keep so many sandboxes ready. `create` takes one of them where image and resources are
        the same.

        Raises:
            AlreadyExistsError: there is a pool of that name.
        """
        raise refusal(self, "pools")

    async def pools(self) -> Sequence[PoolStatus]:
        """Tell of every pool of this user."""
        raise refusal(self, "pools")

    async def delete_pool(self, name: str) -> None:
        """Delete a pool; sandboxes that came from it run on.

        Raises:
            NotFoundError: there is none of that name.
        """
        raise refusal(self, "pools")

    async def make_volume(self, name: str) -> None:
        """Make a volume, empty and root's; nothing, if there is one of that name."""
        raise refusal(self, "volumes")

    async def volumes(self) -> Sequence[VolumeInfo]:
        """Tell of every volume of this user, by name."""
        raise refusal(self, "volumes")

    async def delete_volume(self, name: str) -> None:
        """Delete a volume and all that is in it.

        Raises:
            NotFoundError: there is none of that name.
            VolumeInUseError: a sandbox has it mounted; nothing is changed.
        """
        raise refusal(self, "volumes")

    async def rename_volume(self, name: str, new: str) -> None:
        """Give a volume another name.

        Raises:
            NotFoundError, VolumeInUseError: as `delete_volume`.
            AlreadyExistsError: there is one of the new name.
        """
        raise refusal(self, "volume_rename")

    async def commit_volume(self, name: str) -> None:
        """Return when what was written to a volume survives a power cut, if this engine knows.

        Raises:
            NotFoundError: there is none of that name.
        """
        raise refusal(self, "volumes")

    def gc(self, *, check: bool = False) -> Sequence[str]:
        """Remove what crashes and power cuts left, and return what that was. `check`: only tell.

        Raises:
            EngineError: something could not be removed; all else is.
        """
        raise refusal(self, "gc")

    def images(self) -> Sequence[Built]:
        """The images that are built."""
        raise refusal(self, "images")

    def history(self, key: str) -> Sequence[BuiltStep]:
        """The steps of an image that is built, the last one first.

        Raises:
            NotFoundError: there is no image of that key.
        """
        raise refusal(self, "images")

    def prune(self, *, unused_for: float = 0.0, caches: bool = False) -> Pruned:
        """Remove images that were not used for so many seconds. What running sandboxes stand on stays."""
        raise refusal(self, "images")


async def check(engine: Engine, spec: SandboxSpec) -> None:
    """Refuse a sandbox that an engine cannot make, before its image is built.

    Raises:
        UnsupportedError: the engine lacks something that it needs.
        EngineError: as `Engine.check`.
    """
    if own := getattr(engine, "check", None):  # its sentence knows more than ours
        await own(spec)
    for name, promise in PROMISES.items():
        if promise.asked and promise.asked(spec):
            require(engine, name)


def require(engine: Engine, name: str) -> None:
    """Raise UnsupportedError if an engine lacks a promise."""
    if name in engine.lacks or _is_unheard_of(engine, name):
        raise refusal(engine, name)


def refusal(engine: Engine, name: str) -> Error:
    """The UnsupportedError that tells that an engine lacks a promise, and the remedy."""
    # Its type says less: basedpyright takes a method that raises a NotImplementedError for missing.
    return UnsupportedError(f"the {engine.name} engine {PROMISES[name].refusal}")


def lacking(engine: Engine) -> frozenset[str]:
    """The promises that an engine does not keep: those that it names, and those that it has never
    heard of."""
    return engine.lacks | {name for name in PROMISES if _is_unheard_of(engine, name)}


def _is_unheard_of(engine: Engine, name: str) -> bool:
    """Whether an engine says nothing of a promise: it may be older than the promise is."""
    promise = PROMISES[name]
    if promise.verb and not _has(engine, promise.verb):
        return True
    return promise.said and name not in getattr(engine, "keeps", ())


def _has(engine: Engine, verb: str) -> bool:
    found = getattr(engine, verb, None)
    return found is not None and getattr(found, "__func__", None) is not getattr(Engine, verb)
