"""Layer files as streams of uncompressed bytes: gzip, zstd or plain, told by their first bytes."""

from __future__ import annotations

import hashlib
import sys
import zlib
from collections.abc import Callable
from typing import IO, Any

from openmodal.errors import RegistryError

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_LARGEST_WINDOW = 27  # log2: 128 MiB of memory, zstd's own default; an archive may ask for 2 GiB
_CHUNK = 1 << 18


class Stream:
    """Reads and hashes. What a bomb expands to never exceeds one chunk in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hasher = hashlib.sha256()
        magic = file.read(4)
        file.seek(0)
        self._next: Callable[[], bytes] = _plain(file)
        if magic.startswith(_GZIP):
            self._next = _Gzip(file).next
        elif magic == _ZSTD:
            self._next = _Zstd(file).next
        self._left = b""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the end."""
        if not self._left:
            self._left = self._next()
            self._hasher.update(self._left)
        data, self._left = self._left[:size], self._left[size:]
        return data

    @property
    def digest(self) -> str:
        """Of everything that was read so far."""
        return f"sha256:{self._hasher.hexdigest()}"


def _plain(file: IO[bytes]) -> Callable[[], bytes]:
    return lambda: file.read(_CHUNK)


class _Gzip:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._codec = zlib.decompressobj(wbits=31)
        self._input = b""

    def next(self) -> bytes:
        while True:
            if self._codec.eof:
                # Several gzip members are one stream (pigz, stargz); zeros after the last are
                # padding.
                self._input = (self._codec.unused_data or self._file.read(_CHUNK)).lstrip(b"\0")
                if not self._input:
                    return b""
                self._codec = zlib.decompressobj(wbits=31)
            self._input = self._input or self._file.read(_CHUNK)
            ended = not self._input
            data = self._decompress()
            if data:
                return data
            if ended and not self._codec.eof:
                raise RegistryError("a layer's gzip data is cut off")

    def _decompress(self) -> bytes:
        try:
            data = self._codec.decompress(self._input, _CHUNK)
        except zlib.error as error:
            raise RegistryError(f"a layer's gzip data is broken: {error}") from error
        self._input = self._codec.unconsumed_tail
        return data


class _Zstd:
    def __init__(self, file: IO[bytes]) -> None:
        self._zstd = _module()
        self._file = file
        self._codec = self._new()

    def _new(self) -> Any:
        return self._zstd.ZstdDecompressor(options={self._zstd.DecompressionParameter.window_log_max: _LARGEST_WINDOW})

    def next(self) -> bytes:
        data = b""
        while not data:
            if self._codec.eof:
                rest = self._codec.unused_data or self._file.read(_CHUNK)
                if not rest:
                    return b""
                self._codec = self._new()
            else:
                rest = self._file.read(_CHUNK) if self._codec.needs_input else b""
                if not rest and self._codec.needs_input:
                    raise RegistryError("a layer's zstd data is cut off")
            data = self._decompress(rest)
        return data

    def _decompress(self, rest: bytes) -> bytes:
        try:
            data: bytes = self._codec.decompress(rest, _CHUNK)
        except self._zstd.ZstdError as error:
            raise RegistryError(f"a layer's zstd data is broken or asks for too much memory: {error}") from error
        return data


def _module() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
