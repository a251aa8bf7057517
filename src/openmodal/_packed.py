"""A tree of a sandbox as a tar file, with the owners that it has there, for an image of it."""

from __future__ import annotations

import tarfile
from types import TracebackType
from typing import IO, Self

from openmodal._localcopy import PER_ENTRY, no_copy
from openmodal._wire import Entry
from openmodal.errors import too_large

_MOST = 16 << 30  # bytes
_BLOCK = tarfile.BLOCKSIZE
_KINDS = {"d": tarfile.DIRTYPE, "f": tarfile.REGTYPE, "l": tarfile.SYMTYPE}


class Packer:
    """Writes the entries of a tree as they come; begun again, it begins anew.

    Sockets, pipes and devices are left out, and hard links become files of their own.
    """

    def __init__(self, file: IO[bytes], source: str, name: str = ".") -> None:
        """`source`: what is packed, for errors; `name`: what its root is called."""
        self._file = file
        self._source = source
        self._name = name
        self._left = _MOST

    def __enter__(self) -> Self:
        self._file.seek(0)
        self._file.truncate()
        self._left = _MOST
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to end."""

    def begin(self, entry: Entry) -> None:
        """The next entry; `write` and `skip` give the bytes of a file.

        Raises:
            InvalidError: what was asked for is no file, folder or link.
            SandboxFileTooLargeError: there is more than is packed at most; so do they.
        """
        self._pad()
        self._take(PER_ENTRY)
        if entry.kind not in _KINDS:
            if not entry.path:
                raise no_copy()
            return
        info = tarfile.TarInfo(self._called(entry.path.decode("utf-8", "surrogateescape")))
        info.type, info.mode, info.uid, info.gid = _KINDS[entry.kind], entry.mode & 0o7777, entry.uid, entry.gid
        # Whole seconds: a fraction needs a header before the header, and Docker does not take that.
        info.mtime = entry.mtime // 10**9
        info.size = entry.size if entry.kind == "f" else 0
        info.linkname = entry.target.decode("utf-8", "surrogateescape")
        self._file.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))

    def write(self, data: memoryview) -> None:
        """Bytes of the file begun last."""
        self._take(len(data))
        self._file.write(data)

    def skip(self, size: int) -> None:
        """A hole in the file begun last."""
        self._take(size)
        self._file.truncate(self._file.seek(size, 1))

    def commit(self) -> None:
        """The tree is whole; the file is read from its beginning."""
        self._pad()
        self._file.write(bytes(2 * _BLOCK))
        self._file.seek(0)

    def _called(self, path: str) -> str:
        return path if path and self._name == "." else f"{self._name}/{path}".rstrip("/")

    def _pad(self) -> None:
        self._file.write(bytes(-self._file.tell() % _BLOCK))

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            text = (
                f"the folder has more than {_MOST >> 30} GiB, holes counted; take a snapshot of a part of it, or of the "
                "whole sandbox"
            )
            raise too_large(self._source, _MOST, text)
