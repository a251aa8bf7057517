"""`docker stop`, `kill`, `rm`, `start`, `wait`, `pause` and `unpause`."""

from __future__ import annotations

import contextlib
import signal

from openmodal.docker_cli import containers, output, record
from openmodal.docker_cli.failures import Failure, daemon_says
from openmodal.docker_cli.flags import Flags
from openmodal.errors import NotFoundError, SandboxNotRunningError

_PATIENCE = 10.0


def stop(arguments: list[str]) -> int:
    """Send SIGTERM, and end what has not ended 10 seconds later."""
    given = Flags("stop", texts="time,t timeout signal,s").parse(arguments)
    seconds = given.number("time" if "time" in given.values else "timeout")
    number = containers.signal_number(given.text("signal", "TERM"))

    def one(word: str) -> str:
        found = containers.find(word)
        if found.status.ended is None:
            containers.stop(found, number, _PATIENCE if seconds is None else max(seconds, 0.01))
        return word

    return containers.each(given.at_least(1, "stop"), one)


def kill(arguments: list[str]) -> int:
    """Send a signal: SIGKILL ends the container."""
    given = Flags("kill", texts="signal,s").parse(arguments)
    number = containers.signal_number(given.text("signal", "KILL"))

    def one(word: str) -> str:
        found = containers.find(word)
        if found.status.ended:
            raise daemon_says(f"Cannot kill container: {word}: container {found.id} is not running")
        main = None if number == signal.SIGKILL else found.main()
        if main:
            main.send_signal(number)
        elif number == signal.SIGKILL:
            found.sandbox.terminate()
        return word

    return containers.each(given.at_least(1, "kill"), one)


def rm(arguments: list[str]) -> int:
    """Forget a container that has ended; with -f, end it first."""
    given = Flags("rm", switches="force,f volumes,v link,l").parse(arguments)
    force = given.on("force")

    def one(word: str) -> str:
        found = containers.find(word)
        if found.status.ended is None:
            if not force and found.state != "created":
                raise daemon_says(
                    f"cannot remove container {word!r}: container is running: stop the container before removing or force remove"
                )
            found.note(removed=True)
            found.sandbox.terminate()
        return word

    return containers.each(given.at_least(1, "rm"), one)


def start(arguments: list[str]) -> int:
    """Let a container begin that was created."""
    given = Flags("start", switches="attach,a interactive,i", texts="detach-keys").parse(arguments)

    def one(word: str) -> str:
        found = containers.find(word)
        if found.status.ended:
            raise Failure(
                f"a sandbox that has ended is gone: {found.status.ended.text}; start another one with `docker run`"
            )
        if found.record.waits:
            found.sandbox.stdin.write("\n")
            if not found.record.interactive:
                found.sandbox.stdin.write_eof()
            found.sandbox.stdin.drain()
            found.note(waits=False)
        return word

    words = given.at_least(1, "start")
    if not given.on("attach"):
        return containers.each(words, one)
    one(words[0])
    output.follow(containers.find(words[0]).sandbox)
    return _ended(words[0])


def wait(arguments: list[str]) -> int:
    """Wait until containers have ended, and print their exit codes."""
    words = Flags("wait", texts="condition").parse(arguments).at_least(1, "wait")
    return containers.each(words, lambda word: str(_ended(word)))


def _ended(word: str) -> int:
    """The exit code of a container, once it has ended."""
    found = containers.find(word)
    if found.status.ended is None:
        with contextlib.suppress(SandboxNotRunningError, NotFoundError):
            found.sandbox.wait(raise_on_termination=False)
    status = found.sandbox.status()
    return containers.Container(found.sandbox, status, record.of(status.tags) or found.record).exit_code


def pause(arguments: list[str]) -> int:
    """Stop everything in a container; it goes on when it is used."""

    def one(word: str) -> str:
        containers.find_running(word).sandbox.pause()
        return word

    return containers.each(Flags("pause").parse(arguments).at_least(1, "pause"), one)


def unpause(arguments: list[str]) -> int:
    """Let a container go on."""

    def one(word: str) -> str:
        containers.find_running(word).sandbox.resume()
        return word

    return containers.each(Flags("unpause").parse(arguments).at_least(1, "unpause"), one)
