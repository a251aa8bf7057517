"""Errors in one sentence."""

from __future__ import annotations

import os
import re

import click

from openmodal.cli._output import tell


def say(error: click.ClickException) -> int:
    """Print what is wrong with the command line in one line, and where help is; return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 has it: "openmodal sandbox" alone shows its help
        error.show()
        return error.exit_code
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    text = " ".join(error.format_message().split()).rstrip(".")
    # click names types of Python's.
    text = re.sub(r"('.*') is not a valid integer(?: range)?", r"\1 is no whole number; write one like 8000", text)
    text = re.sub(r"('.*') is not a valid float(?: range)?", r"\1 is no number; write one like 2 or 0.5", text)
    if isinstance(error, click.NoSuchOption):
        text = f"there is no option {error.option_name}{_instead(error)}"
    tell(f"Error: {text}; `{ctx.command_path} --help` tells more" if ctx else f"Error: {text}")
    return error.exit_code


def _instead(error: click.NoSuchOption) -> str:
    """What is meant by an option that there is not: it may stand too early, or be misspelt."""
    if isinstance(error.ctx and error.ctx.command, click.Group):
        return (
            f" before the command; options of a command stand behind its name, as in `openmodal ps {error.option_name}`"
        )
    return f", but {error.possibilities[0]}" if error.possibilities else ""


def sentence(error: Exception) -> str:
    """An error in one line, also one of the operating system."""
    if isinstance(error, OSError) and type(error).__module__ == "builtins" and error.strerror:
        name = f"{os.fspath(error.filename)}: " if isinstance(error.filename, str | os.PathLike) else ""
        return f"{name}{error.strerror.lower()}"
    return str(error)
