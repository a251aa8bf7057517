"""The embedded engine: each sandbox is a box of Linux namespaces with a small supervisor of its own; no daemon.

The SDK writes a plan (plan.py), starts the native program with it, and waits for one line. From then on the supervisor
owns the sandbox: deadline, clean-up, record. What the SDK knows later it reads from files (book.py) or asks over the supervisor's socket.
"""

from __future__ import annotations

import builtins
import contextlib
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from openmodal import _binary, _config, _ends, _trash
from openmodal._dual import Blocking, Sleep, run_sync
from openmodal._link import SocketStream, Stream
from openmodal._spec import (
    Egress,
    EndRecord,
    Info,
    Layered,
    Made,
    Recipe,
    Report,
    Root,
    SandboxSpec,
    Status,
    VolumeInfo,
)
from openmodal.build import Options, RunRequest, build, expire, lookup
from openmodal.build.layers import Layers
from openmodal.build.locks import Lock
from openmodal.engines import asked, checkpoints, machine
from openmodal.engines.book import Book, new_id, unknown
from openmodal.engines.contract import Door, IdTakenError
from openmodal.engines.embedded import (
    cgroup,
    disk,
    egress,
    forward,
    gvisor,
    host,
    launch,
    neighbours,
    network,
    plan,
    posture,
)
from openmodal.engines.embedded.generations import Generations
from openmodal.engines.embedded.keeping import stop_seconds, tell_unkept, when_over
from openmodal.engines.embedded.live import Live
from openmodal.engines.embedded.state import State
from openmodal.engines.embedded.uppers import Uppers
from openmodal.engines.embedded.volumes import Volumes
from openmodal.engines.groups import members
from openmodal.errors import EngineError, InvalidError, disk_full_named

MOST_ON_DISK = 10 << 30
"""What a sandbox without `disk=` may have on the store's disk before it is ended."""

_MOST_OF_ALL = 1 << 62
_WITHOUT_SUPERVISOR = "its supervisor was killed, or the machine was restarted"


