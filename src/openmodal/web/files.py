"""The files of one sandbox: listed, shown, downloaded, uploaded, and how they differ from the
image.

Names are hostile. They are shown as text, and come back as percent-encoded bytes, since they need
not be UTF-8.
"""

from __future__ import annotations

import logging
import posixpath
import tempfile
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, quote

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from openmodal._dual import run_async
from openmodal._journal import plain
from openmodal.errors import Error, InvalidError, temporary_full_named
from openmodal.filesystem import FileInfo
from openmodal.sandbox import Sandbox

_SHOWN = 256 << 10
"""Bytes of a file that are shown; a download has all."""

log = logging.getLogger("openmodal.web")

_LISTED = 5000
_PIECE = 1 << 20


async def listed(sandbox: Sandbox, request: Request) -> Response:
    """What is in a folder: folders first."""
    found = await sandbox.filesystem.list_files.aio(_path(request))
    found.sort(key=lambda info: (not info.is_dir, info.name))
    return JSONResponse({"files": [_row(info) for info in found[:_LISTED]], "more": max(0, len(found) - _LISTED)})


async def given(sandbox: Sandbox, request: Request) -> Response:
    """A file: its beginning as JSON, or all of it as an attachment (`?download`)."""
    path = _path(request)
    info = await sandbox.filesystem.stat.aio(path)
    if info.kind != "file":
        raise InvalidError(f"{plain(path)} is no file: only files are shown and downloaded")
    if "download" in request.query_params:
        # Some files are there and cannot be read: that is told before the answer begins.
        first = await _piece(sandbox, path, 0)
        return _Download(_pieces(sandbox, path, first), posixpath.basename(path))
    data = await sandbox.filesystem.read_bytes.aio(path, 0, _SHOWN)
    text = data.decode("utf-8", "replace")
    return JSONResponse({**_row(info), "text": text, "binary": b"\0" in data, "whole": len(data) >= info.size})


async def taken(sandbox: Sandbox, request: Request) -> Response:
    """Write what is uploaded to a file; a file that is there is replaced when all has come."""
    with temporary_full_named(), tempfile.TemporaryFile() as file:
        async for piece in request.stream():
            file.write(piece)
        file.flush()
        await run_async(sandbox.filesystem._push(file, _path(request)))
    return JSONResponse({})


async def diff(sandbox: Sandbox) -> Response:
    """Which files differ from the image."""
    found = await sandbox.diff.aio()
    shown = [msgspec.to_builtins(change) | {"path": plain(change.path)} for change in found[:_LISTED]]
    return JSONResponse({"changes": shown, "more": max(0, len(found) - _LISTED)})


class _Download(StreamingResponse):
    """An attachment. If the rest cannot be read, it ends without its end: the connection is cut, so
    that nobody takes the part for all."""

    def __init__(self, pieces: AsyncIterator[bytes], name: str) -> None:
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{_quoted(name)}"}
        super().__init__(pieces, media_type="application/octet-stream", headers=headers)

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except Error as error:
            log.warning("a download ended before its end: %s", error)


async def _pieces(sandbox: Sandbox, path: str, piece: bytes) -> AsyncIterator[bytes]:
    at = 0
    while piece:
        yield piece
        at += len(piece)
        piece = await _piece(sandbox, path, at)


async def _piece(sandbox: Sandbox, path: str, at: int) -> bytes:
    return await sandbox.filesystem.read_bytes.aio(path, at, _PIECE)


def _path(request: Request) -> str:
    found = parse_qs(request.url.query, errors="surrogateescape").get("path", ["/"])
    return found[-1]


def _quoted(path: str) -> str:
    return quote(path, errors="surrogateescape")


def _row(info: FileInfo) -> dict[str, object]:
    return {
        "name": plain(info.name),
        "path": plain(info.path),
        "at": _quoted(info.path),
        "target": plain(info.target),
        "kind": info.kind,
        "size": info.size,
        "mode": f"{info.mode & 0o7777:o}",
        "mtime": info.mtime,
        "owner": f"{info.uid}:{info.gid}",
    }


__all__ = ["diff", "given", "listed", "taken"]
