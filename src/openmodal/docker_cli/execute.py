"""`docker exec`."""

from __future__ import annotations

import sys
from typing import Any

from openmodal.docker_cli.asked import environment
from openmodal.docker_cli.containers import find_running
from openmodal.docker_cli.failures import Failure, daemon_says
from openmodal.docker_cli.flags import Flags
from openmodal.errors import InvalidError, SandboxNotRunningError
from openmodal.process import StreamType

_FLAGS = Flags(
    "exec",
    switches="detach,d interactive,i tty,t privileged",
    texts="env,e env-file user,u workdir,w detach-keys",
)


def execute(arguments: list[str]) -> int:
    """Run a command in a container that runs."""
    given = _FLAGS.parse(arguments, command_follows=True)
    word, *argv = given.at_least(2, "exec")
    interactive, tty = given.on("interactive"), given.on("tty")
    if given.on("privileged"):
        raise Failure("nothing in a sandbox has rights on this machine; leave --privileged out", 125)
    if tty and interactive and not sys.stdin.isatty():
        raise Failure("the input device is not a TTY")
    sandbox = find_running(word).sandbox
    options: dict[str, Any] = {"env": {**({"TERM": "xterm"} if tty else {}), **environment(given)}, "pty": tty}
    options |= {name: value for name in ("user", "workdir") if (value := given.text(name))}
    if given.on("detach"):
        options |= {"stdout": StreamType.DEVNULL, "stderr": StreamType.DEVNULL}
    try:
        process = sandbox.spawn(*argv, text=False, **options)
    except InvalidError as error:  # no such user or folder
        raise daemon_says(str(error), 126) from None
    if not interactive or given.on("detach"):
        process.stdin.close()
    if given.on("detach"):
        return 0
    from openmodal.cli import _terminal

    try:
        return _terminal.attach(process, stdin=interactive, pty=tty and sys.stdin.isatty())
    except SandboxNotRunningError:  # it was stopped meanwhile
        return 137
