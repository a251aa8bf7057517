"""Errors in one sentence."""

from __future__ import annotations

import os

import click

from openmodal.cli._output import tell


def say(error: click.ClickException) -> int:
    """Print what is wrong with the command line in one line, and where help is; return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 has it: "openmodal sandbox" alone shows its help
        error.show()
        return error.exit_code
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    text = error.format_message().replace("\n", " ").rstrip(".")
    tell(f"Error: {text}; `{ctx.command_path} --help` tells more" if ctx else f"Error: {text}")
    return error.exit_code


def sentence(error: Exception) -> str:
    """An error in one line, also one of the operating system."""
    if isinstance(error, OSError) and type(error).__module__ == "builtins" and error.strerror:
        name = f"{os.fspath(error.filename)}: " if isinstance(error.filename, str | os.PathLike) else ""
        return f"{name}{error.strerror.lower()}"
    return str(error)
