"""`docker cp`: files, folders and tar archives, into a container and out of it."""

from __future__ import annotations

import os
import posixpath
import sys

from openmodal import Filesystem, _halfmade
from openmodal._dual import run_sync
from openmodal.docker_cli.containers import find_running
from openmodal.docker_cli.failures import Failure, daemon_says
from openmodal.docker_cli.flags import Flags
from openmodal.errors import (
    OTHER_DISK,
    DiskFullError,
    SandboxFileTooLargeError,
    disk_full_named,
    temporary_full_named,
)
from openmodal.filesystem import COPY_MOST


def cp(arguments: list[str]) -> int:
    """Copy CONTAINER:PATH to a local path, or the other way round; `-` is a tar archive."""
    given = Flags("cp", switches="archive,a follow-link,L quiet,q").parse(arguments)
    source, target = given.at_least(2, "cp")[:2]
    there, here = _split(source), _split(target)
    if bool(there) == bool(here):
        raise Failure("must specify one container source, and copy between it and a local path")
    try:
        if there:
            files, path = _opened(*there)
            _out(files, path, target)
        elif here:
            files, path = _opened(*here)
            _into(files, os.path.realpath(source) if given.on("follow-link") else source, path)
    except DiskFullError as error:  # the disk is this machine's: no daemon says that
        raise Failure(str(error)) from error
    except SandboxFileTooLargeError as error:
        raise Failure(
            f"{source} has more than {COPY_MOST >> 30} GiB, which are copied at most; copy a part, or write "
            f"`openmodal sandbox cp --max-bytes 0 {source} LOCAL`"
        ) from error
    return 0


def _split(text: str) -> tuple[str, str] | None:
    """`CONTAINER:PATH` as both; None for a local path."""
    word, colon, path = text.partition(":")
    return (word, path) if colon and word and not text.startswith(("/", ".")) else None


def _opened(word: str, path: str) -> tuple[Filesystem, str]:
    """The files of a container, as root, whatever its user; paths count from the root folder."""
    return find_running(word).sandbox.filesystem.as_user("0"), f"/{path.lstrip('/')}"


def _out(files: Filesystem, path: str, target: str) -> None:
    if not files.exists(path):
        raise daemon_says(f"Could not find the file {path} in container")
    if target == "-":
        _pack(files, path)
        return
    content = path.endswith("/.") or path == "/"
    is_dir = files.stat(path).is_dir
    if not is_dir and target.endswith("/") and not os.path.isdir(target):
        raise Failure(f"destination {target!r} must be a folder that is there")
    if os.path.isdir(target) and not (content and is_dir):
        target = os.path.join(target, posixpath.basename(posixpath.normpath(path)))
    elif not os.path.isdir(os.path.dirname(os.path.abspath(target))):
        raise Failure(f"invalid output path: folder {os.path.dirname(target)!r} does not exist")
    if content and os.path.isdir(target):
        for each in files.list_files(path):
            files.copy_to_local(posixpath.join(path, each.name), os.path.join(target, each.name), max_bytes=COPY_MOST)
        return
    files.copy_to_local(path, target, max_bytes=COPY_MOST)


def _into(files: Filesystem, source: str, path: str) -> None:
    if source == "-":
        _unpack(files, path)
        return
    if not os.path.lexists(source):
        raise Failure(f"lstat {source}: no such file or directory")
    content = source.endswith(("/.", "/..")) or source in (".", "..")
    found = files.stat(path) if files.exists(path) else None
    parent = posixpath.dirname(path.rstrip("/")) or "/"
    if found is None and not files.exists(parent):
        raise daemon_says(f"Could not find the file {parent} in container")
    if os.path.isdir(source):
        if found and not found.is_dir:
            raise Failure("cannot copy directory to a file")
    elif found is None and path.endswith("/"):
        raise Failure(f"destination directory {path} does not exist")
    if found and found.is_dir and not (content and os.path.isdir(source)):
        path = posixpath.join(path, os.path.basename(os.path.abspath(source)))
    files.copy_from_local(os.path.abspath(source), path.rstrip("/") or "/")


def _pack(files: Filesystem, path: str) -> None:
    """Write an archive of a file or folder to standard output, when all of it has come: a link that
    breaks has it sent anew."""
    import shutil
    import tempfile

    from openmodal._packed import Packer

    name = posixpath.basename(posixpath.normpath(path)) or "."
    with temporary_full_named(), tempfile.TemporaryFile() as packed:
        run_sync(files._pull(path, lambda: Packer(packed, path, name)))
        with disk_full_named("standard output", OTHER_DISK):
            shutil.copyfileobj(packed, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _unpack(files: Filesystem, path: str) -> None:
    """Put the archive on standard input into a folder."""
    from openmodal.build.unpack import unpack_archive

    if not (files.exists(path) and files.stat(path).is_dir):
        raise daemon_says(f"extraction point {path} is not a folder")
    with _halfmade.temporary() as folder:
        with temporary_full_named():
            unpack_archive(sys.stdin.buffer, folder)
        for name in sorted(os.listdir(folder)):
            files.copy_from_local(os.path.join(folder, name), posixpath.join(path, name))
