"""Sandbox: an isolated container to run commands in."""

from __future__ import annotations

import builtins
import functools
import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from openmodal import _args, _config, _wire, connection
from openmodal._agent import Agent
from openmodal._command import Command, Spool
from openmodal._dual import DualContext, dual
from openmodal._link import Stream
from openmodal._options import (
    ExecCall,
    ExecOptions,
    ProcessCall,
    SpawnCall,
    SpawnOptions,
    environment,
    exec_spec,
    feed,
    why_missing,
)
from openmodal._sources import Kept, Live, Main
from openmodal._spec import Egress, EndRecord, Info, Resources, Root, SandboxSpec, Status
from openmodal._wire import Flag, Want
from openmodal.app import App
from openmodal.build.progress import terminal_report
from openmodal.connection import Connection
from openmodal.engines import Created, Engine, choose, require
from openmodal.engines.contract import check
from openmodal.errors import (
    InvalidError,
    NotFoundError,
    SandboxNotRunningError,
    SandboxTerminatedError,
    SandboxTimeoutError,
    UnsupportedError,
)
from openmodal.image import Image, main_command, ready
from openmodal.process import Process, StreamReader, StreamWriter, timed_out
from openmodal.secret import Secret

if TYPE_CHECKING:
    from openmodal.filesystem import Filesystem

DEFAULT_TIMEOUT = 300.0


