"""`openmodal-docker`: docker's command line over our engines, for tools that call nothing else.

A verb is a function of its module, which is imported when it is asked for: tools start a process
for each verb, which may take 100 ms until it is done. Exit codes and the outputs that tools read
are docker's (docs/integrations/docker.md).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, cast

Verb = Callable[[list[str]], int]

_VERBS = {
    "build": "build:build",
    "commit": "images:commit",
    "cp": "copy:cp",
    "create": "run:create",
    "diff": "listing:diff",
    "exec": "execute:execute",
    "images": "images:list_",
    "info": "about:info",
    "inspect": "inspect:inspect",
    "kill": "control:kill",
    "logs": "output:logs",
    "network create": "networks:create",
    "network inspect": "networks:inspect",
    "network ls": "networks:list_",
    "network rm": "networks:rm",
    "pause": "control:pause",
    "port": "listing:port",
    "ps": "listing:ps",
    "pull": "images:pull",
    "rm": "control:rm",
    "rmi": "images:rmi",
    "run": "run:run",
    "start": "control:start",
    "stop": "control:stop",
    "tag": "images:tag",
    "unpause": "control:unpause",
    "version": "about:version",
    "wait": "control:wait",
}
_CONTAINER = ("commit", "cp", "create", "diff", "exec", "kill", "logs", "pause", "port", "rm", "run", "start", "stop")
_GROUPS = {
    "builder": {"build": "build"},
    "buildx": {"build": "build"},
    "container": {
        **{name: name for name in (*_CONTAINER, "unpause", "wait")},
        "inspect": "container",
        "list": "ps",
        "ls": "ps",
        "ps": "ps",
    },
    "image": {
        "build": "build",
        "inspect": "image",
        "list": "images",
        "ls": "images",
        "pull": "pull",
        "rm": "rmi",
        "tag": "tag",
    },
    "network": {
        "create": "network create",
        "inspect": "network inspect",
        "list": "network ls",
        "ls": "network ls",
        "remove": "network rm",
        "rm": "network rm",
    },
    "system": {"info": "info"},
}
"""Verbs in docker's longer spelling, by the short one."""

_ELSEWHERE = {
    "attach": "use `docker logs -f` and `docker exec`",
    "compose": "start each service with `docker run` and -p, or use the framework's own adapter (docs/integrations)",
    "login": "registries are asked with the names and passwords of ~/.docker/config.json, which Docker's own client writes",
    "push": "write `openmodal image publish` to keep an image, or push it with Docker's own client",
    "restart": "a sandbox that has ended is gone; start another one with `docker run`",
    "save": "`docker commit` and `openmodal image publish` keep an image on this engine",
    "stats": "use `openmodal top`",
    "swarm": "use `openmodal --engine kubernetes` for many machines",
    "top": "use `docker exec CONTAINER ps`",
    "volume": "use `openmodal volume`; `docker run -v NAME:/path` makes one",
}
"""What is not done, and what to use."""


_OBJECTS = 100_000
"""A verb makes fewer before it is done; while modules are imported, collecting garbage costs much."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    gc.set_threshold(_OBJECTS)
    code = _until_ended(list(sys.argv[1:] if arguments is None else arguments))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody takes it
            stream.flush()
    # Python's own end, which takes every module apart, would be a fifth of the time.
    os._exit(code)


def _until_ended(given: list[str]) -> int:
    from openmodal.cli._ending import unwinding

    try:
        with unwinding():
            return run(given)
    except SystemExit as ended:
        return int(ended.code or 0)


def run(given: list[str]) -> int:
    """Run a verb; what it fails with is one line on stderr."""
    from openmodal.docker_cli.failures import Failure
    from openmodal.errors import Error

    verb = given[0] if given else ""
    try:
        code = _verb(given)
        sys.stdout.flush()
        return code
    except Failure as failure:
        return _say(f"{'docker: ' if failure.code == 125 else ''}{failure}", failure.code)
    except BrokenPipeError:
        sys.stdout = None  # nobody takes what is left in it
        return 141
    except KeyboardInterrupt:
        return 130
    except (Error, OSError) as error:
        from openmodal.cli._errors import sentence

        starts = verb in ("run", "create")
        return _say(
            f"{'docker: ' if starts else ''}Error response from daemon: {sentence(error)}", 125 if starts else 1
        )


def _verb(given: list[str]) -> int:
    """Do what the words ask for."""
    from openmodal.docker_cli.failures import Failure

    if given[:1] in (["--version"], ["-v"]):
        given = ["version", "--short"]
    word, *rest = given or [""]
    if word in ("", "--help", "-h", "help"):
        print(f"Usage: docker COMMAND\n\nSandboxes of OpenModal as containers. Commands: {', '.join(_VERBS)}")
        return 0
    if word in _GROUPS:
        group, (word, *rest) = word, rest or [""]
        if word not in _GROUPS[group]:
            raise Failure(
                f"docker: `docker {group} {word}` is not done by OpenModal; docs/integrations/docker.md has what is"
            )
        word = _GROUPS[group][word]
    if word in ("container", "image"):  # inspect, of one kind
        word, rest = "inspect", ["--type", word, *rest]
    if word in _ELSEWHERE:
        raise Failure(f"docker: OpenModal has no `docker {word}`: {_ELSEWHERE[word]}")
    if word not in _VERBS:
        raise Failure(f"docker: {word!r} is not a docker command that OpenModal has; it has {', '.join(_VERBS)}")
    module, _, name = _VERBS[word].partition(":")
    verb = cast("Verb", getattr(importlib.import_module(f"openmodal.docker_cli.{module}"), name))
    return verb(rest)


def _say(text: str, code: int) -> int:
    print(" ".join(text.split("\n")), file=sys.stderr)
    return code


__all__ = ["main", "run"]
