"""`openmodal sandbox cp`: files and folders between this machine and a sandbox, with docker cp's rules."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openmodal.cli._session import Session, engine_options, pass_session

if TYPE_CHECKING:
    from openmodal import Filesystem

_REMOTE = re.compile(r"(?P<id>[A-Za-z0-9][A-Za-z0-9_.-]*):(?P<path>/.*)", re.DOTALL)


@click.command()
@click.argument("source")
@click.argument("target")
@click.option(
    "--max-bytes",
    type=click.IntRange(min=0),
    help="Copy at most so many bytes to here; 0: any number. [default: 16 GiB]",
)
@click.option("--user", "-u", help="Who you are there: name, uid, name:group or uid:gid; the image's user.")
@engine_options
@pass_session
def cp(session: Session, source: str, target: str, max_bytes: int | None, user: str | None) -> None:
    """Copy files or folders: openmodal sandbox cp ID:/path LOCAL, or LOCAL ID:/path.

    Into a folder that exists, SOURCE is put under its own name; otherwise TARGET is its new name. A
    local link is not followed.
    """
    from openmodal.filesystem import COPY_MOST

    there, here = split(source), split(target)
    if bool(there) == bool(here):
        raise click.UsageError("one of the two is in a sandbox, written ID:/absolute/path, and the other is local")
    if there:
        files = session.sandbox(there[0]).filesystem
        files = files.as_user(user) if user else files
        most = COPY_MOST if max_bytes is None else max_bytes or None
        files.copy_to_local(there[1], _local_target(there[1], target), max_bytes=most)
    elif here:
        files = session.sandbox(here[0]).filesystem
        files = files.as_user(user) if user else files
        files.copy_from_local(source, _remote_target(files, source, here[1]))


def split(text: str) -> tuple[str, str] | None:
    """`ID:/path` as id and path; None for a local path."""
    match = _REMOTE.fullmatch(text)
    return (match["id"], match["path"]) if match else None


def _local_target(source: str, target: str) -> str:
    name = os.path.basename(source.rstrip("/"))
    if name == "..":
        raise click.UsageError(f"{source!r} has no name to be put under here; write its path without ..")
    # A link to a folder may be one that a sandbox sent: it is left to copy_to_local, which refuses
    # it. The kernel follows a link whose name ends in "/" or "/.", so the name is taken without
    # these.
    target = os.fspath(Path(target))
    return os.path.join(target, name) if os.path.isdir(target) and not os.path.islink(target) else target


def _remote_target(files: Filesystem, source: str, target: str) -> str:
    if target.endswith("/") or (files.exists(target) and files.stat(target).is_dir):
        return f"{target.rstrip('/')}/{os.path.basename(os.path.abspath(source))}"
    return target
