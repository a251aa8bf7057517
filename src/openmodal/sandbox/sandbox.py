"""The sandbox itself: made, found, looked at, ended."""

from __future__ import annotations

import builtins
import posixpath
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from openmodal import _args, _config, _keywords, _wire
from openmodal._command import Command
from openmodal._dual import Sleep, dual
from openmodal._link import Stream
from openmodal._options import environment, secret_names
from openmodal._sources import Main
from openmodal._spec import Egress, Info, Resources, Root, SandboxSpec, Status
from openmodal.app import App, checked_app
from openmodal.engines import Created, Engine, choose, require
from openmodal.engines.asked import differences
from openmodal.engines.contract import IdTakenError, check
from openmodal.errors import AlreadyExistsError, NotFoundError
from openmodal.image import Image, checked_image, main_command, ready
from openmodal.probe import Probe
from openmodal.process import StreamReader, StreamWriter
from openmodal.sandbox.handle import Handle, ended
from openmodal.sandbox.leases import Leases
from openmodal.sandbox.live import Live
from openmodal.sandbox.logs import Logs
from openmodal.sandbox.mounts import make_missing, mounts
from openmodal.sandbox.ports import Ports
from openmodal.sandbox.readiness import Ready, asked
from openmodal.sandbox.shells import Shells
from openmodal.sandbox.state import State
from openmodal.sandbox.timeline import Timeline
from openmodal.secret import Secret

if TYPE_CHECKING:
    from openmodal.filesystem import Filesystem
    from openmodal.volume import HostDirectory, Volume

DEFAULT_TIMEOUT = 300.0
_LOOK_SECONDS = 0.2


