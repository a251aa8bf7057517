"""The tree of commands, and what happens to their errors."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import click

from openmodal.cli._errors import say, sentence
from openmodal.cli._output import tell
from openmodal.cli._session import Session

_ELSEWHERE = {
    "ls": ("list",),
    "info": ("inspect", "list"),
    **dict.fromkeys(("rm", "terminate", "kill", "delete", "remove", "end"), ("stop", "delete", "prune")),
    **dict.fromkeys(("ssh", "attach", "enter", "sh"), ("shell",)),
    "copy": ("cp",),
    "start": ("run",),
    "commit": ("snapshot",),
}
"""Words of other command lines → ours, the first one that there is."""


class Commands(click.Group):
    """Commands that are imported when they are used: their help lines stand in a table, as "module:name" → line."""

    def __init__(
        self,
        table: Mapping[str, tuple[str, str]],
        groups: tuple[Commands, ...] = (),
        also: Mapping[str, str] | None = None,
        **attributes: Any,
    ) -> None:
        """`also`: more words for commands of the table, as "group command" for those of a group."""
        super().__init__(**attributes)
        self._table = table
        self._also = also or {}
        self._groups = {str(group.name): group for group in groups}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        group, _, deeper = self._also.get(cmd_name, "").rpartition(" ")
        if deeper:
            return (self._groups[group] if group else self).get_command(ctx, deeper)
        if cmd_name not in self._table:
            return None
        module, _, name = self._table[cmd_name][0].partition(":")
        return cast("click.Command", getattr(importlib.import_module(module), name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in {*self._table, *self._also} and (meant := self.meant(args[0])):
            raise click.UsageError(f"there is no command {args[0]!r}, but `{ctx.command_path} {meant}`", ctx)
        return super().resolve_command(ctx, args)

    def meant(self, word: str) -> str:
        """The command, perhaps of a group, that somebody means who writes that word; "" if none is alike."""
        import difflib

        for name in (word, *_ELSEWHERE.get(word, ())):
            if name in self._table:
                return name
            for group, deeper in self._groups.items():
                if name in deeper._table:
                    return f"{group} {name}"
        return next(iter(difflib.get_close_matches(word, self._table, 1)), "")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._table.items()])


_SANDBOX = {
    "create": ("openmodal.cli.create:create", "Create a sandbox that stays."),
    "list": ("openmodal.cli.status:list_", "Show the running sandboxes."),
    "inspect": ("openmodal.cli.status:inspect", "Print all that is known of sandboxes, as JSON."),
    "show": ("openmodal.cli.show:show", "Show what was done with a sandbox."),
    "top": ("openmodal.cli.status:top", "Show what sandboxes use now."),
    "exec": ("openmodal.cli.sandbox:exec_", "Run a command in a sandbox."),
    "shell": ("openmodal.cli.shell:attach", "Open a terminal in a sandbox."),
    "commands": ("openmodal.cli.status:commands", "Show the commands of a sandbox."),
    "logs": ("openmodal.cli.sandbox:logs", "Show what a sandbox's main command printed."),
    "usage": ("openmodal.cli.live:usage", "Show what a sandbox has used."),
    "diff": ("openmodal.cli.live:diff", "Show which files differ from the image."),
    "snapshot": ("openmodal.cli.state:snapshot", "Make an image of a sandbox's files."),
    "fork": ("openmodal.cli.state:fork", "Create sandboxes that go on from a sandbox's files."),
    "pause": ("openmodal.cli.live:pause", "Stop everything in a sandbox."),
    "resume": ("openmodal.cli.live:resume", "Let a paused sandbox go on."),
    "forward": ("openmodal.cli.sandbox:forward", "Reach a port of a sandbox from this machine."),
    "stop": ("openmodal.cli.sandbox:stop", "End sandboxes."),
    "cp": ("openmodal.cli.copy:cp", "Copy files between this machine and a sandbox."),
}
_IMAGE = {
    "list": ("openmodal.cli.image:list_", "Show the images that are built."),
    "inspect": ("openmodal.cli.image:inspect", "Print what is known of images, as JSON."),
    "history": ("openmodal.cli.image:history", "Show the steps of an image, with sizes."),
    "build": ("openmodal.cli.image:build", "Build an image of a Python file or a Dockerfile."),
    "publish": ("openmodal.cli.image:publish", "Give an image a name, under which it is kept."),
    "delete": ("openmodal.cli.image:delete", "Delete the name of a published image."),
    "prune": ("openmodal.cli.image:prune", "Remove images that nothing uses."),
}
_POOL = {
    "create": ("openmodal.cli.pool:create", "Keep sandboxes of an image ready on a cluster."),
    "list": ("openmodal.cli.pool:list_", "Show the pools."),
    "delete": ("openmodal.cli.pool:delete", "Delete a pool; its sandboxes run on."),
}
_VOLUME = {
    "create": ("openmodal.cli.volume:create", "Make a volume."),
    "list": ("openmodal.cli.volume:list_", "Show the volumes."),
    "ls": ("openmodal.cli.volume:ls", "Show what is in a volume."),
    "get": ("openmodal.cli.volume:get", "Copy files of a volume to this machine."),
    "put": ("openmodal.cli.volume:put", "Copy files of this machine to a volume."),
    "cp": ("openmodal.cli.volume:cp", "Copy files within a volume."),
    "rm": ("openmodal.cli.volume:rm", "Remove files of a volume."),
    "rename": ("openmodal.cli.volume:rename", "Give a volume another name."),
    "delete": ("openmodal.cli.volume:delete", "Delete a volume and all that is in it."),
}
_SETUP = {
    "kubernetes": (
        "openmodal.cli.setup:kubernetes",
        "Make the namespace, rights and policies of sandboxes on a cluster.",
    ),
    "gcp": ("openmodal.cli.gcp:gcp", "Make a cluster and a registry on Google Cloud, and use them."),
}
_CONFIG = {
    "show": ("openmodal.cli.config:show", "Show what the configuration file sets."),
    "set": ("openmodal.cli.config:set_", "Set something in it."),
    "path": ("openmodal.cli.config:path", "Print where it is."),
}
sandbox = Commands(
    _SANDBOX,
    also={"ps": "list", "ls": "list", "rm": "stop", "stats": "top"},
    name="sandbox",
    help="List, enter and end sandboxes.",
    no_args_is_help=True,
)
image = Commands(
    _IMAGE,
    also={"tag": "publish", "rm": "delete", "untag": "delete", "ls": "list"},
    name="image",
    help="List, build and remove images.",
    no_args_is_help=True,
)
pool = Commands(_POOL, name="pool", help="Keep sandboxes ready on a cluster.", no_args_is_help=True)
volume = Commands(_VOLUME, name="volume", help="Make, fill and delete volumes.", no_args_is_help=True)
config = Commands(_CONFIG, name="config", help="Show and change the configuration file.", no_args_is_help=True)
setup = Commands(_SETUP, name="setup", help="Prepare a cluster for sandboxes.", no_args_is_help=True)

_COMMANDS = {
    "run": ("openmodal.cli.run:run", "Run a Python file; its sandboxes end with it."),
    "shell": ("openmodal.cli.shell:shell", "Open a terminal in a new sandbox."),
    "sandbox": ("openmodal.cli._root:sandbox", "List, enter and end sandboxes."),
    "image": ("openmodal.cli._root:image", "List, build and remove images."),
    "pool": ("openmodal.cli._root:pool", "Keep sandboxes ready on a cluster."),
    "volume": ("openmodal.cli._root:volume", "Make, fill and delete volumes."),
    "config": ("openmodal.cli._root:config", "Show and change the configuration file."),
    "setup": ("openmodal.cli._root:setup", "Prepare a cluster for sandboxes."),
    "serve": ("openmodal.cli.serve:serve", "Serve programs that say `import modal`."),
    "dashboard": ("openmodal.cli.dashboard:dashboard", "Show sandboxes, images and this machine on a web page."),
    "mcp": ("openmodal.cli.mcp:mcp", "Give chat clients sandboxes as tools."),
    "doctor": ("openmodal.cli.doctor:doctor", "Tell what this machine can do, and how to add what is missing."),
    "gc": ("openmodal.cli.gc:gc", "Remove what crashes left behind."),
    "bench": ("openmodal.cli.bench:bench", "Measure this machine: create, exec, terminate."),
    "completion": ("openmodal.cli.completion:completion", "Print what makes a shell complete this command."),
}


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        from openmodal import __version__

        click.echo(f"openmodal {__version__}")
        ctx.exit()


def _global_options(ctx: click.Context, *, local: bool, engine: str | None, debug: bool) -> None:
    session = ctx.ensure_object(Session)
    session.debug = debug
    session.choose(local=local, engine=engine)


_SHORT = {
    **{word: f"sandbox {word}" for word in _SANDBOX if word not in _COMMANDS},
    "ps": "sandbox list",
    "rm": "sandbox stop",
    "stats": "sandbox top",
    "images": "image list",
    "build": "image build",
}
"""Short forms of commands that are used all day."""

root = Commands(
    _COMMANDS,
    (sandbox, image),
    _SHORT,
    name="openmodal",
    help="Sandboxes for agents on your own machines.",
    callback=click.pass_context(_global_options),
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    params=[
        click.Option(["--local"], is_flag=True, help="Run sandboxes on this machine."),
        click.Option(["--engine"], metavar="NAME", help="Run them with this engine: embedded, docker, kubernetes."),
        click.Option(["--debug"], is_flag=True, help="Show the traceback of errors."),
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
        ),
    ],
)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code.

    A command that runs the user's code returns a function for it: it is called out here, where its
    exceptions are the user's and not ours.
    """
    outcome = _command(arguments)
    code = outcome() if callable(outcome) else outcome
    try:
        sys.stdout.flush()
    except OSError as error:
        if code == 0 and not isinstance(error, BrokenPipeError):
            tell(f"Error: {sentence(error)}")
        return _without_output()
    return code


def _command(arguments: Sequence[str]) -> int | Callable[[], int]:
    from openmodal.errors import Error

    session = Session()
    try:
        result: Any = root.main(list(arguments), prog_name="openmodal", standalone_mode=False, obj=session)
    except click.ClickException as error:
        return say(error)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        return _without_output()
    except (Error, OSError) as error:
        if session.debug:
            raise
        tell(f"Error: {sentence(error)}")
        return 1
    return 0 if result is None else cast("int | Callable[[], int]", result)


def _without_output() -> int:
    """`openmodal … | head`, or a full disk: nobody takes the rest. Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
