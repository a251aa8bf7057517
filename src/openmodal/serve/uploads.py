"""Local files of the client. Each is sent once: small ones with a call, large ones by HTTP PUT."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from modal_proto import api_pb2 as api
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from openmodal.errors import InvalidError, NotFoundError
from openmodal.serve.calls import Call, log, serves
from openmodal.serve.door import Door

_MODE = 0o644


class Uploads:
    """Serves the calls about local files."""

    def __init__(self, door: Door) -> None:
        self._door = door

    @serves("MountBatchedCheckExistence")
    async def missing(self, request: Any, call: Call) -> Any:
        kept = self._door.kept
        lacking = [digest for digest in request.sha256_hex_hashes if not kept.has_file(digest)]
        return api.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=lacking)

    @serves("MountPutFile")
    async def put(self, request: Any, call: Call) -> Any:
        kept = self._door.kept
        if request.WhichOneof("data_oneof") == "data":
            kept.keep_bytes(request.data, request.sha256_hex)
        # What came by PUT is here under its digest; without either, the client only asks.
        return api.MountPutFileResponse(exists=kept.has_file(request.sha256_hex))

    @serves("MountGetOrCreate")
    async def mount(self, request: Any, call: Call) -> Any:
        if request.deployment_name:
            raise NotFoundError(
                f"there is no mount {request.deployment_name!r}; add_python= is not supported, begin with an image that has Python"
            )
        files = {file.filename: (file.sha256_hex, file.mode or _MODE) for file in request.files}
        id = self._door.kept.keep_tree(files)
        metadata = api.MountHandleMetadata(content_checksum_sha256_hex=hashlib.sha256(id.encode()).hexdigest())
        return api.MountGetOrCreateResponse(mount_id=id, handle_metadata=metadata)

    @serves("BlobCreate")
    async def blob(self, request: Any, call: Call) -> Any:
        door, size = self._door, request.content_length
        if size > door.limits.upload:
            raise InvalidError(
                f"the file has {size} bytes, and this door takes {door.limits.upload}; start it with a larger --max-upload"
            )
        digest = base64.b64decode(request.content_sha256_base64).hex()
        url = f"{door.url}/blobs/{door.access.signed(f'{digest}/{size}')}"
        id = f"bl-{digest}"
        urls = api.UploadUrlList(items=[url])
        answer = api.BlobCreateResponse(blob_id=id, upload_url=url)
        if "upload_urls" in api.BlobCreateResponse.DESCRIPTOR.fields_by_name:
            answer = api.BlobCreateResponse(blob_id=id, upload_url=url, blob_ids=[id], upload_urls=urls)
        return answer

    async def receive(self, request: Request) -> Response:
        """PUT of a blob, to a URL that `blob` gave."""
        digest, size = (str(request.path_params[name]) for name in ("digest", "size"))
        if not self._door.access.is_signed(f"{digest}/{size}", *proof(request)):
            return PlainTextResponse("this URL is not one of this door's, or it is too old\n", 403)
        md5 = hashlib.md5(usedforsecurity=False)
        try:
            with self._door.kept.new_file() as file:
                async for piece in _at_most(request.stream(), int(size)):
                    md5.update(piece)
                    file.write(piece)
                # It is read once more, for its digest: seconds for a large one, of nobody else's.
                await asyncio.to_thread(self._door.kept.keep_file, file, digest)
        except InvalidError as error:
            return PlainTextResponse(f"{error}\n", 400)
        except OSError as error:
            log.warning("an upload was not kept", extra={"reason": str(error)})
            return PlainTextResponse(f"the door cannot keep the file: {error.strerror}\n", 507)
        return Response(status_code=200, headers={"ETag": f'"{md5.hexdigest()}"'})


def proof(request: Request) -> tuple[int, str]:
    """Until when a URL is good, and the signature that says so."""
    return request.path_params["until"], request.path_params["signature"]


async def _at_most(stream: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    async for piece in stream:
        size -= len(piece)
        if size < 0:
            raise InvalidError("more bytes came than were announced")
        yield piece


__all__ = ["Uploads", "proof"]
