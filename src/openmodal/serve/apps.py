"""Apps, environments and secrets. An app is no more than a name, which its id has."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2 as api

from openmodal.errors import AlreadyExistsError, Error, InvalidError, NotFoundError
from openmodal.serve import ids
from openmodal.serve.calls import Call, log, serves
from openmodal.serve.door import Door
from openmodal.volume import Volume

_BUILDER = "2025.06"
_ENVIRONMENT = "main"
RUN = "run"
_LONGEST_NAME = 120
_PART_OF_NAME = 40
"""Bytes of an app's name, and of one with a run: both become names of files, in hexadecimal."""

_BEAT = 15.0
_SILENCE = 120.0
"""Seconds without a heartbeat, of which clients send one each 15 s, after which a run is over."""

VOLUME = "volume"
_VOLUME_SILENCE = 1000.0
"""The same of an ephemeral volume, for which clients send one each 300 s."""


class Apps:
    """Serves the calls about what sandboxes belong to and are given."""

    def __init__(self, door: Door) -> None:
        self._door = door

    # ---------------------------------------------------------------------------------------- start

    @serves("ClientHello")
    async def hello(self, request: Any, call: Call) -> Any:
        return api.ClientHelloResponse(image_builder_version=_BUILDER)

    @serves("AuthTokenGet")
    async def token(self, request: Any, call: Call) -> Any:
        return api.AuthTokenGetResponse(token=self._door.access.proof(""))

    @serves("EnvironmentGetOrCreate")
    async def environment(self, request: Any, call: Call) -> Any:
        name = request.deployment_name or _ENVIRONMENT
        settings = api.EnvironmentSettings(image_builder_version=_BUILDER, webhook_suffix="")
        return api.EnvironmentGetOrCreateResponse(
            environment_id=f"en-{ids.letters('environment', name)}",
            metadata=api.EnvironmentMetadata(name=name, settings=settings),
        )

    @serves("EnvironmentList")
    async def environments(self, request: Any, call: Call) -> Any:
        return api.EnvironmentListResponse(items=[api.EnvironmentListItem(name=_ENVIRONMENT, default=True)])

    # ----------------------------------------------------------------------------------------- apps

    @serves("AppGetOrCreate")
    async def get_or_create(self, request: Any, call: Call) -> Any:
        name = request.app_name
        if not 0 < len(name.encode()) <= _LONGEST_NAME:
            raise InvalidError(f"an app's name has 1 to {_LONGEST_NAME} bytes, and not {len(name.encode())}")
        must_exist = request.object_creation_type == api.OBJECT_CREATION_TYPE_UNSPECIFIED
        if must_exist and self._door.kept.named("app", name) is None:
            raise NotFoundError(f"there is no app {name!r}; App.lookup(…, create_if_missing=True) makes it")
        id = ids.app(ids.name(name))
        self._door.kept.name("app", name, id)
        return api.AppGetOrCreateResponse(app_id=id)

    @serves("AppCreate")
    async def create(self, request: Any, call: Call) -> Any:
        """A run of an app: what it creates ends with it."""
        name = ids.name(request.description or "app")[:_PART_OF_NAME]
        id = ids.app(name, ids.letters("run", call.key or os.urandom(16), count=16))
        self._door.kept.name(self._door.own(RUN), id, "")
        return api.AppCreateResponse(app_id=id)

    @serves("AppPublish")
    async def publish(self, request: Any, call: Call) -> Any:
        if request.function_ids or request.class_ids:
            raise InvalidError(
                "OpenModal runs sandboxes, not functions; create a modal.Sandbox in the app's entrypoint"
            )
        return api.AppPublishResponse(url="")

    @serves("AppHeartbeat")
    async def heartbeat(self, request: Any, call: Call) -> Any:
        """The program of a run lives; also of one that begins to beat again."""
        if ids.app_and_run(request.app_id)[1]:
            self._door.kept.name(self._door.own(RUN), request.app_id, "")
        return Empty()

    @serves("AppClientDisconnect", "AppStop")
    async def disconnect(self, request: Any, call: Call) -> Any:
        await end_run(self._door, request.app_id, whole_app=call.name == "AppStop")
        return Empty()

    @serves("AppList")
    async def apps(self, request: Any, call: Call) -> Any:
        names = self._door.kept.names("app")
        items = [
            api.AppListResponse.AppListItem(app_id=id, description=name, name=name, state=api.APP_STATE_DEPLOYED)
            for name, id in names.items()
        ]
        return api.AppListResponse(apps=items)

    # -------------------------------------------------------------------------------------- secrets

    @serves("SecretGetOrCreate")
    async def secret(self, request: Any, call: Call) -> Any:
        kept, name, kind = self._door.kept, request.deployment_name, request.object_creation_type
        id = kept.named("secret", name) if name else None
        if id and kind == api.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise AlreadyExistsError(f"Secret '{name}' already exists")
        makes = not name or kind in (
            api.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS,
            api.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS,
        )
        makes |= id is None and kind == api.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
        if makes:
            id = kept.keep_secret(dict(request.env_dict), name, id or "")
            if name:
                kept.name("secret", name, id)
        if id is None:
            raise NotFoundError(f"there is no secret {name!r}; `modal secret create {name} KEY=VALUE` makes it")
        found = kept.secret(id)
        if missing := [key for key in request.required_keys if key not in found.variables]:
            raise InvalidError(f"secret {name!r} lacks {', '.join(missing)}; add them")
        return api.SecretGetOrCreateResponse(
            secret_id=id, metadata=api.SecretMetadata(name=name, keys=sorted(found.variables))
        )

    @serves("SecretList")
    async def secrets(self, request: Any, call: Call) -> Any:
        names = self._door.kept.names("secret")
        items = [
            api.SecretListItem(label=name, secret_id=id, created_at=self._door.kept.secret(id).created)
            for name, id in names.items()
        ]
        return api.SecretListResponse(items=items if not request.pagination.created_before else [])

    @serves("SecretDelete")
    async def forget(self, request: Any, call: Call) -> Any:
        found = self._door.kept.secret(request.secret_id)
        self._door.kept.forget_name("secret", found.name)
        self._door.kept.forget_secret(request.secret_id)
        return Empty()


