"""Sandboxes: created, found, waited for, ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
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
from openmodal.engines.contract import check
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
from openmodal.serve.volumes import mounts
from openmodal.tunnel import Tunnel

_LONGEST_WAIT = 55.0
_DEFAULT_TIMEOUT = 300.0
_WRITES_KNOWN = 1000


class Sandboxes:
    """Serves the calls about sandboxes, of new clients (…V2) and old ones: their ids differ."""

    def __init__(self, door: Door) -> None:
        self._door = door
        # Where the bytes of an old client's write begin, by its key: it may come again.
        self._begins: dict[str, int] = {}
        self._starting: Counter[str] = Counter()

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
        async with door.starting, self._counted(spec.id):
            root = await door.images.root(definition.image_id, tuple(definition.mount_ids))
            made = await door.finish(Sandbox._started(_with(spec, root), root, door.engine))
        return ids.sandbox_on_wire(door.remember(made).id)

    @asynccontextmanager
    async def _counted(self, id: str) -> AsyncIterator[None]:
        """Count a sandbox that is being created with those that run. One that is there already was
        counted: its client asks again."""
        most = self._door.limits.sandboxes
        running = {status.id for status in await self._door.run(self._door.engine.list())}
        others = (running | self._starting.keys()) - {id}
        if len(others) >= most and id not in running:
            raise GRPCError(
                Code.RESOURCE_EXHAUSTED,
                f"{len(others)} sandboxes run, and this door allows no more; end some, or start it with --max-sandboxes",
            )
        self._starting[id] += 1
        try:
            yield
        finally:
            self._starting[id] -= 1
            if not self._starting[id]:
                del self._starting[id]

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
            name=_args.name("name", definition.name) if definition.name else "",
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
            ports=_ports(definition),
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
        found = [
            status
            for status in await door.run(door.engine.list())
            if (not app or status.app == app)
            and (not run or status.run == run)
            and tags <= set(status.tags)
            and (not request.before_timestamp or status.created < request.before_timestamp)
        ]
        found.sort(key=lambda status: status.created, reverse=True)
        return api.SandboxListResponse(sandboxes=[_info(status) for status in found])

    @serves("SandboxGetFromNameV2", "SandboxGetFromName")
    async def from_name(self, request: Any, call: Call) -> Any:
        door = self._door
        for status in await door.run(door.engine.list()):
            if (status.app, status.name) == (request.app_name, request.sandbox_name):
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
        self._door.forget(status.id)
        await self._door.run(self._door.engine.stop(status.id))
        return api.SandboxTerminateResponse(existing_result=result(status.ended))

    @serves("ContainerStop")
    async def stop(self, request: Any, call: Call) -> Any:
        status = await self._door.status(ids.sandbox_of_task(request.task_id))
        self._door.forget(status.id)
        await self._door.run(self._door.engine.stop(status.id))
        return api.ContainerStopResponse()

    # --------------------------------------------------------------------------------------- ports

    @serves("SandboxGetTunnelsV2", "SandboxGetTunnels")
    async def tunnels(self, request: Any, call: Call) -> Any:
        found = await self._door.sandbox(request.sandbox_id).tunnels.aio(request.timeout or 50.0)
        return api.SandboxGetTunnelsResponse(tunnels=_tunnels(found))

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

    # ---------------------------------------------------------------------------------- old streams

    @serves("SandboxGetLogs")
    async def logs(self, request: Any, call: Call) -> AsyncIterator[Any]:
        from openmodal.serve.router import main_output

        number = 1 if request.file_descriptor == api.FILE_DESCRIPTOR_STDOUT else 2
        at, rest = int(request.last_entry_id or 0), b""
        async for begins, data in main_output(self._door, ids.sandbox(request.sandbox_id), number, at):
            text, rest = _decoded(rest + data)
            at = begins + len(data) - len(rest)
            item = api.TaskLogs(data=text, file_descriptor=request.file_descriptor)
            yield api.TaskLogsBatch(entry_id=str(at), items=[item])
        if rest:
            item = api.TaskLogs(data=rest.decode("utf-8", "replace"), file_descriptor=request.file_descriptor)
            yield api.TaskLogsBatch(entry_id=str(at + len(rest)), items=[item])
        yield api.TaskLogsBatch(entry_id=str(at + len(rest)), eof=True)

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


def _ports(definition: Any) -> tuple[int, ...]:
    asked = definition.open_ports.ports
    if encrypted := [each.port for each in asked if not each.unencrypted]:
        raise UnsupportedError(
            f"encrypted_ports={encrypted} are not supported, for tunnels end on the machine of the sandbox; use unencrypted_ports="
        )
    return _args.ports(unencrypted_ports=[each.port for each in asked])


def _readiness(definition: Any) -> Readiness | None:
    if not definition.HasField("readiness_probe"):
        return None
    asked = definition.readiness_probe
    interval = asked.interval_ms or 100
    if asked.WhichOneof("probe_oneof") == "tcp_port":
        return Probe.with_tcp(asked.tcp_port, interval_ms=interval).asked
    return Probe.with_exec(*asked.exec_command.argv, interval_ms=interval).asked


def _tunnels(found: Mapping[int, Tunnel]) -> list[Any]:
    return [
        api.TunnelData(
            host=tunnel.host,
            port=tunnel.port,
            unencrypted_host=tunnel.host,
            unencrypted_port=tunnel.port,
            container_port=port,
        )
        for port, tunnel in found.items()
    ]


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
    access = definition.network_access
    if definition.block_network or access.network_access_type == api.NetworkAccess.BLOCKED:
        return _args.network(True, None, None)
    if access.network_access_type != api.NetworkAccess.ALLOWLIST:
        return Network()
    cidrs, domains = list(access.allowed_cidrs), list(access.allowed_domains)
    return _args.network(False, cidrs if cidrs or not domains else None, domains or None)


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


def _decoded(data: bytes) -> tuple[str, bytes]:
    """What of the bytes is whole, as text, and the beginning of a character behind it."""
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return text, decoder.getstate()[0]


__all__ = ["Sandboxes"]