class Sandbox(DualContext):
    """An isolated container that you run commands in, like SSH into a fresh machine.

    Every method has two faces: `sandbox.exec(...)` blocks, `await sandbox.exec.aio(...)` does not. A sandbox lives until its
    timeout, also when the process that made it ends; `terminate()`, or the end of a `with` block, ends it earlier. The object itself holds
    nothing but the id and some connections, and may be used from many threads, after a fork and, pickled, in other processes.
    """

    def __init__(self, id: str, engine: Engine, first: Stream | None = None) -> None:
        self._id = id
        self._engine = engine
        self._agent = Agent(functools.partial(engine.connect, id), self._why, first)
        self._main = Command(self._agent, _wire.MAIN)
        self._stdin = StreamWriter(self._main)
        self._streams: dict[int, StreamReader[str]] = {}
        self._status: Status | None = None
        self._end: EndRecord | None = None

    # ------------------------------------------------------------------------------------------ make and find

    @dual
    @classmethod
    async def create(
        cls,
        /,
        *args: str,
        app: App | None = None,
        image: Image | None = None,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Iterable[Secret] = (),
        timeout: float = DEFAULT_TIMEOUT,
        idle_timeout: float | None = None,
        workdir: str | None = None,
        cpu: float | None = None,
        memory: int | None = None,
        disk: int | None = None,
        allow_degraded: Sequence[str] | None = None,
        block_network: bool = False,
        engine: str | Engine | None = None,
        gpu: int | str | None = None,
        outbound_cidr_allowlist: Sequence[str] | None = None,
        outbound_domain_allowlist: Sequence[str] | None = None,
        volumes: Mapping[str, object] | None = None,
        ports: Sequence[int] = (),
        readiness_probe: object = None,
        runtime: str | None = None,
        **unknown: object,
    ) -> Sandbox:
        """Create a sandbox and return when commands can run in it.

        Args:
            args: its main command; the sandbox ends when that ends. None: what `Image.cmd` set, else it stays until its timeout.
            app: what it belongs to; its id begins with the app's name.
            image: its file system; None: `Image.debian_slim()`. The first use of an image builds it.
            name: a name, unique among the running sandboxes of the app, for `from_name`.
            tags: labels for `list`.
            env, secrets: variables of every command; `env` beats `secrets`, both beat the image's.
            timeout: its lifetime in seconds.
            idle_timeout: seconds without a command, request or file transfer after which it ends. Its main command does not count;
                reading its output, or writing to it, does.
            workdir: where commands start, from the image's on if it is relative; None: the image's, or "/".
            cpu, memory, disk: limits: cores, MiB, MiB. None: the engine's defaults.
            gpu: how many GPUs it has, or their type and number: "T4", "A100:2", "any" (docs/kubernetes.md).
            allow_degraded: controls that it may lack if they cannot be applied: "limits", "network", "seccomp"; None: as configured.
            block_network: no network but loopback.
            outbound_cidr_allowlist: IP networks; only these, and what the other list allows, are reached, over TCP.
            outbound_domain_allowlist: host names, "*.example.com" for all below one; only these, and what the other list allows, are
                reached, over HTTPS and HTTP on ports 443 and 80. See docs/network.md.
            engine: "local", "embedded", "docker", "kubernetes", or an Engine; None: as configured.
            runtime: what runs its processes: "native", the machine's kernel, or "gvisor", a kernel of its own (docs/sandboxes.md).
                None: "native".

        Raises:
            InvalidError: an argument is wrong; nothing was created.
            UnsupportedError: the engine cannot do that yet.
            ImageError: the image cannot be built.
            AlreadyExistsError: the name is taken.
            EngineError: the engine cannot work on this machine, or cannot apply a control that is not in `allow_degraded`.
            In every case nothing is left behind.
        """
        _args.unknown("Sandbox.create", unknown, cls.create.core.__kwdefaults__ or ())
        _refuse_unsupported(
            volumes=volumes,
            ports=ports,
            readiness_probe=readiness_probe,
        )
        app = _checked_app(app)
        image = _checked_image(image)
        gpus, gpu_type = _args.gpu(gpu)
        spec = SandboxSpec(
            app=app.name,
            argv=_args.argv("Sandbox.create", args) if args else (),
            name=_args.name("name", name) if name is not None else "",
            tags=_args.tags(tags),
            env=environment(env, secrets),
            timeout=_args.seconds("timeout", timeout),
            idle_timeout=_args.optional_seconds("idle_timeout", idle_timeout),
            workdir=_args.path("workdir", workdir) if workdir is not None else "",
            resources=Resources(
                cpu=_args.cores(cpu),
                memory=_args.mebibytes("memory", memory, 16),
                disk=_args.mebibytes("disk", disk, 16),
                gpus=gpus,
                gpu_type=gpu_type,
            ),
            network=_args.network(block_network, outbound_cidr_allowlist, outbound_domain_allowlist),
            runtime=_args.runtime(runtime),
            run=app.run_id or _config.run(),
            allow_degraded=_args.controls(_config.allow_degraded() if allow_degraded is None else allow_degraded),
        )
        _args.command_size("Sandbox.create", spec.argv, spec.env)
        chosen = choose(engine)
        await check(chosen, spec)
        with terminal_report() as report:
            root = await ready(image, chosen, report)
        made = await chosen.create(_over_image(spec, root, main_command(image)), root)
        return cls(made.id, chosen, made.first) if isinstance(made, Created) else cls(made, chosen)

    @dual
    @classmethod
    async def from_id(cls, id: str, *, engine: str | Engine | None = None) -> Sandbox:
        """Return the sandbox of that id, from any process.

        Raises:
            NotFoundError: there is none, and none of that id ended lately.
        """
        sandbox = cls(_args.string("id", id), choose(engine))
        await sandbox._look()
        return sandbox

    @dual
    @classmethod
    async def from_name(cls, app_name: str, name: str, *, engine: str | Engine | None = None) -> Sandbox:
        """Return the running sandbox of that name.

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
        cls, *, app: App | str | None = None, tags: Mapping[str, str] | None = None, engine: str | Engine | None = None
    ) -> list[Sandbox]:
        """Return the running sandboxes, oldest first: of an app, and with all of these tags.

        Each has its `last_status`, so that nobody has to ask for them one by one.
        """
        chosen = choose(engine)
        name = app.name if isinstance(app, App) else app
        wanted = set(_args.tags(tags))
        return [
            cls._seen(status, chosen)
            for status in await chosen.list()
            if (name is None or status.app == name) and wanted <= set(status.tags)
        ]

    @classmethod
    def _seen(cls, status: Status, engine: Engine) -> Sandbox:
        sandbox = cls(status.id, engine)
        sandbox._status = status
        return sandbox

    # ------------------------------------------------------------------------------------------------- about it

    @property
    def id(self) -> str:
        """`<app name>-<8 hexadecimal digits>`."""
        return self._id

    object_id = id

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
            raise _ended(self._id, status.ended)
        await self._engine.tag(self._id, checked)

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
        """Return how it ended, or None while it runs."""
        if not self._end:
            await self._look()
        return self.returncode

    @dual
    async def wait(self, raise_on_termination: bool = True, *, timeout: float | None = None) -> int:
        """Wait until it has ended; return the exit code of its main command.

        Args:
            raise_on_termination: raise when it was terminated, instead of returning 137.
            timeout: seconds to wait; it goes on afterwards.

        Raises:
            SandboxTimeoutError: its lifetime was over.
            SandboxTerminatedError: it was terminated.
            TimeoutError: it still runs after `timeout`.
        """
        if not self._end:
            self._end = await self._engine.wait(self._id, _args.optional_seconds("timeout", timeout))
        if self._end.reason in ("timeout", "idle") or (self._end.reason == "terminated" and raise_on_termination):
            raise _ended(self._id, self._end)
        return self._end.returncode

    @dual
    async def terminate(self) -> None:
        """End it, and return when no process, file or interface of it is left. Does nothing if it has ended."""
        self._agent.close()
        await self._engine.stop(self._id)

    async def _close(self) -> None:
        self._agent.close()
        await self._engine.stop(self._id)

    # ----------------------------------------------------------------------------------------------- commands

    async def _exec(self, /, *argv: str, text: bool = True, **options: Any) -> Process[Any]:
        """Run a command to its end and return the finished process; no shell, unless you name one.

        See `ExecOptions` for the keywords. The exit code is a value: 127 if there is no such executable, 128 + n for signal n.
        A background child that outlives the command does not delay the result.

        Raises:
            ExecTimeoutError: its timeout expired; `.process` has its output so far.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        source = feed(options.pop("stdin", None))
        spec = exec_spec("exec", argv, options, Flag.ATTACHED | (Flag.STDIN if source else 0))
        most = sum(spec.output) if spec.output else None
        command, stdout, stderr = self._new_command(), Spool(most), Spool(most)
        pid, record = await command.run(spec, source, {1: stdout, 2: stderr})
        why = why_missing("exec", options)
        process: Process[Any] = Process(
            command,
            spec.argv,
            pid=pid,
            stdout=Kept(stdout, why),
            stderr=Kept(stderr, why),
            text=text,
            stdin=None,
            record=record,
        )
        if record.timed_out:
            raise timed_out(process)
        return process

    async def _spawn(self, /, *argv: str, text: bool = True, **options: Any) -> Process[Any]:
        """Start a command and return at once, with live stdin, stdout and stderr. See `SpawnOptions` for the keywords."""
        spec = exec_spec("spawn", argv, options, Flag.STDIN)
        command = self._new_command()
        pid = await command.start(spec)
        why = why_missing("spawn", options)
        return Process(
            command,
            spec.argv,
            pid=pid,
            stdout=Live(command, 1, why),
            stderr=Live(command, 2, why),
            text=text,
            stdin=0,
        )

    async def _process(
        self,
        id: str,
        *,
        text: bool = True,
        stdout_offset: int | None = None,
        stderr_offset: int | None = None,
    ) -> Process[Any]:
        """Return the command of that `Process.id`; any process of yours may have spawned it.

        Output that another handle has read is gone, which `dropped` counts. Only one handle at a
        time should write to stdin.

        Args:
            id: its `Process.id`.
            text: as in `spawn`.
            stdout_offset, stderr_offset: where reading begins, in bytes from the stream's start; if
                that is gone, the read warns. None: at the first byte that is kept.

        Raises:
            NotFoundError: the sandbox has no such command.
        """
        command = Command(self._agent, _args.command_id(id))
        why = why_missing("process", {})
        stdout = Live(command, 1, why, _args.offset("stdout_offset", stdout_offset))
        stderr = Live(command, 2, why, _args.offset("stderr_offset", stderr_offset))
        try:
            found = await command.io(Want.EXIT, [0, 0, 0], {}, wait=0)
        except NotFoundError:
            raise NotFoundError(
                f"sandbox {self._id} has no command {id}; it was started in another one, or by exec(), which "
                "forgets it at its end"
            ) from None
        return Process(
            command, (), pid=0, stdout=stdout, stderr=stderr, text=text, stdin=found.stdin, record=found.record
        )

    @dual
    async def connect(self, port: int, *, timeout: float = 0.0) -> Connection:
        """Connect to a TCP port that something in the sandbox listens on, at its loopback address.

        No port has to be opened, and it works with `block_network`. An open connection counts as
        activity.

        Args:
            port: the port.
            timeout: seconds to wait until something listens.

        Raises:
            SandboxConnectionRefusedError: nothing listens there.
            SandboxTerminatedError, SandboxTimeoutError, SandboxNotRunningError: the sandbox
                has ended.
        """
        port = _args.whole("port", port, 1, 65535)
        wait = _args.seconds("timeout", timeout) if timeout else 0.0
        return await connection.connect(self._new_command(), port, wait)

    exec = cast("ExecCall", dual(_exec))
    spawn = cast("SpawnCall", dual(_spawn))
    process = cast("ProcessCall", dual(_process))

    def _new_command(self) -> Command:
        return Command(self._agent, os.urandom(16))

    async def _look(self) -> Status:
        self._status = await self._engine.inspect(self._id)
        self._end = self._status.ended
        return self._status

    async def _why(self, error: Exception) -> None:
        """Raise why the sandbox ended; return if it runs."""
        try:
            await self._look()
        except NotFoundError as gone:
            raise SandboxNotRunningError(f"sandbox {self._id} does not exist any more; create a new one") from gone
        if self._end:
            raise _ended(self._id, self._end) from error

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


