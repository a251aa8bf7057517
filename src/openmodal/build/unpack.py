"""The one place where an archive of somebody else becomes files: a layer's tar, into an empty
folder.

A member's folder is opened by openat2(2) with RESOLVE_IN_ROOT, so the kernel itself keeps links,
".." and mounts inside, and the last component is never followed. An error names the member that is
refused; the state of the folder is then undefined, and its owner removes it.
"""

from __future__ import annotations

import bz2
import ctypes
import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, cast

import msgspec

from openmodal import _trash
from openmodal.build.names import DEEPEST
from openmodal.build.tar import MOST_ID, HostileTar, Member, Reader, shown
from openmodal.errors import EngineError

_OPENAT2 = 437  # the same on every architecture
_NO_XDEV, _NO_MAGICLINKS, _IN_ROOT = 0x01, 0x02, 0x10
_WHITEOUT, _OPAQUE, _AUFS = b".wh.", b".wh..wh..opq", b".wh..wh."
_LATEST = 1 << 33  # seconds; later times do not fit every file system
_CHUNK = 1 << 18


class Limits(msgspec.Struct, frozen=True):
    """What one layer may be: far above any real image, far below what fills a disk unnoticed.

    `ratio` (unpacked to packed) counts only from `ratio_floor` bytes on: small files of zeros are
    no bomb.
    """

    bytes: int = 64 << 30
    members: int = 2_000_000
    ratio: int = 200
    ratio_floor: int = 512 << 20
    name: int = 255
    path: int = 4096
    depth: int = DEEPEST


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _open_folder(root: int, path: bytes) -> int:
    """Open a folder below `root` as if that were /. ENOENT, ELOOP, ENOTDIR… come as OSError."""
    how = _OpenHow(os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, 0, _NO_XDEV | _NO_MAGICLINKS | _IN_ROOT)
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(_OPENAT2, root, ctypes.c_char_p(path or b"."), ctypes.byref(how), ctypes.sizeof(how))
    if fd < 0:
        number = ctypes.get_errno()
        if number == 38:
            raise EngineError("images cannot be unpacked: this kernel has no openat2(2); use Linux 5.6 or newer")
        raise OSError(number, os.strerror(number), path)
    return fd


