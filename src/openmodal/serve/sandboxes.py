"""Sandboxes: created, found, waited for, ended."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status as Code
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2 as api

from openmodal import _args, _wire
from openmodal._command import Command
from openmodal._spec import Network, Readiness, Resources, Root, SandboxSpec, Status
from openmodal._wire import Want
from openmodal.engines.asked import DEFAULT_MEMORY
from openmodal.engines.contract import check, require
from openmodal.errors import (
    InvalidError,
    NotFoundError,
    SandboxNotRunningError,
    StdinClosedError,
    UnsupportedError,
)
from openmodal.probe import Probe
from openmodal.sandbox import Sandbox
from openmodal.sandbox.sandbox import over_image
from openmodal.serve import fields, ids
from openmodal.serve.calls import Call, serves
from openmodal.serve.door import Door, result
from openmodal.serve.images import KEEPS_RUNNING
from openmodal.serve.tunnels import CLEAR, ENCRYPTED, H2
from openmodal.serve.volumes import mounts

_LONGEST_WAIT = 55.0
_DEFAULT_TIMEOUT = 300.0
_WRITES_KNOWN = 1000
_ALL_DOMAINS = "*"
_ALL_NETWORKS = "0.0.0.0/0"
_LOOK = 0.2
_PATIENCE = 20.0
_AGAIN = 5.0
"""Seconds after which a client is told to ask again, if it waited in the queue for nothing."""


class Sandboxes:
    """Serves the calls about sandboxes, of new clients (…V2) and old ones: their ids differ."""

    def __init__(self, door: Door) -> None:
        self._door = door
        # Where the bytes of an old client's write begin, by its key: it may come again.
        self._begins: dict[str, int] = {}
        self._starting: Counter[str] = Counter()
        self._entering = asyncio.Lock()
        self._queued = 0

    # --------------------------------------------------------------------------------------- create

    @serves("SandboxCreateV2")
    async def create(self, request: Any, call: Call) -> Any:
        wire = await self._create(request, call, old=False)
        access = api.CommandRouterAccess(jwt=self._door.access.proof(wire), url=self._door.router(call.client))
        return api.SandboxCreateV2Response(
            sandbox_id=wire,
            task_id=ids.task(wire),
            command_router_access=access,
            metadata=api.SandboxHandleMetadata(app_id=request.app_id),
        )

    @serves("SandboxCreate")
    async def create_old(self, request: Any, call: Call) -> Any:
        wire = await self._create(request, call, old=True)
        return api.SandboxCreateResponse(sandbox_id=wire, metadata=api.SandboxHandleMetadata(app_id=request.app_id))

    async def _create(self, request: Any, call: Call, *, old: bool) -> str:
        definition, door = request.definition, self._door
        fields.check(definition, fields.SANDBOX, call)
        spec = self._spec(request, ids.new_sandbox(call.key, old=old))
        await door.run(check(door.engine, spec))
        async with self._counted(spec.id):
            root = await door.images.root(definition.image_id, tuple(definition.mount_ids))
            door.tunnels.ask(spec.id, _ports(definition))
            made = await door.finish(Sandbox._started(_with(spec, root), root, door.engine, {}))
        return ids.sandbox_on_wire(door.remember(made).id)

    @asynccontextmanager
    async def _counted(self, id: str) -> AsyncIterator[None]:
        """Count a sandbox that is being created with those that run, when it is its turn and there is
        room for it."""
        starting = self._door.starting
        if self._queued >= self._door.limits.queue:
            raise _full(f"{self._queued} sandboxes wait to be created")
        self._queued += 1
        try:
            await starting.acquire()
            try:
                await self._enter(id)
            except BaseException:
                starting.release()
                raise
        finally:
            self._queued -= 1
        try:
            yield
        finally:
            starting.release()
            self._starting[id] -= 1
            if not self._starting[id]:
                del self._starting[id]

    async def _enter(self, id: str) -> None:
        """Wait for room; who waits for longest goes first. One that is there already was counted:
        its client asks again."""
        most, door = self._door.limits.sandboxes, self._door
        try:
            async with asyncio.timeout(_PATIENCE), self._entering:
                while True:
                    running = {status.id for status in await door.run(door.engine.list())}
                    if id in running or len((running | self._starting.keys()) - {id}) < most:
                        self._starting[id] += 1
                        return
                    await asyncio.sleep(_LOOK)
        except TimeoutError:
            raise _full(f"{most} sandboxes run, and this door allows no more") from None

    def _spec(self, request: Any, id: str) -> SandboxSpec:
        definition, limits = request.definition, self._door.limits
        app, run = ids.app_and_run(request.app_id)
        timeout = float(definition.timeout_secs or _DEFAULT_TIMEOUT)
        if timeout > limits.lifetime:
            raise InvalidError(f"timeout={timeout:.0f} is more than the {limits.lifetime:.0f} s that this door allows")
        hidden, shown = self._secrets(request), dict(definition.environment_variables.contents)
        return SandboxSpec(
            id=_args.sandbox_id(id),
            app=app,
            argv=tuple(definition.entrypoint_args),
            name=ids.name(definition.name) if definition.name else "",
            tags=_args.tags({tag.tag_name: tag.tag_value for tag in request.tags}),
            env=_args.variables("env", hidden | shown),
            secrets=tuple(sorted(hidden.keys() - shown.keys())),
            timeout=_args.seconds("timeout", timeout),
            idle_timeout=float(definition.idle_timeout_secs) if definition.idle_timeout_secs else None,
            workdir=_args.path("workdir", definition.workdir) if definition.workdir else "",
            resources=_resources(definition.resources, limits.memory),
            network=_network(definition),
            runtime=_args.runtime(definition.runtime or None),
            run=run,
            mounts=mounts(definition),
            ports=_args.ports(ports=_ports(definition)),
            readiness=_readiness(definition),
        )

    def _secrets(self, request: Any) -> dict[str, str]:
        """The variables of secrets, in order. Clients send `env=` as one of them."""
        found = self._door.variables(request.definition.secret_ids, getattr(request, "secret_sources", ()))
        if hasattr(request, "ephemeral_secrets"):
            found |= dict(request.ephemeral_secrets.contents)
        return found

    # ----------------------------------------------------------------------------------------- find

    @serves("SandboxListV2", "SandboxList")
    async def list(self, request: Any, call: Call) -> Any:
        door = self._door
        app, run = ids.app_and_run(request.app_id) if request.app_id else ("", "")
        tags = {(tag.tag_name, tag.tag_value) for tag in request.tags}
        listed = await door.run(door.engine.list())
        if request.include_finished:
            require(door.engine, "ended")
            listed = [*await door.run(door.engine.ended()), *listed]
        found = [
            status
            for status in listed
            if (not app or status.app == app)
            and (not run or status.run == run)
            and tags <= set(status.tags)
            and (not request.before_timestamp or status.created < request.before_timestamp)
        ]
        found.sort(key=lambda status: status.created, reverse=True)
        return api.SandboxListResponse(sandboxes=[_info(status) for status in found])

    @serves("SandboxGetFromNameV2", "SandboxGetFromName")
    async def from_name(self, request: Any, call: Call) -> Any:
        door, asked = self._door, (ids.name(request.app_name), ids.name(request.sandbox_name))
        for status in await door.run(door.engine.list()):
            if (status.app, status.name) == asked:
                return api.SandboxGetFromNameResponse(sandbox_id=ids.sandbox_on_wire(status.id))
        raise NotFoundError(f"no sandbox {request.sandbox_name!r} of app {request.app_name!r} is running")

    @serves("SandboxTagsGetV2", "SandboxTagsGet")
    async def tags(self, request: Any, call: Call) -> Any:
        status = await self._door.status(request.sandbox_id)
        return api.SandboxTagsGetResponse(tags=_tags(status))

    @serves("SandboxTagsSetV2", "SandboxTagsSet")
    async def set_tags(self, request: Any, call: Call) -> Any:
        await self._door.sandbox(request.sandbox_id).set_tags.aio({tag.tag_name: tag.tag_value for tag in request.tags})
        return Empty()

    @serves("TaskList")
    async def tasks(self, request: Any, call: Call) -> Any:
        app, run = ids.app_and_run(request.app_id) if request.app_id else ("", "")
        stats = [
            api.TaskStats(
                task_id=ids.task(ids.sandbox_on_wire(status.id)),
                app_id=ids.app(status.app, status.run),
                app_description=status.app,
                started_at=status.created,
                enqueued_at=status.created,
            )
            for status in await self._door.run(self._door.engine.list())
            if (not app or status.app == app) and (not run or status.run == run)
        ]
        return api.TaskListResponse(tasks=stats)

    @serves("TaskGetInfo")
    async def task_info(self, request: Any, call: Call) -> Any:
        status = await self._door.status(ids.sandbox_of_task(request.task_id))
        return api.TaskGetInfoResponse(app_id=ids.app(status.app, status.run), info=_task(status))

    # ---------------------------------------------------------------------------------------- state

    @serves("SandboxWaitV2", "SandboxWait")
    async def wait(self, request: Any, call: Call) -> Any:
        status, door = await self._door.status(request.sandbox_id), self._door
        end = status.ended
        if end is None and request.timeout > 0:
            try:
                end = await door.run(door.engine.wait(status.id, min(request.timeout, _LONGEST_WAIT)))
            except TimeoutError:
                end = None
        metadata = api.SandboxHandleMetadata(app_id=ids.app(status.app, status.run))
        return api.SandboxWaitResponse(result=result(end), metadata=metadata)

    @serves("SandboxGetTaskIdV2", "SandboxGetTaskId")
    async def task_id(self, request: Any, call: Call) -> Any:
        status = await self._door.status(request.sandbox_id)
        return api.SandboxGetTaskIdResponse(task_id=ids.task(request.sandbox_id), task_result=result(status.ended))

    @serves("SandboxTerminateV2", "SandboxTerminate")
    async def terminate(self, request: Any, call: Call) -> Any:
        status = await self._door.status(request.sandbox_id)
        await self._door.end(status.id)
        return api.SandboxTerminateResponse(existing_result=result(status.ended))

    @serves("ContainerStop")
    async def stop(self, request: Any, call: Call) -> Any:
        status = await self._door.status(ids.sandbox_of_task(request.task_id))
        await self._door.end(status.id)
        return api.ContainerStopResponse()

    # --------------------------------------------------------------------------------------- ports

    @serves("SandboxGetTunnelsV2", "SandboxGetTunnels")
    async def tunnels(self, request: Any, call: Call) -> Any:
        sandbox = self._door.sandbox(request.sandbox_id)
        found = await sandbox.tunnels.aio(request.timeout or 50.0)
        return api.SandboxGetTunnelsResponse(tunnels=await self._door.tunnels.of(sandbox.id, found))

    @serves("SandboxWaitUntilReady")
    async def wait_until_ready(self, request: Any, call: Call) -> Any:
        """Of clients up to 1.4, which take an empty answer for "not yet"."""
        try:
            ready_at = await ready_at_last(self._door.sandbox(request.sandbox_id), request.timeout)
        except TimeoutError:
            return api.SandboxWaitUntilReadyResponse()
        return api.SandboxWaitUntilReadyResponse(ready_at=ready_at)

    # --------------------------------------------------------------------------------------- router

    @serves("SandboxGetCommandRouterAccess")
    async def router_access(self, request: Any, call: Call) -> Any:
        wire = request.sandbox_id or ids.sandbox_of_task(request.task_id)
        await self._door.status(wire)
        return api.SandboxGetCommandRouterAccessResponse(
            jwt=self._door.access.proof(wire), url=self._door.router(call.client)
        )

    @serves("TaskGetCommandRouterAccess")
    async def router_access_old(self, request: Any, call: Call) -> Any:
        wire = ids.sandbox_of_task(request.task_id)
        await self._door.status(wire)
        return api.TaskGetCommandRouterAccessResponse(
            jwt=self._door.access.proof(wire), url=self._door.router(call.client)
        )

    # ------------------------------------------------------------------------------------ old stdin

    @serves("SandboxStdinWrite")
    async def write(self, request: Any, call: Call) -> Any:
        """Of old clients, which do not tell where their bytes belong: behind those that came."""
        from openmodal.serve.router import written

        door, key = self._door, call.key
        command = Command(door.sandbox(request.sandbox_id)._agent, _wire.MAIN)
        try:
            if (offset := self._begins.get(key)) is None:
                offset = (await door.run(command.io(Want(0), [0, 0, 0], {}, wait=0))).stdin
            if key:
                self._begins[key] = offset
            accepted = await written(door, command, offset, request.input, ends=request.eof)
        except SandboxNotRunningError as error:
            raise StdinClosedError(str(error)) from error
        if accepted < offset + len(request.input):
            raise StdinClosedError("the command has exited or closed its stdin, so it cannot be written to")
        while len(self._begins) > _WRITES_KNOWN:
            del self._begins[next(iter(self._begins))]
        return api.SandboxStdinWriteResponse()


def _full(why: str) -> GRPCError:
    """What a client waits for and asks again; old ones tell their user."""
    text = f"{why}; end some, or start it with a larger --max-sandboxes"
    return GRPCError(Code.RESOURCE_EXHAUSTED, text, [api.RPCRetryPolicy(retry_after_secs=_AGAIN)])


async def ready_at_last(sandbox: Sandbox, timeout: float) -> float:
    """Wait until a sandbox's probe succeeds, and return the time.

    Raises:
        GRPCError: it was created without a probe.
        TimeoutError: it is not ready in time.
    """
    try:
        await sandbox.wait_until_ready.aio(timeout or 300.0)
    except InvalidError as error:
        raise GRPCError(Code.FAILED_PRECONDITION, str(error)) from error
    return time.time()


def _ports(definition: Any) -> dict[int, str]:
    """The ports that are reached, each with the kind of its tunnel."""
    asked = definition.open_ports.ports
    _args.ports(ports=[each.port for each in asked])
    return {
        each.port: CLEAR if each.unencrypted else H2 if each.tunnel_type == api.TUNNEL_TYPE_H2 else ENCRYPTED
        for each in asked
    }


def _readiness(definition: Any) -> Readiness | None:
    if not definition.HasField("readiness_probe"):
        return None
    asked = definition.readiness_probe
    interval = asked.interval_ms or 100
    if asked.WhichOneof("probe_oneof") == "tcp_port":
        return Probe.with_tcp(asked.tcp_port, interval_ms=interval).asked
    return Probe.with_exec(*asked.exec_command.argv, interval_ms=interval).asked


def _with(spec: SandboxSpec, root: Root) -> SandboxSpec:
    """The spec over an image, whose command runs without arguments, unless it only sleeps."""
    from msgspec.structs import replace

    if (spec.argv or root.cmd) == KEEPS_RUNNING:
        return over_image(replace(spec, argv=()), root, None)
    return over_image(spec, root, root.cmd)


def _resources(asked: Any, most_memory: int) -> Resources:
    """The limits; of a pair of request and limit the limit holds."""
    if asked.HasField("gpu_config") and asked.gpu_config.count:
        raise UnsupportedError("gpu= is not supported here; openmodal.Sandbox.create(gpu=…) is, on Kubernetes")
    memory = asked.memory_mb_max or asked.memory_mb or None
    if most_memory and not memory and most_memory < DEFAULT_MEMORY:
        memory = most_memory
    if most_memory and (memory or 0) > most_memory:
        raise InvalidError(f"memory={memory} is more than the {most_memory} MiB that this door allows")
    milli = asked.milli_cpu_max or asked.milli_cpu
    return Resources(
        cpu=_args.cores(milli / 1000 if milli else None),
        memory=_args.mebibytes("memory", memory, 16),
        disk=_args.mebibytes("ephemeral_disk", asked.ephemeral_disk_mb or None, 16),
    )


def _network(definition: Any) -> Network:
    blocked, cidrs, domains = network_asked(definition.network_access)
    return _args.network(blocked or definition.block_network, cidrs, domains)


def network_asked(access: Any) -> tuple[bool, list[str] | None, list[str] | None]:
    """Whether a network is blocked, and the networks and domains that are allowed; None: all."""
    if access.network_access_type == api.NetworkAccess.BLOCKED:
        return True, None, None
    if access.network_access_type != api.NetworkAccess.ALLOWLIST:
        return False, None, None
    cidrs, domains = list(access.allowed_cidrs), list(access.allowed_domains)
    if _ALL_DOMAINS in domains:
        return False, [*{*cidrs, _ALL_NETWORKS}], None
    return False, cidrs if cidrs or not domains else None, domains or None


def _info(status: Status) -> Any:
    return api.SandboxInfo(
        id=ids.sandbox_on_wire(status.id),
        created_at=status.created,
        task_info=_task(status),
        app_id=ids.app(status.app, status.run),
        tags=_tags(status),
        name=status.name,
        timeout_secs=int(status.expires - status.created),
    )


def _task(status: Status) -> Any:
    wire = ids.sandbox_on_wire(status.id)
    return api.TaskInfo(
        id=ids.task(wire),
        started_at=status.created,
        enqueued_at=status.created,
        sandbox_id=wire,
        finished_at=status.ended.ended if status.ended else 0.0,
        result=result(status.ended),
    )


def _tags(status: Status) -> Iterable[Any]:
    return [api.SandboxTag(tag_name=name, tag_value=value) for name, value in status.tags]


__all__ = ["Sandboxes"]
