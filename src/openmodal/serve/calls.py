"""How a method of ours serves calls of theirs, and what becomes of our errors.

A room is a class whose methods have `@serves("NameOfTheCall", …)`. A method takes the request and
the `Call`, and returns the answer; an asynchronous generator gives a stream of them.
"""

from __future__ import annotations

import inspect
import logging
import sys
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpclib.const import Handler, Status
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.exceptions import GRPCError
from grpclib.server import Stream
from modal_proto import api_pb2 as api

from openmodal.errors import (
    AlreadyExistsError,
    Error,
    InvalidError,
    NotFoundError,
    SandboxNotRunningError,
    UnsupportedError,
)

F = TypeVar("F", bound=Callable[..., Any])
Admit = Callable[["Call", Any], None]

log = logging.getLogger("openmodal.serve")

_MOST = 32 << 20
"""Bytes of a message. Clients send files of 4 MiB and more in other ways."""

_STATUSES: tuple[tuple[type[BaseException], Status], ...] = (
    (InvalidError, Status.INVALID_ARGUMENT),
    (NotFoundError, Status.NOT_FOUND),
    (SandboxNotRunningError, Status.NOT_FOUND),
    (AlreadyExistsError, Status.ALREADY_EXISTS),
    (UnsupportedError, Status.UNIMPLEMENTED),
    (Error, Status.FAILED_PRECONDITION),
)


@dataclass
class Call:
    """One call: what came with it, and what is to be said with the answer."""

    name: str
    metadata: Mapping[str, Any]
    stream: Stream[Any, Any]
    warnings: list[str] = field(default_factory=list[str])

    @property
    def key(self) -> str:
        """The same if the client sends one call again; "" if it says nothing."""
        return str(self.metadata.get("x-idempotency-key", ""))

    @property
    def client(self) -> str:
        """The client's version."""
        return str(self.metadata.get("x-modal-client-version", ""))

    @property
    def unread(self) -> int:
        """How many bytes of the answers the client has not said that it has read (RFC 9113, section
        5.2): they may be under way, and a client reads them late, and says so in large steps."""
        connection: Any = self.stream._stream._h2_connection
        if (stream := connection.streams.get(self.stream._stream.id)) is None:
            return sys.maxsize  # the call has ended: the client says no more what it reads
        return int(connection.remote_settings.initial_window_size - stream.outbound_flow_control_window)

    def warn(self, text: str) -> None:
        """The client prints it as a warning."""
        if text not in self.warnings:
            self.warnings.append(text)


class Details(StatusDetailsCodecBase):
    """What is sent beside an error's text, as the client reads it."""

    def encode(self, status: Status, message: str | None, details: Sequence[Message] | None) -> bytes:
        whole = api.RPCStatus(code=status.value, message=message or "")
        for detail in details or ():
            whole.details.add().Pack(detail, type_url_prefix="type.modal.com/")
        data: bytes = whole.SerializeToString()
        return data

    def decode(self, status: Status, message: str | None, data: bytes) -> Any:
        raise NotImplementedError("a door sends errors, and gets none")


def serves(*names: str) -> Callable[[F], F]:
    """The method serves these calls."""

    def mark(method: F) -> F:
        method.__dict__["serves"] = names
        return method

    return mark


def handlers(base: type, rooms: tuple[object, ...], admit: Admit) -> dict[str, Handler]:
    """The handlers of one gRPC service, by path: of the rooms, and of refusals for all other calls.

    Args:
        base: the service's abstract class, of the client's wheel.
        rooms: objects with methods that serve its calls.
        admit: called with each call, before a byte of its request is taken, and again with the
            request (None before).
    """
    served = {
        name: method
        for room in rooms
        for _, method in inspect.getmembers(room, callable)
        for name in getattr(method, "serves", ())
    }
    # The classes are abstract, and their list of calls is a method.
    methods = {name: served.get(name) or _refuses(name) for name in base.__dict__["__abstractmethods__"]}
    table: Mapping[str, Handler] = type("Service", (base,), dict.fromkeys(methods))().__mapping__()
    return {
        path: handler._replace(func=_handles(path.rpartition("/")[2], methods[path.rpartition("/")[2]], admit))
        for path, handler in table.items()
    }


def _refuses(name: str) -> Callable[..., Awaitable[Any]]:
    async def refuse(request: Any, call: Call) -> Any:
        raise UnsupportedError(
            f"OpenModal does not serve {name}: it runs sandboxes, their images, files and secrets; "
            "docs/coming-from-modal.md lists what is there"
        )

    return refuse


def _handles(name: str, method: Callable[..., Any], admit: Admit) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
    async def handle(stream: Stream[Any, Any]) -> None:
        call = Call(name, stream.metadata or {}, stream)
        try:
            admit(call, None)
            _bound(stream)
            request = await stream.recv_message()
            if request is None:
                raise GRPCError(Status.INVALID_ARGUMENT, "the call has no request")
            admit(call, request)
            await _answer(method(request, call), stream)
        except GRPCError as error:
            log.info("refused", extra={"call": name, "status": error.status.name, "reason": error.message})
            raise
        except Error as error:
            raise _status_of(error, name) from error
        # A bug of ours: a status that the client does not take for one that goes away by itself.
        except BaseException as error:
            if not isinstance(error, Exception):
                raise
            log.error("failed", exc_info=error, extra={"call": name})
            raise GRPCError(
                Status.FAILED_PRECONDITION, f"{name} failed in OpenModal ({type(error).__name__}); its log has more"
            ) from error
        if call.warnings:
            text = urllib.parse.quote("; ".join(call.warnings), safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~\"")
            await stream.send_trailing_metadata(metadata={"x-modal-warning": text})

    return handle


def _bound(stream: Stream[Any, Any]) -> None:
    """Take no message that is longer than clients send: it is held in memory as a whole.

    The library has no limit; it asks for a message's bytes by their number.
    """
    inner = stream._stream
    take = inner.recv_data

    async def taken(size: int) -> bytes:
        if size > _MOST:
            raise GRPCError(
                Status.RESOURCE_EXHAUSTED, f"a message of {size} bytes is more than the {_MOST} that this door takes"
            )
        return await take(size)

    vars(inner)["recv_data"] = taken


async def _answer(result: Awaitable[Any] | AsyncIterator[Any], stream: Stream[Any, Any]) -> None:
    if isinstance(result, Awaitable):
        await stream.send_message(await result)
        return
    async for message in result:
        await stream.send_message(message)


def _status_of(error: Error, name: str) -> GRPCError:
    status = next(status for kind, status in _STATUSES if isinstance(error, kind))
    log.info("refused", extra={"call": name, "status": status.name, "reason": str(error)})
    return GRPCError(status, str(error))