class Embedded(Live, State):
    """Sandboxes on this machine."""

    name = "embedded"

    @property
    def keeps(self) -> frozenset[str]:
        """What no verb tells."""
        return frozenset(
            {"build_secrets", "ids", "idle_pause", "lease", "network_shared", "registry_login", "snapshot_on_end"}
        )

    def __init__(self, state: Path | None = None, *, owner: int = 0) -> None:
        """`owner`: a process that no sandbox of this engine outlives."""
        self._owner = owner
        # What ends with its owner is of a state folder that goes as a whole: nothing of it may lie elsewhere.
        self._book = Book(state or _config.state(), self, brief=not owner)
        self._layers = Layers(self._book.state)
        self._uppers = Uppers(self._book.state)
        self._volumes = Volumes(self._book.state)
        self._generations = Generations(self._book, self._layers, self._uppers)

    @property
    def lacks(self) -> frozenset[str]:
        """GPUs and pools are for other engines."""
        return frozenset({"gpus", "pools"})

    # ------------------------------------------------------------------------------------------------ images

    async def prepare(self, image: Recipe, report: Report) -> Layered:
        self._book.prepare()
        known = lookup(image, self._layers, Options(base=_config.base()))
        return known or await self._made(image, report)

    async def _made(self, image: Recipe, report: Report) -> Layered:
        """Build the image, if sandboxes can run here at all: that would be told only after all its minutes."""
        from openmodal.engines.embedded import trial

        with trial.place(self._book.state) as engine:
            await trial.run(engine, trial.bare())
        root: Layered = await Blocking(self._build, image, report)
        return root

    def _build(self, image: Recipe, report: Report) -> Layered:
        return build(image, self._layers, self._run_step, report, Options(base=_config.base()))

    def _run_step(self, request: RunRequest) -> int:
        """Run one step of an image in a box whose upper folder becomes the layer."""
        from openmodal.engines.embedded.booth import Booth

        return run_sync(Booth(self, request).run())

    # --------------------------------------------------------------------------------------------- the verbs

    async def check(self, spec: SandboxSpec) -> None:
        host.require_rights()
        wants: builtins.list[Callable[[], None]] = []
        if "network" not in spec.allow_degraded or spec.network.listed or spec.network.shared:
            wants.append(partial(host.require_network, spec.network))
        if "limits" not in spec.allow_degraded:
            wants.append(host.require_limits)
        host.require_all(wants)
        if spec.runtime == "gvisor":
            gvisor.require(spec)
        if spec.resources.disk:
            disk.program()
        self._volumes.check(spec.mounts)

    async def create(self, spec: SandboxSpec, root: Root) -> str:
        runsc = gvisor.find() if spec.runtime == "gvisor" else ""
        image = asked.prepared(root, Layered)
        id = new_id(spec)
        lowers, env = host.over_trust(self._layers, self._layers.folders(image), spec.env)
        with contextlib.ExitStack() as stack:
            stack.enter_context(disk_full_named(self._book.state))
            held = stack.enter_context(self._held(image))
            await self._book.now_and_then(self._tidy)
            async with self._book.naming(spec):
                _refuse_running(spec.id)
                status = asked.status(id, spec, root, self.name)
                folder = stack.enter_context(self._book.new(status, asked.made(replace(spec, env=()), image)))
            stack.enter_context(self._uppers.taken(id))
            box = await self._box(spec, root, id, folder, lowers, env)
            if runsc:
                box = gvisor.inside(box, runsc)
            if spec.network.shared:
                box.extra.extend(stack.enter_context(neighbours.joining(spec.network, self._book.state)))
            try:
                await launch.start(_binary.find(self._book.state), box, held.fd)
            except BaseException as error:
                if isinstance(error, EngineError) and error.aspect == "taken":
                    raise IdTakenError(id) from error
                # Its supervisor clears up, unless it was killed.
                cgroup.remove(cgroup.leftovers(host.hierarchies()).get(id, []))
                raise
        return id

    def _tidy(self) -> None:
        self._book.prune_ended(some=True)
        expire(self._layers)

    async def connect(self, id: str) -> Stream:
        with contextlib.suppress(EngineError):  # a new sandbox's creation tells
            await host.mend_router(_binary.find(self._book.state))
        return SocketStream(await launch.connect(self._book.folder(id), "agent.sock"))

    async def door(self, id: str) -> Door:
        return Door(self._book.folder(id))

    async def forward(self, id: str, listeners: Mapping[int, socket.socket]) -> None:
        await forward.to(self._book, id, listeners)

    def journal(self, id: str) -> Path:
        return self._book.log(id, "journal")

    async def inspect(self, id: str) -> Status:
        status = self._book.status(id)
        if status and self._book.alive(id):
            return self._seen(status)
        end = self._book.end(id) or self._reap(id, status)
        if end is None:
            raise unknown(id)
        return self._book.as_ended(id, end, status)

    async def info(self, id: str) -> Info:
        folder, status = self._book.folder(id), await self.inspect(id)
        supervisor, size = await launch.supervisor(folder), disk.size(self._uppers.folder(id))
        found = posture.read(id, folder, supervisor, host.hierarchies(), status.runtime, size)
        found = await self._reaching(id, found)
        return replace(found, generation=(await self._generations.now(id)).generation)

    async def list(self) -> list[Status]:
        found = [(id, self._book.status(id)) for id in self._book.ids()]
        running = [self._seen(status) for id, status in found if status and not status.build and self._book.alive(id)]
        return sorted(running, key=lambda status: status.created)

    async def ended(self) -> Sequence[Status]:
        found: Sequence[Status] = await Blocking(self._book.ends)
        return found

    async def stop(self, id: str) -> None:
        keys = checkpoints.of(self._book.folder(id))
        await self._stop(id)
        if keys:
            await Blocking(self._generations.drop, keys)

    async def _stop(self, id: str) -> None:
        seconds = stop_seconds(self._book.status(id))
        try:
            tell_unkept(id, await launch.ask(self._book.folder(id), b"t", seconds))
        except (ConnectionError, FileNotFoundError):
            pass  # it has ended, or was never there, or somebody else ends it and its supervisor listens no more
        except TimeoutError:
            await self._kill(id)
        if not self._book.folder(id).exists():  # as its supervisor left it
            return
        if not await self._ended(id):
            await self._kill(id)
        self._reap(id, self._book.status(id))

    async def wait(self, id: str, timeout: float | None = None) -> EndRecord:
        try:
            return await launch.ask(self._book.folder(id), b"w", timeout)
        except (ConnectionError, FileNotFoundError):
            pass
        while (status := await self.inspect(id)).ended is None:  # it is just ending
            await Sleep(0.005)
        return status.ended

    async def tag(self, id: str, tags: tuple[tuple[str, str], ...]) -> None:
        self._book.write_tags(id, tags)

    async def main_output(self, id: str, stream: int) -> bytes:
        return self._book.main_output(id, stream)

    async def egress(self, id: str) -> builtins.list[Egress]:
        await self.inspect(id)
        found = egress.read(self._egress_log(id))
        if found is None:
            raise InvalidError(
                f"sandbox {id} has no allow list, so nothing is noted; create it with outbound_domain_allowlist=[…] or "
                "outbound_cidr_allowlist=[…]"
            )
        return found

    # ---------------------------------------------------------------------------------- volumes

    async def make_volume(self, name: str) -> None:
        self._book.prepare()
        self._volumes.make(name)

    async def volumes(self) -> Sequence[VolumeInfo]:
        return self._volumes.all()

    async def delete_volume(self, name: str) -> None:
        await Blocking(self._volumes.delete, name)

    async def rename_volume(self, name: str, new: str) -> None:
        await Blocking(self._volumes.rename, name, new)

    async def commit_volume(self, name: str) -> None:
        await Blocking(self._volumes.sync, name)

    async def own(self, id: str, owner: int) -> None:
        await launch.request(self._book.folder(id), f"owner {owner}", timeout=launch.STOP_SECONDS)
        if made := self._book.made(id, Layered):  # for its forks, which have its owner
            self._book.write_made(id, Made(replace(made.spec, owner=owner), made.root))

    # ------------------------------------------------------------------------------------------- keeping house

    @property
    def layers(self) -> Layers:
        """The image store."""
        return self._layers

    @property
    def store(self) -> Book:
        """The book of its sandboxes."""
        return self._book

    def gc(self, *, check: bool = False) -> Sequence[str]:
        """Remove what crashes and power cuts left; return what was removed. Safe while sandboxes are created.

        Groups with processes may be of a sandbox in another state folder, and a new one's are still empty: both are left alone.
        `check`: only tell what would be removed.

        Raises:
            EngineError: something could not be removed; all else is.
        """
        # The groups before the ids: so a sandbox that is made meanwhile is not taken for dead.
        groups = cgroup.leftovers(host.hierarchies())
        ids = self._book.ids()
        dead = [id for id in ids if not self._book.alive(id)]
        orphans = {id: found for id, found in groups.items() if id not in ids and all(map(cgroup.abandoned, found))}
        failed: list[str] = []
        snapshots = expire(self._layers, check=check, failed=failed)
        if not check:
            with _trash.going_on(failed):
                host.tidy_router(_binary.find(self._book.state))
            dead = [id for id in dead if self._reaped(id, failed)]
            orphans = {id: found for id, found in orphans.items() if cgroup.remove(found)}
            self._layers.collect(failed)
            with _trash.going_on(failed), contextlib.suppress(FileNotFoundError):
                self._book.prune_ended()
            self._book.sweep(failed)
            self._uppers.sweep(failed)
        volumes = self._volumes.sweep(failed, check=check)
        _trash.tell(failed)
        return [
            *(f"volume {name}" for name in volumes),
            *(f"sandbox {id}" for id in dead),
            *(f"control groups of {id}" for id in orphans),
            *(f"snapshot {key[:12]}" for key in snapshots),
        ]

    def _reaped(self, id: str, failed: builtins.list[str]) -> bool:
        with _trash.going_on(failed):
            return self._reap(id, self._book.status(id)) is not None
        return False

    def _reap(self, id: str, status: Status | None, *, gone: bool = True) -> EndRecord | None:
        """Clear away a sandbox whose supervisor is dead. None if there is nothing to clear, or it lives."""
        folder = self._book.folder(id)
        if not folder.exists():
            return self._book.end(id) if gone else None
        if self._book.alive(id):
            return None
        end = self._book.end(id) or _ends.ended("lost", 137, time.time(), _WITHOUT_SUPERVISOR)
        cgroup.remove(cgroup.leftovers(host.hierarchies()).get(id, []))
        if not self._book.write_end(id, end, status):
            self._uppers.remove(id)  # what filled the disk makes room for how it ended
            if not self._book.write_end(id, end, status):
                return end  # the folder stays, and tells the same again
        self._uppers.remove(id)
        self._book.remove(folder)
        return end

    async def _kill(self, id: str) -> None:
        """End a sandbox whose supervisor does not answer: kill everything in its groups, then the supervisor."""
        cgroup.kill(cgroup.leftovers(host.hierarchies()).get(id, []))
        await launch.kill_supervisor(self._book.folder(id))
        await self._ended(id)

    async def _ended(self, id: str) -> bool:
        """Wait until nobody holds the sandbox any more; whether that is so within the time for an end."""
        deadline = time.monotonic() + launch.STOP_SECONDS
        while alive := self._book.alive(id):
            if time.monotonic() > deadline:
                break
            await Sleep(0.005)
        return not alive

    # ------------------------------------------------------------------------------------------------- boxes

    async def _box(
        self, spec: SandboxSpec, root: Root, id: str, folder: Path, lowers: Sequence[str], env: Mapping[str, str]
    ) -> plan.Box:
        """The plan's values for a sandbox."""
        resources = spec.resources
        limits, upper = asked.limits(resources), self._uppers.folder(id)
        return plan.Box(
            id=id,
            folder=folder,
            lowers=lowers,
            upper=f"{upper}/upper",
            work=f"{upper}/work",
            reuse=True,
            ids=host.ids(),
            net=await self._net(spec, id, folder),
            servers=network.resolv_conf(host.resolvers(spec.network)),
            timeout=spec.timeout,
            limits=limits,
            groups=host.groups(id, asked.around(spec, limits), degraded="limits" in spec.allow_degraded),
            record=f"{self._book.ended}/{id}",
            hold=True,
            idle=spec.idle_timeout,
            lease=spec.lease,
            owner=spec.owner or self._owner,
            guard=_guard(spec),
            volumes=self._volumes.lines(spec.mounts),
            sockets=cgroup.most_in_sockets(limits.memory),
            cpus=machine.cpus(limits.cpu),
            env=tuple(env.items()),
            user=root.user,
            workdir=spec.workdir or root.workdir,
            argv=spec.argv,
            disk=await self._disk(upper, resources.disk),
            extra=when_over(self._book.state, id, spec)
            + ([("may_lack", "seccomp")] if "seccomp" in spec.allow_degraded else []),
        )

    async def _disk(self, folder: Path, mebibytes: int | None) -> str:
        if not mebibytes:
            return ""
        path: str = await Blocking(disk.make, folder, mebibytes, self._book.state / "cache" / "disks")
        return path

    async def _net(self, spec: SandboxSpec, id: str, folder: Path) -> plan.Lines:
        """What a sandbox reaches, and how."""
        wanted, program = spec.network, _binary.find(self._book.state)
        if wanted.shared:
            return await host.shared_net(program)
        if wanted.block:
            return [("net", "none")]
        if wanted.listed:
            return [
                *egress.prepare(wanted, folder, self._egress_log(id), host.gates_resolvers()),
                *await host.router(program),
            ]
        posture.expect_network(folder)
        return await host.net(program, degraded="network" in spec.allow_degraded)

    def _egress_log(self, id: str) -> Path:
        return self._book.log(id, "egress")

    def _held(self, root: Layered) -> Lock:
        """The lock that keeps an image from `prune`. The supervisor inherits it, so it holds as long as the sandbox lives."""
        if held := self._layers.hold(root):
            return held
        raise EngineError("the image was pruned a moment ago; create the sandbox again")


def _refuse_running(id: str) -> None:
    """Refuse an id that its maker chose, if a sandbox of another state folder has it: both would
    have the same control groups, and whoever cannot begin clears those away.

    Raises:
        IdTakenError: one has it.
    """
    if id and any(map(members, cgroup.of(host.hierarchies(), id))):
        raise IdTakenError(id)


def _guard(spec: SandboxSpec) -> int:
    """What it may have on the store's disk. A disk of its own limits it, but for volumes."""
    if not spec.resources.disk:
        return MOST_ON_DISK
    return _MOST_OF_ALL if any(not mount.read_only for mount in spec.mounts) else 0
