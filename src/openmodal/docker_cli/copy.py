"""`docker cp`: files, folders and tar archives, into a container and out of it."""

from __future__ import annotations

import os
import posixpath
import sys
import tempfile
from typing import TYPE_CHECKING

from openmodal import Filesystem
from openmodal.docker_cli.containers import find_running
from openmodal.docker_cli.failures import Failure, daemon_says
from openmodal.docker_cli.flags import Flags

if TYPE_CHECKING:
    from tarfile import TarInfo


def cp(arguments: list[str]) -> int:
    """Copy CONTAINER:PATH to a local path, or the other way round; `-` is a tar archive."""
    given = Flags("cp", switches="archive,a follow-link,L quiet,q").parse(arguments)
    source, target = given.at_least(2, "cp")[:2]
    there, here = _split(source), _split(target)
    if bool(there) == bool(here):
        raise Failure("must specify one container source, and copy between it and a local path")
    if there:
        files, path = _opened(*there)
        _out(files, path, target)
    elif here:
        files, path = _opened(*here)
        _into(files, os.path.realpath(source) if given.on("follow-link") else source, path)
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
            files.copy_to_local(posixpath.join(path, each.name), os.path.join(target, each.name), max_bytes=None)
        return
    files.copy_to_local(path, target, max_bytes=None)


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
    """Write an archive of a file or folder to standard output."""
    import tarfile

    with tempfile.TemporaryDirectory(prefix="openmodal-cp-") as folder:
        name = posixpath.basename(posixpath.normpath(path)) or "."
        local = os.path.join(folder, "root" if name == "." else name)
        files.copy_to_local(path, local, max_bytes=None)
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
            archive.add(local, name, filter=_of_root)


def _unpack(files: Filesystem, path: str) -> None:
    """Put the archive on standard input into a folder."""
    from openmodal.build.unpack import unpack_archive

    if not (files.exists(path) and files.stat(path).is_dir):
        raise daemon_says(f"extraction point {path} is not a folder")
    with tempfile.TemporaryDirectory(prefix="openmodal-cp-") as folder:
        unpack_archive(sys.stdin.buffer, folder)
        for name in sorted(os.listdir(folder)):
            files.copy_from_local(os.path.join(folder, name), posixpath.join(path, name))


def _of_root(entry: TarInfo) -> TarInfo:
    """An entry of an archive whose owner is root, as the folder's that it was read from."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
