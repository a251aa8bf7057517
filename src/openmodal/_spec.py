"""The records that travel between the layers: plain, immutable, without behaviour or I/O.

Built from the user's arguments at the top, read by the engines at the bottom; msgspec gives them a
canonical JSON form, which the state files and the keys of image steps are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import msgspec

from openmodal._hidden import NOTHING, Hidden
from openmodal._measured import BuiltStep as BuiltStep  # noqa: PLC0414
from openmodal._measured import Change as Change  # noqa: PLC0414
from openmodal._measured import Layer as Layer  # noqa: PLC0414
from openmodal._measured import Usage as Usage  # noqa: PLC0414

# ------------------------------------------------------------------------------------------- images


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """One step of an image's recipe."""


class Debian(Step, frozen=True, tag="debian"):
    """A small Debian with Python and pip; `python` is a version such as "3.11", "" for the default."""

    python: str = ""


class Registry(Step, frozen=True, tag="registry"):
    """An image of a registry: `name`, `name:tag`, `host/name:tag` or `…@sha256:…`."""

    reference: str
    login: Hidden = NOTHING  # what that registry is told (build/credentials.py)
    again: str = ""  # with another one, the registry is asked again


class Scratch(Step, frozen=True, tag="scratch"):
    """An empty root."""


class Snapshot(Step, frozen=True, tag="snapshot"):
    """Files that an engine keeps under this key. They cannot be made again."""

    key: str


class Dockerfile(Step, frozen=True, tag="dockerfile"):
    """The steps of a Dockerfile. `path` is the file, or "" when `lines` are given; `context` the
    folder that COPY reads. `bases` are images that stand for names in its FROM and `COPY --from`.
    `content` is the digest of text and files when they were looked at, "" before; `secrets` are
    variables of each RUN; with another `again`, all is done again."""

    path: str = ""
    lines: tuple[str, ...] = ()
    context: str = ""
    args: tuple[tuple[str, str], ...] = ()
    content: str = ""
    bases: tuple[tuple[str, Recipe], ...] = ()
    secrets: Hidden = NOTHING
    again: str = ""


