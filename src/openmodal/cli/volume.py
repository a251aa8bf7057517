"""`openmodal volume …`: volumes, and the files in them."""

from __future__ import annotations

import errno
import os
import posixpath
import time
from pathlib import Path

import click

from openmodal.cli import _output
from openmodal.cli._session import Session, engine_options, json_option, pass_session, yes_option


@click.command()
@click.argument("name")
@engine_options
@pass_session
def create(session: Session, name: str) -> None:
    """Make a volume, empty; nothing, if there is one of that name."""
    from openmodal import Volume

    Volume.from_name(name, create_if_missing=True, engine=session.engine).commit()


@click.command("list")
@json_option
@engine_options
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """Show the volumes."""
    from openmodal import Volume

    found = Volume.list(engine=session.engine)
    if as_json:
        _output.emit([{"name": volume.name, "created": volume.created} for volume in found])
        return
    now = time.time()
    _output.table(
        ("VOLUME", "CREATED"),
        ((volume.name, f"{_output.duration(now - volume.created)} ago") for volume in found),
        empty="There is no volume; `openmodal volume create` makes one.",
    )


@click.command()
@click.argument("name")
@click.argument("path", default="/")
@click.option("--recursive", "-r", is_flag=True, help="Also what is in its folders.")
@json_option
@engine_options
@pass_session
def ls(session: Session, name: str, path: str, recursive: bool, as_json: bool) -> None:
    """Show what is in a folder of a volume."""
    from openmodal import Volume

    found = Volume.from_name(name, engine=session.engine).listdir(path, recursive=recursive)
    if as_json:
        _output.emit([{"path": f.path, "kind": f.kind, "size": f.size, "mtime": f.mtime} for f in found])
        return
    now = time.time()
    _output.table(
        ("PATH", "KIND", "SIZE", "CHANGED"),
        ((f.path, f.kind, _output.size(f.size), f"{_output.duration(now - f.mtime)} ago") for f in found),
        empty="There is nothing in it.",
    )


@click.command()
@click.argument("name")
@click.argument("path")
@click.argument("target", metavar="[LOCAL]", default=".")
@click.option("--force", is_flag=True, help="Over a local file that is there.")
@engine_options
@pass_session
def get(session: Session, name: str, path: str, target: str, force: bool) -> None:
    """Copy a file or folder of a volume to here; a LOCAL folder gets it under its own name."""
    from openmodal import Volume

    place = Path(target)
    if place.is_dir() and not place.is_symlink():
        place /= posixpath.basename(posixpath.normpath(path))
    if not force and os.path.lexists(place):
        raise click.UsageError(f"{os.fspath(place)!r} is there already; say --force, or give another name")
    Volume.from_name(name, engine=session.engine).copy_to_local(path, place)


@click.command()
@click.argument("name")
@click.argument("source", metavar="LOCAL", type=click.Path(exists=True))
@click.argument("path", default="/")
@click.option("--force", is_flag=True, help="Over files of the volume that are there.")
@engine_options
@pass_session
def put(session: Session, name: str, source: str, path: str, force: bool) -> None:
    """Copy a local file or folder to a volume; a PATH that ends in / gets it under its own name."""
    from openmodal import Volume

    target = posixpath.join(path, os.path.basename(os.path.abspath(source))) if path.endswith("/") else path
    with Volume.from_name(name, engine=session.engine).batch_upload(force=force) as upload:
        if os.path.isdir(source):
            upload.put_directory(source, target)
        else:
            upload.put_file(source, target)


@click.command()
@click.argument("name")
@click.argument("sources", nargs=-1, required=True)
@click.argument("target")
@click.option("--recursive", "-r", is_flag=True, help="Folders, with what is in them.")
@engine_options
@pass_session
def cp(session: Session, name: str, sources: tuple[str, ...], target: str, recursive: bool) -> None:
    """Copy files within a volume."""
    from openmodal import Volume

    Volume.from_name(name, engine=session.engine).copy_files(sources, target, recursive=recursive)


@click.command()
@click.argument("name")
@click.argument("path")
@click.option("--recursive", "-r", is_flag=True, help="A folder, with what is in it.")
@engine_options
@pass_session
def rm(session: Session, name: str, path: str, recursive: bool) -> None:
    """Remove a file of a volume."""
    from openmodal import Volume
    from openmodal.errors import SandboxFilesystemError

    try:
        Volume.from_name(name, engine=session.engine).remove_file(path, recursive=recursive)
    except SandboxFilesystemError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise click.UsageError(f"{path!r} is a folder with files; -r removes it with all that is in it") from None


@click.command()
@click.argument("name")
@yes_option
@engine_options
@pass_session
def delete(session: Session, name: str, yes: bool) -> int:
    """Delete a volume and all that is in it. Asks in a terminal."""
    from openmodal import Volume

    if not _output.agreed([f"volume {name}, with all that is in it"], f"Delete {name}?", yes=yes):
        return 1
    Volume.delete(name, engine=session.engine)
    return 0


@click.command()
@click.argument("name")
@click.argument("new")
@engine_options
@pass_session
def rename(session: Session, name: str, new: str) -> None:
    """Give a volume another name."""
    from openmodal import Volume

    Volume.rename(name, new, engine=session.engine)
