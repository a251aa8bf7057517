"""`docker run` and `docker create`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from openmodal import App, Image, Sandbox, _config
from openmodal._spec import Root
from openmodal.docker_cli import asked, images, names
from openmodal.docker_cli.failures import Failure, daemon_says
from openmodal.docker_cli.flags import Given
from openmodal.docker_cli.record import Record
from openmodal.engines import choose
from openmodal.errors import AlreadyExistsError, SandboxNotRunningError, StdinClosedError
from openmodal.integrations import ends_with_us
from openmodal.process import Process

APP = "docker"
_LEASE = 300.0
_GATE = ("/bin/sh", "-c", 'read -r _ && exec "$@"', "sh")
"""What a container runs that was created: its command, once `docker start` has written a line."""
_PROXIED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def run(arguments: list[str]) -> int:
    """Create a container and run a command in it: behind us with -d, else until its end."""
    given = _given(arguments, "run")
    if given.on("detach"):
        sandbox, _, _ = _made(given, foreground=False)
        print(sandbox.id)
        return 0
    if given.on("tty") and given.on("interactive") and not sys.stdin.isatty():
        raise Failure("the input device is not a TTY")
    return _foreground(given)


def create(arguments: list[str]) -> int:
    """Create a container that runs its command once it is started."""
    sandbox, _, _ = _made(_given(arguments, "create"), foreground=False, waits=True)
    print(sandbox.id)
    return 0


def _given(arguments: list[str], command: str) -> Given:
    given = asked.FLAGS.parse(arguments, command_follows=True)
    given.at_least(1, command)
    asked.refuse(given)
    return given


def _foreground(given: Given) -> int:
    """Run the command on our streams. The sandbox ends with it, and with us."""
    from openmodal.cli import _terminal

    tty, interactive = given.on("tty"), given.on("interactive")
    sandbox, argv, record = _made(given, foreground=True)
    with sandbox:
        process = sandbox.spawn(*argv, text=False, pty=tty, env={"TERM": "xterm"} if tty else {})
        if not interactive:
            process.stdin.close()
        try:
            with _signals_passed_on(process):
                code = _terminal.attach(process, stdin=interactive, pty=tty and sys.stdin.isatty())
        except SandboxNotRunningError as error:
            print(f"docker: {error}", file=sys.stderr)
            return 137
        with contextlib.suppress(SandboxNotRunningError):
            sandbox.set_tags(_with(record, exit_code=code).tags())
        return code


def _with(record: Record, **changes: object) -> Record:
    from msgspec.structs import replace

    return replace(record, **changes)


@contextlib.contextmanager
def _signals_passed_on(process: Process[bytes]) -> Iterator[None]:
    """What we are sent goes to the command: by a thread, for we may be in the middle of a read."""
    import threading

    def send(number: int) -> None:
        with contextlib.suppress(SandboxNotRunningError):
            process.send_signal(number)

    def passed_on(number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=send, args=(number,), daemon=True).start()

    before = {number: signal.signal(number, passed_on) for number in _PROXIED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _made(given: Given, *, foreground: bool, waits: bool = False) -> tuple[Sandbox, tuple[str, ...], Record]:
    """The sandbox, what runs in it, and what is remembered of it."""
    reference, *command = given.words
    engine = choose(None)
    arguments = asked.arguments(given)
    image = images.have(reference, given.text("pull", "missing"))
    root = images.root(image)
    argv = _argv(given, root, command)
    record = Record(
        name=given.text("name"),
        image=reference,
        image_id=root.key,
        entrypoint=(given.text("entrypoint"),) if given.text("entrypoint") else root.entrypoint,
        argv=argv,
        foreground=foreground,
        waits=waits,
        **asked.described(given),
    )
    main = () if foreground else (*_GATE, *argv) if waits else argv
    if foreground:
        arguments |= ends_with_us(arguments, _LEASE)
    try:
        sandbox = Sandbox.create(
            *main,
            app=App(APP),
            id=os.urandom(20).hex(),
            name=names.shortened(record.name) or None,
            image=_settled(image, given, root),
            tags=record.tags(),
            timeout=_config.docker_lifetime(),
            engine=engine,
            **arguments,
        )
    except AlreadyExistsError:
        text = (
            f'Conflict. The container name "/{record.name}" is already in use. You have to remove that container first.'
        )
        raise daemon_says(text, 125) from None
    _written(given, sandbox)
    if main and not waits and not record.interactive:
        with contextlib.suppress(SandboxNotRunningError, StdinClosedError):
            sandbox.stdin.close()
    return sandbox, argv, record


def _argv(given: Given, root: Root, command: Sequence[str]) -> tuple[str, ...]:
    """All words of the command: the image says those that are not given."""
    if "entrypoint" in given.values:
        entrypoint = filter(None, [given.text("entrypoint")])
        argv = (*entrypoint, *command)
    else:
        argv = (*root.entrypoint, *(command or root.cmd))
    if not argv:
        raise daemon_says("No command specified", 125)
    return argv


def _settled(image: Image, given: Given, root: Root) -> Image:
    """The image with the container's user and folder, which is made if it is not there. Our main
    command is whole, so no entrypoint stands before it."""
    workdir = given.text("workdir")
    if workdir and not workdir.startswith("/"):
        text = f"the working directory {workdir!r} is invalid, it needs to be an absolute path"
        raise daemon_says(text, 125)
    if workdir.strip("/"):
        image = image.dockerfile_commands(f"WORKDIR {workdir.replace('$', chr(92) + '$')}")
    elif workdir:
        image = image.workdir("/")
    if user := given.text("user"):
        image = image.user(user)
    return image.entrypoint(()) if root.entrypoint else image


def _written(given: Given, sandbox: Sandbox) -> None:
    """Write the id into the file of --cidfile."""
    if file := given.text("cidfile"):
        try:
            with open(file, "x", encoding="utf-8") as opened:
                opened.write(sandbox.id)
        except OSError:
            sandbox.terminate()
            raise