class Run(Step, frozen=True, tag="run"):
    """A command run in the image, as root unless `user` says otherwise: its changes are a layer.

    `caches` are folders that are kept between builds, outside the layer; `secrets` beat `env`.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    workdir: str = ""
    caches: tuple[str, ...] = ()
    secrets: Hidden = NOTHING


class Copy(Step, frozen=True, tag="copy"):
    """A local file or folder put into the image. Its content is in the step's key, its path is not.

    `ignore` are .dockerignore patterns, relative to the folder that `source` is `below` in; "":
    `source` itself. `owner` is "uid:gid". `content` is as in `Dockerfile`. `keep`: files and
    folders keep their modes.
    """

    source: str
    target: str
    ignore: tuple[str, ...] = ()
    mode: int | None = None
    owner: str = "0:0"
    content: str = ""
    keep: bool = False
    below: str = ""


class Config(Step, frozen=True, tag="config"):
    """What commands run with. None leaves a value as it is."""

    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    user: str | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None


Origin = Debian | Registry | Scratch | Snapshot
"""What an image begins with (build/origin.py), unless it is a Dockerfile."""

AnyStep = Origin | Dockerfile | Run | Copy | Config


class Recipe(msgspec.Struct, frozen=True):
    """How an image is made, from the first step to the last."""

    steps: tuple[AnyStep, ...]


class Root(msgspec.Struct, frozen=True):
    """An image ready to run, `Layered` or `Referenced`: its key, and what commands run with."""

    key: str
    env: tuple[tuple[str, str], ...] = ()
    workdir: str = ""
    user: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()  # that lines of a Dockerfile are given to, () for the usual one
    onbuild: tuple[str, ...] = ()  # what a Dockerfile that begins with it would have to do first


class Layered(Root, frozen=True):
    """An image of our own store: the keys of its layers, topmost first; none: nothing yet."""

    layers: tuple[str, ...] = ()


class Referenced(Root, frozen=True, kw_only=True):
    """An image that a daemon or a registry keeps: what it is called there."""

    reference: str


T = TypeVar("T")


class Progress(msgspec.Struct, frozen=True):
    """News of a build: a step begins, prints, ends, or waits for another build that makes it.

    `event` is "start", "output", "remark" (something that the user should know), "waiting", "done"
    or "cached"; `step` counts from 1; `text` is the step's title, what it printed, or the remark.
    """

    event: Literal["start", "output", "remark", "waiting", "done", "cached"]
    step: int
    steps: int
    text: str


Report = Callable[[Progress], None]


# ---------------------------------------------------------------------------------------- sandboxes


class Resources(msgspec.Struct, frozen=True):
    """Limits; None: the engine's default. And how many GPUs it has; `gpu_type` "": of any type.

    `cpu` is in cores, `memory` and `disk` in MiB, `pids` in processes and threads.
    """

    cpu: float | None = None
    memory: int | None = None
    disk: int | None = None
    pids: int | None = None
    gpus: int = 0
    gpu_type: str = ""


class Network(msgspec.Struct, frozen=True):
    """`block`: loopback only; else the internet, but no private network, machine or sandbox here;
    or only what is on one of the lists, in canonical form. Sandboxes of one `shared` network reach
    each other, too: this one by its `aliases`.
    """

    block: bool = False
    cidrs: tuple[str, ...] | None = None
    domains: tuple[str, ...] | None = None
    shared: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def listed(self) -> bool:
        """Whether there is an allow list."""
        return self.cidrs is not None or self.domains is not None


class Egress(msgspec.Struct, frozen=True):
    """Something that a sandbox with an allow list wanted to reach, and what became of it.

    `time` is of the Unix clock, in seconds; `kind` "dns", "tls", "http", "tcp", or "gate" for a
    gate's end; `asked` the name that it gave, "" for none; `address` the IP address and port that
    it called, "" for a question about a name. `reason` tells why it was `allowed` or not.
    """

    time: float
    kind: str
    asked: str
    address: str
    allowed: bool
    reason: str


class Mount(msgspec.Struct, frozen=True):
    """A folder that a sandbox sees at `target`: of a volume, or `host`, one of this machine.

    `sub_path`: what is shown of it, "" for all. `owner` is "root" where a folder of this machine's
    root may be written to. `create`: the volume is made, if there is none.
    """

    target: str
    volume: str = ""
    host: str = ""
    sub_path: str = ""
    read_only: bool = False
    owner: str = ""
    create: bool = False


class VolumeInfo(msgspec.Struct, frozen=True):
    """A volume, made at that time (seconds of the Unix clock)."""

    name: str
    created: float


class Readiness(msgspec.Struct, frozen=True):
    """When a sandbox is ready: something listens on `port`; with 0, the command `argv` succeeds."""

    port: int = 0
    argv: tuple[str, ...] = ()
    interval_ms: int = 100


class SandboxSpec(msgspec.Struct, frozen=True):
    """A sandbox as asked for. Times in seconds; `idle_timeout` and `lease` None: never; `owner` a
    process, 0: none; `id` "": the engine makes one."""

    app: str
    argv: tuple[str, ...] = ()
    name: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    timeout: float = 300.0
    idle_timeout: float | None = None
    workdir: str = ""
    resources: Resources = Resources()
    network: Network = Network()
    runtime: str = "native"  # or "gvisor"
    run: str = ""  # the `openmodal run` that it belongs to, "" for none
    allow_degraded: tuple[str, ...] = ()  # controls that it may lack
    mounts: tuple[Mount, ...] = ()  # none of them at the target of another
    hidden: bool = False  # it is in nobody's list
    secrets: tuple[str, ...] = ()  # the names in `env` whose values are secrets: no file has them
    id: str = ""
    owner: int = 0
    lease: float | None = None
    ports: tuple[int, ...] = ()  # that this machine is to reach
    readiness: Readiness | None = None
    on_idle: str = "end"  # or "pause"
    snapshot_on_end: str = ""  # the name of the image of its files at its end, "": none is made


class ExecSpec(msgspec.Struct, frozen=True):
    """A command as asked for. `timeout` in seconds; `output`: how many bytes from the beginning and
    the end of each stream are given, None: all. `keep`: how many bytes of each may wait on the
    sandbox's disk, 0: the agent's default."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    workdir: str = ""
    timeout: float | None = None
    flags: int = 0
    rows: int = 24
    columns: int = 80
    output: tuple[int, int] | None = None
    keep: int = 0


class OutputGap(msgspec.Struct, frozen=True):
    """Behind the first `at` bytes that a command wrote to a stream, `size` bytes are missing."""

    at: int
    size: int