class Sandbox(Ready, Shells, Leases, Live, Logs, Ports, State, Timeline):
    """An isolated container that you run commands in, like SSH into a fresh machine.

    Every method has two faces: `sandbox.exec(...)` blocks, `await sandbox.exec.aio(...)` does not. A sandbox lives until its
    timeout, also when the process that made it ends; `terminate()`, or the end of a `with` block, ends it earlier. The object itself holds
    nothing but the id and some connections, and may be used from many threads, after a fork and, pickled, in other processes.
    """

    def __init__(self, id: str, engine: Engine, first: Stream | None = None) -> None:
        super().__init__(id, engine, first)
        self._meet_main()

    def _meet_main(self) -> None:
        self._main = Command(self._agent, _wire.MAIN)
        self._stdin = StreamWriter(self._main)
        self._streams: dict[int, StreamReader[str]] = {}

    def _renew(self) -> None:
        super()._renew()
        self._meet_main()

    # ------------------------------------------------------------------------------------------ make and find

    @dual
    @classmethod
    async def create(
        cls,
        /,
        *args: str,
        app: App | None = None,
        id: str | None = None,
        image: Image | None = None,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Iterable[Secret] = (),
        timeout: float = DEFAULT_TIMEOUT,
        idle_timeout: float | None = None,
        on_idle: str = "end",
        lease: float | None = None,
        owner: int | str | None = None,
        workdir: str | None = None,
        cpu: float | None = None,
        memory: int | None = None,
        disk: int | None = None,
        allow_degraded: Sequence[str] | None = None,
        block_network: bool = False,
        network: str | None = None,
        network_alias: str | Sequence[str] = (),
        engine: str | Engine | None = None,
        gpu: int | str | None = None,
        outbound_cidr_allowlist: Sequence[str] | None = None,
        outbound_domain_allowlist: Sequence[str] | None = None,
        volumes: Mapping[str, Volume | HostDirectory] | None = None,
        ports: Sequence[int] | Mapping[int, int] = (),
        encrypted_ports: Sequence[int] = (),
        unencrypted_ports: Sequence[int] = (),
        h2_ports: Sequence[int] = (),
        readiness_probe: Probe | None = None,
        snapshot_on_end: str | None = None,
        runtime: str | None = None,
        **unknown: object,
    ) -> Sandbox:
        """Create a sandbox and return when commands can run in it.

        Args:
            args: its main command; the sandbox ends when that ends. None: what `Image.cmd` set, else it stays until its timeout.
            app: what it belongs to; its id begins with the app's name.
            id: its id, which you choose: at most 40 lower-case letters, digits, and hyphens between
                them. The same call again, by any process, returns the same sandbox.
            image: its file system; None: `Image.debian_slim()`. The first use of an image builds it.
            name: a name, unique among the running sandboxes of the app, for `from_name`.
            tags: labels for `list`.
            env, secrets: variables of every command; `env` beats `secrets`, both beat the image's.
            timeout: its lifetime in seconds.
            idle_timeout: seconds without a command, request or file transfer after which it ends. Its main command does not count;
                reading its output, or writing to it, does.
            on_idle: "end" it then, or "pause" it until it is used again; its timeout ends it anyway.
            lease: seconds without a call to it after which it ends, whatever runs in it. A call
                that waits for something renews it all the time, and `renew` does nothing else.
            owner: at the end of this process it ends: "process" for this one, or a process id.
            workdir: where commands start, from the image's on if it is relative; None: the image's, or "/".
            cpu, memory, disk: limits: cores, MiB, MiB. None: the engine's defaults.
            gpu: how many GPUs it has, or their type and number: "T4", "A100:2", "any" (docs/kubernetes.md).
            allow_degraded: controls that it may lack if they cannot be applied: "limits", "network", "seccomp"; None: as configured.
            block_network: no network but loopback and `network`.
            network: a name; sandboxes that have the same one reach each other (docs/network.md).
            network_alias: by which name, or names, the others find it; beside its host name.
            outbound_cidr_allowlist: IP networks; only these, and what the other list allows, are reached, over TCP.
            outbound_domain_allowlist: host names, "*.example.com" for all below one; only these, and what the other list allows, are
                reached, over HTTPS and HTTP on ports 443 and 80. See docs/network.md.
            volumes: volumes and folders of this machine, by their paths in it (docs/volumes.md).
            engine: "local", "embedded", "docker", "kubernetes", or an Engine; None: as configured.
            ports: ports in it that this machine reaches until its end; `tunnels` tells where. A
                dict says by which of this machine's ports each is; 0: any that is free.
            encrypted_ports, unencrypted_ports, h2_ports: the same, over plain TCP.
            readiness_probe: how `wait_until_ready` finds out that it is ready.
            snapshot_on_end: publish its files under this name, as `Image.publish` does, when it
                ends: by itself, by its timeouts or by `terminate`. See docs/state.md.
            runtime: "native" (None), this machine's kernel, or "gvisor", one of its own.

        Raises:
            InvalidError: an argument is wrong; nothing was created.
            UnsupportedError: the engine cannot do that yet.
            ImageError: the image cannot be built.
            AlreadyExistsError: the name is taken; or the id, by an ended or another sandbox.
            NotFoundError: there is no such volume.
            EngineError: the engine cannot work on this machine, or cannot apply a control that is not in `allow_degraded`.
            In every case nothing is left behind.
        """
        _keywords.unknown("Sandbox.create", unknown, cls.create.core.__kwdefaults__ or ())
        app, secrets = checked_app(app), secrets if isinstance(secrets, Secret) else [*secrets]
        image = checked_image(image)
        (gpus, gpu_type), local = _args.gpu(gpu), _args.local_ports(ports)
        lists = (outbound_cidr_allowlist, outbound_domain_allowlist)
        chosen = choose(engine)
        spec = SandboxSpec(
            app=app.name,
            argv=_args.argv("Sandbox.create", args) if args else (),
            name=_args.name("name", name) if name is not None else "",
            tags=_args.tags(tags),
            env=environment(env, secrets),
            secrets=secret_names(env, secrets),
            timeout=_args.seconds("timeout", timeout),
            idle_timeout=_args.optional_seconds("idle_timeout", idle_timeout),
            id=_args.sandbox_id(id),
            lease=_args.optional_seconds("lease", lease),
            owner=_args.owner(owner),
            workdir=_args.path("workdir", workdir) if workdir is not None else "",
            resources=Resources(
                cpu=_args.cores(cpu),
                memory=_args.mebibytes("memory", memory, 16),
                disk=_args.mebibytes("disk", disk, 16),
                gpus=gpus,
                gpu_type=gpu_type,
            ),
            network=_args.network(block_network, *lists, network, network_alias),
            runtime=_args.runtime(runtime),
            run=app.run_id or _config.run(),
            allow_degraded=_args.controls(_config.allow_degraded() if allow_degraded is None else allow_degraded),
            mounts=mounts(volumes, chosen),
            ports=_args.ports(
                ports=ports, encrypted_ports=encrypted_ports, unencrypted_ports=unencrypted_ports, h2_ports=h2_ports
            ),
            readiness=asked(readiness_probe),
            on_idle=_args.on_idle(on_idle, idle_timeout, lease),
            snapshot_on_end="" if snapshot_on_end is None else _args.name("snapshot_on_end", snapshot_on_end),
        )
        _args.command_size("Sandbox.create", spec.argv, spec.env)
        await check(chosen, spec)
        root = await ready(image, chosen)
        await make_missing(spec.mounts, chosen)
        return await cls._started(over_image(spec, root, main_command(image)), root, chosen, local)

    @classmethod
    async def _started(cls, spec: SandboxSpec, root: Root, engine: Engine, local: dict[int, int]) -> Sandbox:
        """Start a sandbox, or find the one that an earlier call with the same id has started."""
        at = time.time()
        try:
            made = await engine.create(spec, root)
        except IdTakenError as taken:
            return await cls._made_before(spec, root, engine, taken)
        sandbox = cls(made.id, engine, made.first) if isinstance(made, Created) else cls(made, engine)
        sandbox._note_creation(at, spec)
        await sandbox._open_tunnels({**dict.fromkeys(spec.ports, 0), **local})
        return sandbox

    @classmethod
    async def _made_before(cls, spec: SandboxSpec, root: Root, engine: Engine, taken: IdTakenError) -> Sandbox:
        """The sandbox that another call with the same id has made, or is just making.

        Raises:
            AlreadyExistsError: it is no such sandbox.
        """
        try:
            while not (status := await engine.inspect(spec.id)).created:
                await Sleep(_LOOK_SECONDS)
        except NotFoundError:
            raise taken from None
        if status.ended:
            raise AlreadyExistsError(
                f"sandbox {spec.id} has ended: {status.ended.text}; an id is used once, choose another one"
            ) from taken
        if different := differences(status, spec, root):
            raise AlreadyExistsError(
                f"sandbox {spec.id} runs, and was asked for with another {', '.join(different)}; choose another id"
            ) from taken
        sandbox = cls._seen(status, engine)
        await sandbox._ping()
        return sandbox

    @dual
    @classmethod
    async def from_id(cls, id: str, *, engine: str | Engine | None = None) -> Sandbox:
        """Return the sandbox of that id, from any process, on the `engine` that `create` was given.

        Raises:
            NotFoundError: there is none, and none of that id ended lately.
        """
        sandbox = cls(_args.string("id", id), choose(engine))
        await sandbox._look()
        return sandbox

    @dual
    @classmethod
    async def from_name(cls, app_name: str, name: str, *, engine: str | Engine | None = None) -> Sandbox:
        """Return the running sandbox of that `name` in the app `app_name`, from any process.

        Raises:
            NotFoundError: no running sandbox of the app has the name.
        """
        chosen = choose(engine)
        wanted = (_args.name("app_name", app_name), _args.name("name", name))
        for status in await chosen.list():
            if (status.app, status.name) == wanted:
                return cls._seen(status, chosen)
        raise NotFoundError(
            f"no sandbox {name!r} of app {app_name!r} is running; `openmodal sandbox list` shows which are"
        )

    @dual
    @classmethod
    async def list(
        cls,
        *,
        app: App | str | None = None,
        tags: Mapping[str, str] | None = None,
        ended: bool = False,
        engine: str | Engine | None = None,
    ) -> list[Sandbox]:
        """Return the running sandboxes, oldest first: of an app, and with all of these tags.

        Each has its `last_status`, so that nobody has to ask for them one by one.

        Args:
            app, tags: which ones.
            ended: those that ended lately instead, the oldest end first: some thousands, for a day.
            engine: as in `create`.

        Raises:
            UnsupportedError: the engine cannot list those that ended.
        """
        chosen = choose(engine)
        if ended:
            require(chosen, "ended")
        name = app.name if isinstance(app, App) else app
        wanted = set(_args.tags(tags))
        return [
            cls._seen(status, chosen)
            for status in await (chosen.ended() if ended else chosen.list())
            if (name is None or status.app == name) and wanted <= set(status.tags)
        ]

    @classmethod
    def _seen(cls, status: Status, engine: Engine) -> Sandbox:
        sandbox = cls(status.id, engine)
        sandbox._status = status
        return sandbox

    # ------------------------------------------------------------------------------------------------- about it

    object_id = Handle.id

    @property
    def returncode(self) -> int | None:
        """How it ended, if that is known already (see `poll`): 124 timeout, 137 terminated, else its main command's."""
        return self._end.returncode if self._end else None

    @property
    def last_status(self) -> Status | None:
        """Its status as `list`, `status` or `poll` saw it last; None: none of them did."""
        return self._status

    @dual
    async def status(self) -> Status:
        """Tell how it is: app, name, tags, times, image, and how it ended."""
        return await self._look()

    @dual
    async def info(self) -> Info:
        """Tell what holds it, as the kernel says: ids, capabilities, filter, limits, network, and what it lacks.

        Raises:
            SandboxNotRunningError, UnsupportedError: it has ended; the engine cannot tell.
        """
        require(self._engine, "info")
        try:
            return await self._engine.info(self._id)
        except (ConnectionError, NotFoundError) as error:
            await self._why(error)
            raise

    @dual
    async def get_tags(self) -> dict[str, str]:
        """Return its tags."""
        return dict((await self._look()).tags)

    @dual
    async def set_tags(self, tags: Mapping[str, str]) -> None:
        """Replace its tags.

        Raises:
            SandboxNotRunningError: it has ended.
        """
        checked = _args.tags(tags)
        status = await self._look()
        if status.ended:
            raise ended(self._id, status.ended)
        await self._engine.tag(self._id, checked)

    @dual
    async def reload_volumes(self) -> None:
        """See in it what others have committed to its volumes; our engines show that at once.

        Raises:
            SandboxNotRunningError: it has ended.
        """
        status = await self._look()
        if status.ended:
            raise ended(self._id, status.ended)

    @dual
    async def egress_log(self) -> builtins.list[Egress]:
        """Return what it wanted to reach and what became of it, oldest first: with an allow list only, the newest 1,000 at least.

        Works while it runs, and for a day after its end.

        Raises:
            InvalidError: it has no allow list.
        """
        require(self._engine, "network_allowlists")
        return [*await self._engine.egress(self._id)]

    @property
    def filesystem(self) -> Filesystem:
        """Its files."""
        from openmodal.filesystem import Filesystem

        return Filesystem(self._agent)

    @property
    def stdin(self) -> StreamWriter:
        """Stdin of its main command."""
        return self._stdin

    @property
    def stdout(self) -> StreamReader[str]:
        """Stdout of its main command; what is kept of it can be read after the sandbox's end, too."""
        return self._stream(1)

    @property
    def stderr(self) -> StreamReader[str]:
        """Stderr of its main command."""
        return self._stream(2)

    # ------------------------------------------------------------------------------------------------ its end

    @dual
    async def poll(self) -> int | None:
        """Return how it ended, or None while it runs: 124 timeout, 137 terminated, else its main command's."""
        if not self._end:
            await self._look()
        return self.returncode

    @dual
    async def terminate(self) -> None:
        """End it, and return when no process, file or interface of it is left. Does nothing if it has ended."""
        await self._close()

    async def _close(self) -> None:
        self._agent.close()
        with self._journal.call("terminate"):
            await self._engine.stop(self._id)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied it is the same sandbox; connections, and how far its main command's streams were read, stay here."""
        return type(self), (self._id, self._engine), {"_end": self._end, "_status": self._status}

    def _stream(self, number: int) -> StreamReader[str]:
        if number not in self._streams:
            self._streams[number] = StreamReader(Main(self._main, number, self._kept), text=True)
        return self._streams[number]

    async def _kept(self, stream: int) -> tuple[bytes, int]:
        """What is kept of the main command's output after the end, and how many bytes it wrote."""
        kept = await self._engine.main_output(self._id, stream)
        return kept, self._end.written[stream - 1] if self._end else 0

    def __repr__(self) -> str:
        return f"<Sandbox {self._id} ({self._engine.name})>"


def over_image(spec: SandboxSpec, root: Root, command: tuple[str, ...] | None) -> SandboxSpec:
    """The spec, with what the image says where the caller said nothing."""
    from msgspec.structs import replace

    command = spec.argv or command
    return replace(
        spec,
        env=tuple({**dict(root.env), **dict(spec.env)}.items()),
        workdir=posixpath.join(root.workdir or "/", spec.workdir) if spec.workdir else root.workdir,
        argv=(*root.entrypoint, *command) if command is not None else (),
    )