class Unpacker:
    """Writes members below a folder. Use as a context manager."""

    def __init__(self, folder: str | os.PathLike[str], limits: Limits, *, layer: bool = True) -> None:
        """`layer`: names may be whiteouts, and as root members have owners. Else all is ours."""
        self._layer = layer
        self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._limits = limits
        self._as_root = layer and os.geteuid() == 0
        self._opaque = "trusted.overlay.opaque" if self._as_root else "user.overlay.opaque"
        # The last used folder: archives list a folder's files together.
        self._parent: tuple[bytes, int] | None = None

    def __enter__(self) -> Unpacker:
        return self

    def __exit__(self, *unused: object) -> None:
        self._forget()
        os.close(self._root)

    def add(self, member: Member, reader: Reader) -> None:
        """Write one member.

        Raises:
            HostileTar: it is refused.
        """
        path = self._checked(member)
        try:
            if path:
                self._write(member, path, reader)
            elif member.kind == "folder":
                self._finish_folder(self._root, member)
            else:
                raise HostileTar(f"{shown(member.name)}: something else in the place of /; refused")
        except OSError as error:
            # ENOSPC, EDQUOT, EIO, EMFILE, ENOMEM: not the archive's fault.
            if error.errno in (28, 122, 5, 24, 12):
                raise
            raise HostileTar(f"{shown(member.name)}: cannot be unpacked: {error.strerror}") from error

    def _checked(self, member: Member) -> tuple[bytes, ...]:
        limits = self._limits
        for name in (member.name, member.link):
            if b"\0" in name or len(name) > limits.path:
                raise HostileTar(f"{shown(member.name)}: a name with NUL or more than {limits.path} bytes; refused")
        path = tuple(part for part in member.name.split(b"/") if part not in (b"", b"."))
        if not member.name or b".." in path:
            raise HostileTar(f"{shown(member.name)}: a path that leaves its folder; refused")
        if len(path) > limits.depth or any(len(part) > limits.name for part in path):
            raise HostileTar(f"{shown(member.name)}: a path too deep or a name too long; refused")
        if self._layer and max(member.uid, member.gid) > MOST_ID:
            raise HostileTar(
                f"{shown(member.name)}: the owner {member.uid}:{member.gid} is above {MOST_ID}, the last id of a sandbox; refused"
            )
        return path

    # -------------------------------------------------------------------------------------- members

    def _write(self, member: Member, path: tuple[bytes, ...], reader: Reader) -> None:
        parent, name = self._folder(path[:-1]), path[-1]
        if self._layer and name.startswith(_WHITEOUT):
            self._whiteout(member, parent, name)
        elif member.kind == "folder":
            self._make_folder(member, parent, name)
        elif member.kind == "device":
            # A sandbox has its own /dev, and old images bring one; elsewhere a device is an attack.
            if not self._layer or path[0] != b"dev":
                raise HostileTar(f"{shown(member.name)}: a device outside /dev; refused")
        else:
            self._make_other(member, parent, name, reader)

    def _make_folder(self, member: Member, parent: int, name: bytes) -> None:
        hides = self._clear(parent, name, keep_folder=True)
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if hides and self._layer:
                os.setxattr(fd, self._opaque, b"y")
            self._finish_folder(fd, member)
        finally:
            os.close(fd)

    def _finish_folder(self, fd: int, member: Member) -> None:
        self._own(member, fd)
        os.fchmod(fd, member.mode if self._as_root else member.mode | 0o700)
        self._set_xattrs(fd, member)

    def _make_other(self, member: Member, parent: int, name: bytes, reader: Reader) -> None:
        if member.kind == "hardlink":
            self._hardlink(member, parent, name)
            return
        self._clear(parent, name)
        if member.kind == "link":
            os.symlink(member.link, name, dir_fd=parent)
            self._own_at(member, parent, name)
        elif member.kind == "fifo":
            os.mkfifo(name, 0o600, dir_fd=parent)
            self._own_at(member, parent, name)
            os.chmod(name, member.mode & 0o777, dir_fd=parent)  # ours, just made: no link to follow
        else:
            self._file(member, parent, name, reader)

    def _file(self, member: Member, parent: int, name: bytes, reader: Reader) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            while data := reader.data(_CHUNK):
                while data:
                    data = data[os.write(fd, data) :]
            self._own(member, fd)
            os.fchmod(fd, member.mode)  # after the owner: changing that takes setuid away
            self._set_xattrs(fd, member)
            time = max(0.0, min(member.mtime, _LATEST)) if member.mtime == member.mtime else 0.0
            os.utime(fd, (time, time))
        finally:
            os.close(fd)

    def _hardlink(self, member: Member, parent: int, name: bytes) -> None:
        """The folder began empty: a link reaches nothing but what came from this archive."""
        target = tuple(part for part in member.link.split(b"/") if part not in (b"", b"."))
        if not target or b".." in target:
            raise HostileTar(f"{shown(member.name)}: a hard link to {shown(member.link)}; refused")
        source = _open_folder(self._root, b"/".join(target[:-1]))
        try:
            info = os.lstat(target[-1], dir_fd=source)
            if os.path.samestat(os.fstat(source), os.fstat(parent)) and target[-1] == name:
                return
            if not stat.S_ISREG(info.st_mode) and not stat.S_ISLNK(info.st_mode):
                raise HostileTar(f"{shown(member.name)}: a hard link to something that is no file; refused")
            self._clear(parent, name)
            os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    # ------------------------------------------------------------------------------------ whiteouts

    def _whiteout(self, member: Member, parent: int, name: bytes) -> None:
        """`.wh.x` removes x of lower layers: a device 0:0, or an opaque folder, in overlayfs."""
        if name == _OPAQUE:
            os.setxattr(parent, self._opaque, b"y")
            return
        if name.startswith(_AUFS):
            return  # aufs's own notes
        gone = name[len(_WHITEOUT) :]
        if gone in (b"", b".", b".."):
            raise HostileTar(f"{shown(member.name)}: a whiteout of nothing; refused")
        if (info := _info(parent, gone)) is None:
            os.mknod(gone, stat.S_IFCHR, 0, dir_fd=parent)
        elif stat.S_ISDIR(info.st_mode):  # this layer has another one in its place
            fd = os.open(gone, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.setxattr(fd, self._opaque, b"y")
            finally:
                os.close(fd)

    def _clear(self, parent: int, name: bytes, *, keep_folder: bool = False) -> bool:
        """Make room: the later of two members wins. True if the first hid lower layers."""
        info = _info(parent, name)
        if info is None or (keep_folder and stat.S_ISDIR(info.st_mode)):
            return False
        self._forget_below()
        if stat.S_ISDIR(info.st_mode):
            _trash.remove(os.fsdecode(name), dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)
        return not stat.S_ISDIR(info.st_mode)

    # -------------------------------------------------------------------------------------- folders

    def _folder(self, path: tuple[bytes, ...]) -> int:
        """A member's folder, made if the archive forgot it. Valid until the next call."""
        key = b"/".join(path)
        if self._parent is None or self._parent[0] != key:
            self._forget()
            self._parent = (key, self._made(path))
        return self._parent[1]

    def _made(self, path: tuple[bytes, ...]) -> int:
        try:
            return _open_folder(self._root, b"/".join(path))
        except FileNotFoundError:
            if not path:
                raise
        parent = self._made(path[:-1])
        try:
            info = _info(parent, path[-1])
            if info is not None and stat.S_ISCHR(info.st_mode):
                os.unlink(path[-1], dir_fd=parent)
            os.mkdir(path[-1], 0o755, dir_fd=parent)
            made = os.open(path[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            os.fchmod(made, 0o755)  # the caller's umask had taken something away
            return made
        finally:
            os.close(parent)

    def _forget(self) -> None:
        parent, self._parent = self._parent, None
        if parent is not None:
            os.close(parent[1])

    def _forget_below(self) -> None:
        """A name may mean another folder now. The current member still uses the descriptor."""
        if self._parent is not None:
            self._parent = (b"\0", self._parent[1])

    # ----------------------------------------------------------------------------------- attributes

    def _own(self, member: Member, fd: int) -> None:
        if self._as_root:
            os.fchown(fd, member.uid, member.gid)

    def _own_at(self, member: Member, parent: int, name: bytes) -> None:
        if self._as_root:
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)

    def _set_xattrs(self, fd: int, member: Member) -> None:
        """Only what programs use: `trusted.overlay.*` would speak to overlayfs in our name."""
        for name, value in member.xattrs.items():
            harmless = name.startswith("user.") and not name.startswith("user.overlay.")
            if harmless or (name == "security.capability" and self._as_root):
                os.setxattr(fd, name, value)


def _info(parent: int, name: bytes) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return None


def unpack(
    read: Callable[[int], bytes],
    folder: str | os.PathLike[str],
    packed: int,
    limits: Limits | None = None,
    *,
    layer: bool = True,
) -> None:
    """Unpack an uncompressed tar stream into an empty folder. `packed` is the stream's compressed
    size.

    Raises:
        HostileTar: something in it is refused, or it is broken.
    """
    limits = limits or Limits()
    most = min(limits.bytes, max(limits.ratio_floor, packed * limits.ratio))
    total = 0

    def counted(size: int) -> bytes:
        nonlocal total
        data = read(size)
        total += len(data)
        if total > most:
            raise HostileTar(f"the archive is larger than {most} bytes when unpacked ({packed} packed); refused")
        return data

    reader = Reader(counted)
    with Unpacker(folder, limits, layer=layer) as unpacker:
        for count, member in enumerate(reader.members(), 1):
            if count > limits.members:
                raise HostileTar(f"the archive has more than {limits.members} members; refused")
            if member.size > most:
                raise HostileTar(f"{shown(member.name)}: says that it has {member.size} bytes; refused")
            unpacker.add(member, reader)
    while counted(1 << 18):  # the digest is of everything, also of what comes after the end
        pass


def unpack_archive(file: IO[bytes], folder: str | os.PathLike[str]) -> None:
    """Unpack a tar archive that is no layer, plain or packed by gzip, bzip2 or xz, into an empty
    folder. It may come from a sandbox. tarfile's filters let hard links to files outside through,
    and before Python 3.11.13 more.

    Raises:
        HostileTar: something in it is refused, or it is broken.
    """
    head = io.BufferedReader(cast("Any", file))
    openers: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    opener = openers.get(head.peek(2)[:2])
    try:
        with opener(head) if opener else head as stream:
            unpack(stream.read, folder, sys.maxsize, layer=False)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise HostileTar(f"the archive is broken: {error}") from error