def _refuse_unsupported(**arguments: object) -> None:
    for name, value in arguments.items():
        if value not in (None, (), [], {}):
            raise UnsupportedError(f"{name}= is not supported by this version yet; leave it out")


def _checked_app(app: App | None) -> App:
    if app is None:
        return App("sandbox")
    if not isinstance(app, App):
        raise InvalidError(f"app must be an openmodal.App, not {type(app).__name__}; write openmodal.App('my-app')")
    return app


def _checked_image(image: Image | None) -> Image:
    if image is None:
        return Image.debian_slim()
    if not isinstance(image, Image):
        raise InvalidError(
            f"image must be an openmodal.Image, not {type(image).__name__}; use Image.from_registry(name)"
        )
    return image


def _over_image(spec: SandboxSpec, root: Root, command: tuple[str, ...] | None) -> SandboxSpec:
    """The spec, with what the image says where the caller said nothing."""
    from msgspec.structs import replace

    command = spec.argv or command
    return replace(
        spec,
        env=tuple({**dict(root.env), **dict(spec.env)}.items()),
        workdir=posixpath.join(root.workdir or "/", spec.workdir) if spec.workdir else root.workdir,
        argv=(*root.entrypoint, *command) if command is not None else (),
    )


_WHY = {
    "timeout": "its timeout expired; give Sandbox.create a longer timeout=",
    "idle": "nothing happened in it for its idle_timeout",
    "terminated": "it was terminated",
    "oom": "it ran out of memory; give Sandbox.create more memory=",
    "lost": "its supervisor was killed, or the machine was restarted",
}


def _ended(id: str, end: EndRecord) -> SandboxNotRunningError:
    """The exception that tells how a sandbox ended."""
    why = _WHY.get(end.reason) or end.text
    if end.reason == "exited":
        why = f"its main command exited with {end.returncode}"
    kind = {
        "timeout": SandboxTimeoutError,
        "idle": SandboxTimeoutError,
        "terminated": SandboxTerminatedError,
    }.get(end.reason, SandboxNotRunningError)
    return kind(f"sandbox {id} is not running: {why}")


__all__ = ["DEFAULT_TIMEOUT", "ExecOptions", "Sandbox", "SpawnOptions"]