async def end_run(door: Door, app_id: str, *, whole_app: bool = False) -> None:
    """End the sandboxes of a run; of an app without one, if it is the whole app that is stopped."""
    name, run = ids.app_and_run(app_id)
    ending = [
        door.end(status.id)
        for status in await door.run(door.engine.list())
        if (run and status.run == run) or (whole_app and status.app == name and not run)
    ]
    # One that cannot be ended keeps none of the others; then its error is told.
    ended = await asyncio.gather(*ending, return_exceptions=True)
    for error in ended:
        if isinstance(error, BaseException):
            raise error
    door.kept.forget_name(door.own(RUN), app_id)


async def end_volume(door: Door, name: str) -> None:
    """Remove an ephemeral volume."""
    with contextlib.suppress(NotFoundError):
        await Volume.delete.aio(name, engine=door.engine)
    door.kept.forget_name(door.own(VOLUME), name)


Heard = Mapping[str, tuple[float, float]]
"""Of each run, or ephemeral volume, its last beat, by the clock of the files, and when this door
first saw that beat."""


def listened(heard: Heard, beats: Mapping[str, float], now: float) -> Heard:
    """What was heard, with the beats of now."""
    return {id: heard[id] if id in heard and heard[id][0] == beat else (beat, now) for id, beat in beats.items()}


async def end_lost_runs(door: Door) -> None:
    """For ever: end what runs, and ephemeral volumes, left whose program was killed, which is known
    by its silence."""
    heard: dict[str, Heard] = {RUN: {}, VOLUME: {}}
    while True:
        await asyncio.sleep(_BEAT)
        # By the clock that stands still while the machine sleeps, and with it the programs.
        try:
            for kind, before in heard.items():
                heard[kind] = listened(before, door.kept.moments(door.own(kind)), time.monotonic())
            await door.tunnels.sweep()
        except (Error, OSError) as error:  # too many open files, or an engine that does not answer
            log.warning("nobody looked for runs that have ended", extra={"reason": str(error)})
            continue
        await _end_silent(door, heard[RUN], _SILENCE, end_run)
        await _end_silent(door, heard[VOLUME], _VOLUME_SILENCE, end_volume)


async def _end_silent(
    door: Door, heard: Heard, silence: float, end: Callable[[Door, str], Coroutine[Any, Any, None]]
) -> None:
    for name in [name for name, (_, at) in heard.items() if time.monotonic() - at >= silence]:
        log.info("a program has ended without a word", extra={"left": name})
        try:
            await end(door, name)
        except (Error, OSError) as error:  # again at the next beat
            log.warning("what a program left was not ended", extra={"left": name, "reason": str(error)})


__all__ = ["VOLUME", "Apps", "end_lost_runs"]
