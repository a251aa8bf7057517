"""The Kubernetes engine: a sandbox is a pod, and a link to its agent the WebSocket of an exec, or a
connection to the pod itself.

The pod starts with an agent that is nothing yet (any image, the agent from a ConfigMap); what
sandbox it shall be, secrets included, it is told over its first link. What the pod's object says is
for finding and listing. How a sandbox ended is learnt from the agent's report in the pod's log, by
whoever looks first, who keeps it on this machine for a day and deletes the pod.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from openmodal import _config, _ends, _trash
from openmodal._dual import Blocking, Sleep
from openmodal._link import Link, SocketStream, until_end
from openmodal._spec import (
    EndRecord,
    Info,
    PoolStatus,
    Recipe,
    Referenced,
    Report,
    Resources,
    Root,
    SandboxSpec,
    Scratch,
    Snapshot,
    Status,
)
from openmodal.engines import asked
from openmodal.engines.book import Book, new_id
from openmodal.engines.contract import Created, IdTakenError
from openmodal.engines.kubernetes import api, kept, live, pods, policies, pool, posture, report, start
from openmodal.engines.kubernetes.api import Api, ApiError, Json, Unreachable
from openmodal.engines.kubernetes.images import Images, builder
from openmodal.engines.kubernetes.links import link_to, open_link
from openmodal.engines.kubernetes.names import claim
from openmodal.engines.kubernetes.settings import Settings, read
from openmodal.engines.kubernetes.websocket import WebSocket
from openmodal.errors import EngineError, NotFoundError, UnsupportedError

_STARTING = 60.0  # beyond it, an agent that was started and does not answer is broken
_PAUSE = 0.05  # between two looks at a sandbox whose agent does not answer

_NOT_ENFORCED = (
    "{} a cluster that enforces NetworkPolicies; if `openmodal doctor --network` says that this one does, say "
    "network_policy = true in the table [kubernetes] of the configuration"
)


class Kubernetes(live.Live):
    """Sandboxes as pods of the cluster that the kubeconfig names."""

    name = "kubernetes"

    @property
    def keeps(self) -> frozenset[str]:
        """What is built on this machine is built as by the embedded engine."""
        built_here = ("build_secrets", "registry_login") if builder(self.settings) == "local" else ()
        return frozenset({"ids", "lease", *built_here})

    def __init__(self) -> None:
        self._state = _config.state()
        # Of its own: a sandbox of another engine may have the same id, which its maker chose.
        self._book = Book(self._state / "kubernetes", self)

    @property
    def settings(self) -> Settings:
        """The settings as they are now."""
        return read()

    @property
    def lacks(self) -> frozenset[str]:
        """What pods cannot promise; docs/kubernetes.md tells why of each."""
        network = () if self.settings.network_policy else ("network_block", "network_isolation", "network_lists")
        never = (
            "checkpoint",
            "disk",
            "idle_pause",
            "images",
            "loopback6",
            "meminfo",
            "memory_left",
            "mount_image",
            "network_allowlists",
            "network_change",
            "network_interfaces",
            "network_shared",
            "nproc",
            "owner",
            "pause",
            "pids",
            "ports",
            "reset",
            "snapshot_on_end",
            "host_folders",
            "volume_rename",
        )
        return frozenset((*never, *network))

    # ------------------------------------------------------------------------------------ the verbs

    async def prepare(self, image: Recipe, report: Report) -> Referenced:
        self._book.prepare()
        if image == Recipe((Scratch(),)):  # nothing but the agent, which comes into any image
            return Referenced("", reference=self.settings.probe_image)
        cluster, settings = self._api(), self.settings
        if len(image.steps) == 1 and isinstance(image.steps[0], Snapshot):
            found: Referenced = await Blocking(kept.find, cluster, settings, image.steps[0].key)
            return found
        image = await Blocking(kept.replaced, cluster, settings, image)
        return await Images(self._state, settings).prepare(image, report)

    async def check(self, spec: SandboxSpec) -> None:
        settings = self.settings
        if spec.network.block and not settings.network_policy:
            raise EngineError(_NOT_ENFORCED.format("block_network=True needs"))
        if spec.network.cidrs is not None and not settings.network_policy:
            raise UnsupportedError(_NOT_ENFORCED.format("allow lists need"))
        await self._check_mounts(spec.mounts)
        if spec.runtime != "native":
            nothing = Referenced("", reference="none")
            await start.Start(self._api(settings), settings, f"{spec.app}-check", spec, nothing).rehearse()

    async def create(self, spec: SandboxSpec, root: Root) -> str | Created:
        settings = self.settings
        self._book.prepare()
        self._book.check_id(spec.id)
        await self._book.now_and_then(functools.partial(self._book.prune_ended, some=True))
        id = new_id(spec)
        cluster = self._api(settings)
        created = start.Start(cluster, settings, id, spec, asked.prepared(root, Referenced))
        try:
            pod = await created.pod()
            await created.confine()
            if spec.name:
                await claim(cluster, settings, pod, spec, id, self)
            await created.wait()
            stream = await self._set_up(cluster, created)
            made = asked.made(spec, asked.prepared(root, Referenced))
            self._book.keep_made(id, made, time.time() + spec.timeout)
        except IdTakenError:  # the pod is another's
            raise
        except BaseException:
            # Raise the original error, not this clean-up's: a pod that cannot be deleted ends by
            # itself.
            with suppress(EngineError):
                await Blocking(cluster.delete, cluster.pods(created.name), grace=0)
            raise
        if stream and settings.direct:  # it would be used again and again, though there is a better way
            stream.close()
            stream = None
        return Created(id, stream) if stream else id

    async def connect(self, id: str) -> WebSocket | SocketStream:
        if self._book.end(id):
            raise ConnectionRefusedError("it has ended")
        settings = self.settings
        cluster = self._api(settings)
        try:
            found = await self._found(cluster, id)
            return await link_to(cluster, found, direct=settings.direct)
        except (NotFoundError, ConnectionError, Unreachable) as error:
            await self._settle(cluster, id)
            raise ConnectionRefusedError(str(error)) from error

    def journal(self, id: str) -> Path:
        return self._book.log(id, "journal")

    async def inspect(self, id: str) -> Status:
        if end := self._book.end(id):
            return self._book.as_ended(id, end)
        cluster = self._api()
        found = await self._found(cluster, id)
        if found.may_have_ended and (end := await self._settle(cluster, id)):
            return self._book.as_ended(id, end)
        if found.deleting:
            text = "its pod was deleted by somebody else"
            return msgspec.structs.replace(found.status, ended=_ends.ended("terminated", 137, time.time(), text))
        return found.status

    async def list(self) -> list[Status]:
        cluster = self._api()
        listed = [
            found
            for found in await Blocking(self._listed, cluster)
            if found.ready and not found.deleting and not found.status.build
        ]
        for found in listed:
            if found.may_have_ended:
                await self._settle(cluster, found.status.id)
        running = [found.status for found in listed if not self._book.end(found.status.id)]
        return sorted(running, key=lambda status: status.created)

    async def ended(self) -> Sequence[Status]:
        found: Sequence[Status] = await Blocking(self._book.ends)
        return found

    async def stop(self, id: str) -> None:
        cluster = self._api()
        try:
            found = None if self._book.end(id) else await self._found(cluster, id)
        except NotFoundError:
            return
        if found and (found.may_have_ended or found.fleeting):
            await self._settle(cluster, id)
        if found is None:
            return
        self._book.prepare()
        noted = self._book.write_ended(found.status, _ends.ended("terminated", 137, time.time()))
        await Blocking(cluster.delete, cluster.pods(found.pod))
        if not noted:
            raise self._book.not_noted(id)

    async def wait(self, id: str, timeout: float | None = None) -> EndRecord:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (ended := (await self.inspect(id)).ended) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError
            await self._until_lost(id, deadline)
        return ended

    async def tag(self, id: str, tags: tuple[tuple[str, str], ...]) -> None:
        cluster = self._api()
        found = await self._found(cluster, id)
        await self._note(cluster, found.pod, msgspec.structs.replace(found.status, tags=tags))

    async def main_output(self, id: str, stream: int) -> bytes:
        return self._book.main_output(id, stream)

    async def info(self, id: str) -> Info:
        pod = await Blocking(self._pod, self._api(), id)
        with closing(await self.connect(id)) as stream:
            seen = await posture.look(Link(stream))
        return posture.info(seen, pod, enforced=self.settings.network_policy)

    # ---------------------------------------------------------------------------------------- pools

    async def create_pool(self, name: str, root: Root, resources: Resources, size: int) -> None:
        """Keep so many sandboxes of an image ready; `create` takes one of them where image and resources are the same."""
        await Blocking(pool.create, self._api(), self.settings, name, asked.prepared(root, Referenced), resources, size)

    async def pools(self) -> Sequence[PoolStatus]:
        """Tell of every pool of this user."""
        found: Sequence[PoolStatus] = await Blocking(pool.listed, self._api(), self.settings)
        return found

    async def delete_pool(self, name: str) -> None:
        """Delete a pool; sandboxes that came from it run on."""
        await Blocking(pool.delete, self._api(), name)

    # -------------------------------------------------------------------------------- keeping house

    def gc(self, *, check: bool = False) -> Sequence[str]:
        """Remove the pods of sandboxes that ended while nobody looked, and of probes that were
        killed; return what was removed.

        `check`: only tell.

        Raises:
            EngineError: something could not be removed; all else is.
        """
        from openmodal._dual import run_sync

        failed: list[str] = []

        cluster = self._api()
        left = [found for found in self._listed(cluster) if not found.deleting]
        ended = [found.status.id for found in left if found.phase in ("Succeeded", "Failed")]
        probes = policies.finished_probes(cluster)
        expired: list[kept.Kept] = []
        with _trash.going_on(failed):
            expired = kept.over(cluster, self.settings)
        if not check:
            self._book.prepare()
            for id in ended:
                with _trash.going_on(failed):
                    run_sync(self._settle(cluster, id))
            with _trash.going_on(failed):
                self._book.prune_ended()
            for name in probes:
                with _trash.going_on(failed):
                    cluster.delete(cluster.pods(name))
            for image in expired:
                with _trash.going_on(failed):
                    kept.delete(cluster, image)
        abandoned: list[str] = []
        with _trash.going_on(failed):
            abandoned = run_sync(self._sweep(failed, check=check))
        _trash.tell(failed)
        return [
            *(f"volume {name}" for name in abandoned),
            *(f"sandbox {id}" for id in ended),
            *(f"snapshot {image.key[:12]}" for image in expired),
            *(f"pod {name}" for name in probes),
        ]

    # ---------------------------------------------------------------------------------------- links

    async def _set_up(self, cluster: Api, created: start.Start) -> WebSocket | None:
        """Tell the agent what sandbox it is. Its lifetime begins; the link is the first that is used, None if it has ended already."""
        id = created.id
        give_up = time.monotonic() + _STARTING
        while True:
            try:
                begins = functools.partial(self._note, cluster, created.name, created.status(time.time()))
                return await open_link(cluster, created.name, created.setup, begins)
            # The agent listens a moment after its start; or a short main command has ended
            # meanwhile.
            except ConnectionError as error:
                if await self._settle(cluster, id):
                    return None
                created.check(await Blocking(cluster.get, cluster.pods(created.name)))
                if time.monotonic() > give_up:
                    raise EngineError(f"the agent in the pod {created.name} does not answer: {error}") from error
                await Sleep(0.02)

    async def _until_lost(self, id: str, deadline: float | None) -> None:
        """Hold a link until it ends, which it does with its agent."""
        try:
            stream = await self.connect(id)
        except ConnectionError:
            await Sleep(_PAUSE)
            return
        await (stream.until_end(deadline) if isinstance(stream, WebSocket) else until_end(stream, deadline))
        await self._settle(self._api(), id)

    # ----------------------------------------------------------------------------------------- pods

    async def _settle(self, cluster: Api, id: str) -> EndRecord | None:
        """If the sandbox has ended, keep how on this machine and delete its pod."""
        if end := self._book.end(id):
            return end
        try:
            pod = await Blocking(self._pod, cluster, id)
        except NotFoundError:
            return self._book.end(id)
        found = pods.found(pod)
        assert found is not None, "_pod has looked"
        told = await self._report(cluster, found.pod)
        end = told.end if told else pods.end(pod)
        if end is None:
            return None
        outputs = (told.stdout, told.stderr) if told else (b"", b"")
        self._book.prepare()
        if not self._book.write_ended(found.status, end, *outputs):
            return end  # the pod stays, and tells the same again
        await Blocking(cluster.delete, cluster.pods(found.pod), grace=0)
        return self._book.end(id)

    async def _report(self, cluster: Api, pod: str) -> report.Report | None:
        """What the agent said at its end."""
        try:
            log = await Blocking(cluster.text, cluster.pods(f"{pod}/log"), container=pods.CONTAINER)
        except ApiError as error:
            if error.status not in (400, 404, 500):  # it has not started, or its node has forgotten it
                raise
            return None
        return report.parse(log)

    async def _running(self, id: str) -> Json:
        if (await self.inspect(id)).ended:
            raise ConnectionResetError(f"the sandbox {id} has ended")
        pod: Json = await Blocking(self._pod, self._api(), id)
        return pod

    async def _found(self, cluster: Api, id: str) -> pods.Found:
        found = pods.found(await Blocking(self._pod, cluster, id))
        assert found is not None, "_pod has looked"
        return found

    def _pod(self, cluster: Api, id: str) -> Json:
        """The pod of a sandbox, named after the sandbox, or by its pool if it was warm.

        Raises:
            NotFoundError: there is none.
        """
        name = pods.name_of(self._book.folder(id).name)
        try:
            candidates = [cluster.get(cluster.pods(name))]
        except ApiError as error:
            if error.status != 404 or 'namespaces "' in str(error):
                raise
            candidates = cluster.get(cluster.pods(), labelSelector=f"{pods.DOMAIN}/id={name}")["items"]
        for pod in candidates:
            if (found := pods.found(pod)) and found.status.id == id:
                return pod
        raise NotFoundError(
            f"there is no sandbox {id!r}, or its pod was deleted; `openmodal sandbox list` shows those that run"
        )

    def _listed(self, cluster: Api) -> Sequence[pods.Found]:
        answer = cluster.get(cluster.pods(), labelSelector=pods.selector(self.settings))
        return [found for pod in answer["items"] if (found := pods.found(pod))]

    async def _note(self, cluster: Api, pod: str, status: Status) -> None:
        body: Json = {"metadata": {"annotations": pods.described(status)}}
        await Blocking(cluster.patch, cluster.pods(pod), body)

    def _access(self) -> tuple[Api, Settings, Path]:
        settings = self.settings
        return self._api(settings), settings, self._state

    async def _settled(self, cluster: Api, pod: Json) -> bool:
        if "deletionTimestamp" in pod["metadata"]:
            return True
        found = pods.found(pod)
        return bool(found and found.may_have_ended and await self._settle(cluster, found.status.id))

    def _api(self, settings: Settings | None = None) -> Api:
        settings = settings or self.settings
        return api.connect(settings.context, settings.namespace)