class ExitRecord(msgspec.Struct, frozen=True):
    """How a command ended, as the kernel told it. Times in seconds, `memory` (its peak) in KiB."""

    signaled: bool
    code: int
    timed_out: bool
    out_of_memory: bool
    started: float
    ended: float
    cpu: float
    memory: int

    @property
    def returncode(self) -> int:
        """The shell's convention: the exit code, or 128 + the signal's number."""
        return 128 + self.code if self.signaled else self.code


class CommandStatus(msgspec.Struct, frozen=True):
    """A command of a sandbox. `argv`: its first KiB, and `cut`, if there is more.

    `id` is for `Sandbox.process`; `started` in seconds of the Unix clock; `record` is None while it
    runs.
    """

    id: str
    argv: tuple[str, ...]
    cut: bool
    pid: int
    started: float
    user: str
    record: ExitRecord | None = None

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return self.record.returncode if self.record else None


class EndRecord(msgspec.Struct, frozen=True):
    """How a sandbox ended.

    Attributes:
        reason, text: why: a word such as "timeout" or "oom", and a sentence.
        returncode: as `Sandbox.poll` gives it.
        ended: seconds of the Unix clock.
        written: the bytes, if known, of its main command's two streams.
        snapshot: the key of the image of its files, if it had `snapshot_on_end`.
        unkept: why there is no such image.
    """

    reason: str
    returncode: int
    ended: float = 0.0
    text: str = ""
    written: tuple[int, int] = (0, 0)
    snapshot: str = ""
    unkept: str = ""


class PoolStatus(msgspec.Struct, frozen=True):
    """Sandboxes kept ready: so many are wanted, so many are ready now."""

    name: str
    image: str
    size: int
    ready: int


class Status(msgspec.Struct, frozen=True):
    """A sandbox as it is.

    Attributes:
        created, expires: seconds of the Unix clock.
        ended: how it ended; None while it runs.
        build: it runs a step of an image, or looks into a volume; it is in nobody's list.
        asked: digests of what it was asked for, by name, if its maker chose its id.
        paused: nothing in it runs until somebody uses it.
        tunnels: its ports that this machine reaches, each with the port of 127.0.0.1 for it.
        snapshot_on_end: the name under which its files are published at its end.
    """

    id: str
    app: str
    name: str
    tags: tuple[tuple[str, str], ...]
    created: float
    expires: float
    image: str
    engine: str
    run: str = ""
    runtime: str = "native"
    ended: EndRecord | None = None
    build: bool = False
    lease: float | None = None
    asked: tuple[tuple[str, str], ...] = ()
    paused: bool = False
    tunnels: tuple[tuple[int, int], ...] = ()
    readiness: Readiness | None = None
    snapshot_on_end: str = ""


class Made(msgspec.Struct, Generic[T], frozen=True):
    """What a sandbox was made of, as it is remembered while it runs: without its secrets."""

    spec: SandboxSpec
    root: T


class Built(msgspec.Struct, frozen=True):
    """An image that is there: `size` in bytes, with all its layers; `used` last, in seconds of the
    Unix clock; `step` made its top.

    `expires`: it is a snapshot, which is kept until then; 0: it is not. `names`: under which it is
    published, and so kept. `stack`: its layers, topmost first, where the engine can tell.
    """

    key: str
    size: int
    layers: int
    used: float
    step: str
    expires: float = 0.0
    names: tuple[str, ...] = ()
    stack: tuple[Layer, ...] = ()


class Info(msgspec.Struct, frozen=True):
    """What holds a running sandbox, as the kernel tells it and not as it was asked for.

    Attributes:
        root, ids: the id outside that the sandbox's root has, and how many ids it has.
        memory, disk: limits in MiB; None where none holds.
        cpu, pids: limits in cores, and in processes and threads; None where none holds.
        degraded: the controls that it lacks.
        generation: grows with each reset, and where its files are frozen in place, with that.
    """

    runtime: str
    root: int
    ids: int
    capabilities: tuple[str, ...]
    no_new_privileges: bool
    seccomp: bool
    memory: int | None
    cpu: float | None
    pids: int | None
    disk: int | None
    network: Literal["none", "neighbours", "outbound"]
    degraded: tuple[str, ...]
    generation: int = 0
