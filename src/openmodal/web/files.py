"""The files of one sandbox: listed, shown, downloaded, uploaded, and how they differ from the
image.

Names are hostile. They are shown as text, and come back as percent-encoded bytes, since they need
not be UTF-8.
"""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, quote

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from openmodal._dual import run_async
from openmodal._journal import plain
from openmodal.errors import OTHER_TEMPORARY, InvalidError, disk_full_named
from openmodal.filesystem import FileInfo
from openmodal.sandbox import Sandbox

_SHOWN = 256 << 10
"""Bytes of a file that are shown; a download has all."""

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
        name = _quoted(posixpath.basename(path))
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
        return StreamingResponse(_pieces(sandbox, path), media_type="application/octet-stream", headers=headers)
    data = await sandbox.filesystem.read_bytes.aio(path, 0, _SHOWN)
    text = data.decode("utf-8", "replace")
    return JSONResponse({**_row(info), "text": text, "binary": b"\0" in data, "whole": len(data) >= info.size})


async def taken(sandbox: Sandbox, request: Request) -> Response:
    """Write what is uploaded to a file; a file that is there is replaced when all has come."""
    with disk_full_named(tempfile.gettempdir(), OTHER_TEMPORARY), tempfile.TemporaryFile() as file:
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


async def _pieces(sandbox: Sandbox, path: str) -> AsyncIterator[bytes]:
    at = 0
    while piece := await sandbox.filesystem.read_bytes.aio(path, at, _PIECE):
        yield piece
        at += len(piece)


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
