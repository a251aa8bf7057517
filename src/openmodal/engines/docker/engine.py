"""The Docker engine: the verbs, over the daemon's API; container.py tells what a sandbox is there.

The daemon owns the container, the agent inside keeps its deadline, and this machine keeps a small
folder per sandbox (book.py): its status, and the folder where the agent's socket appears. Whoever
first sees that a container has ended keeps how, and removes it; if nobody looks, `gc` does.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from openmodal import _args, _config, _ends, _trash
from openmodal._dual import Blocking, Sleep, within
from openmodal._link import Link, Streamed, until_end
from openmodal._spec import Built, BuiltStep, EndRecord, Info, Recipe, Referenced, Report, Root, SandboxSpec, Status
from openmodal.build import Options
from openmodal.build.layers import Layers
from openmodal.build.names import of_snapshot
from openmodal.engines import asked, checkpoints, ephemeral, folders, forwarding
from openmodal.engines.book import Book, new_id, unknown
from openmodal.engines.contract import Door, IdTakenError
from openmodal.engines.docker import container, generations, links, networks, posture, volumes
from openmodal.engines.docker.daemon import ApiError, ConflictError, Daemon, find
from openmodal.engines.docker.ends import Ending
from openmodal.engines.docker.host import Host, has_beside, no_ports, refused_disk
from openmodal.engines.docker.owners import identity
from openmodal.engines.posture import while_it_runs
from openmodal.errors import EngineError, UnsupportedError

if TYPE_CHECKING:
    from openmodal.build.prune import Pruned

_START_SECONDS = 60.0
_GRACE_SECONDS = 1.0
_LOOK_SECONDS = 30.0
_POLL = 0.003


class Docker(Ending, volumes.Keeper):
    """Sandboxes in containers of a Docker daemon, or of Podman's service for Docker's API."""

    name = "docker"

    @property
    def keeps(self) -> frozenset[str]:
        """What no verb tells."""
        return frozenset({"ids", "idle_pause", "lease", "network_shared", "registry_login", "snapshot_on_end"})

    def __init__(self, state: Path | None = None, daemon: Daemon | None = None) -> None:
        home = state or _config.state()
        self._book = Book(home / "docker", self)
        self._layers = Layers(home)
        self._daemon = daemon or find()
        self._home = str(self._book.state)

    @property
    def lacks(self) -> frozenset[str]:
        """`disk` needs what few daemons have, and most take IPv6 off loopback."""
        limits = ("disk", "memory_left", *(() if self._daemon.path else ("meminfo", "host_folders")))
        beside = () if self._daemon.path and Host.may_share_sockets(self._daemon) else ("idle_pause", "owner", "ports")
        together = () if self._daemon.path and Host.may_share_networks(self._daemon) else ("network_shared",)
        never = ("build_secrets", "gpus", "loopback6", "mount_image", "network_allowlists", "network_lists", "pools")
        return frozenset({*limits, *beside, *together, *never, "volume_rename", "volume_sub_paths"})

    # --------------------------------------------------------------------------------------- images

    async def prepare(self, image: Recipe, report: Report) -> Referenced:
        from openmodal.engines.docker.images import prepare
        from openmodal.engines.docker.prune import note_use

        self._book.prepare()
        root: Referenced = await Blocking(
            prepare, self._daemon, image, self._layers, report, Options(base=_config.base())
        )
        note_use(self._layers, root.key)
        return root

    # ------------------------------------------------------------------------------------ the verbs

    async def check(self, spec: SandboxSpec) -> None:
        if spec.runtime != "native" or spec.resources.disk or spec.network.shared or has_beside(spec):
            host: Host = await Blocking(Host.of, self._daemon)
            host.check(spec)
        if spec.mounts:
            await Blocking(self._check_mounts, spec.mounts)

    async def create(self, spec: SandboxSpec, root: Root) -> str:
        await self._book.now_and_then(self.gc)
        id = new_id(spec)
        status = asked.status(id, spec, root, self.name)
        with contextlib.ExitStack() as stack:
            async with self._book.naming(spec):
                made = asked.made(spec, asked.prepared(root, Referenced))
                folder = stack.enter_context(self._book.new(status, made))
            try:
                self._note_owner(id, identity(spec.owner))
                await self._start(spec, asked.prepared(root, Referenced), status, folder)
            except IdTakenError:  # the container is another's
                raise
            except BaseException:
                # The mark for a call that is still under way in a thread: what it makes from now on
                # is its own to remove.
                (folder / "status.json").unlink(missing_ok=True)
                with contextlib.suppress(EngineError):
                    await Blocking(self._remove, id)
                raise
        return id

    async def connect(self, id: str) -> Streamed:
        folder = self._book.folder(id)
        if pid := links.pid(folder):
            return await links.direct(folder / "run", pid)
        return await links.dial(self._daemon, id)

    async def door(self, id: str) -> Door | None:
        folder = self._book.folder(id)
        pid = links.pid(folder)
        return Door(folder / "run", pid) if pid else None

    async def forward(self, id: str, listeners: Mapping[int, socket.socket]) -> None:
        door = await self.door(id)
        if not door:
            raise no_ports()
        for port, listener in listeners.items():
            forwarding.start_to_stay(door, listener, port)
        self._book.write_tunnels(id, listeners)

    def journal(self, id: str) -> Path:
        return self._book.log(id, "journal")

    async def inspect(self, id: str) -> Status:
        status: Status = await Blocking(self._inspect, id)
        return status

    async def list(self) -> list[Status]:
        return [*await Blocking(self._running)]

    async def ended(self) -> Sequence[Status]:
        found: Sequence[Status] = await Blocking(self._book.ends)
        return found

    async def stop(self, id: str) -> None:
        keys = checkpoints.of(self._book.folder(id))
        await Blocking(self._stop, id)
        if keys:
            await Blocking(self._asked, generations.drop, self._layers, keys)

    async def reset(self, id: str, to: Root | None) -> int:
        made = await self.made(id)
        if made.spec.secrets:
            raise UnsupportedError(
                f"sandbox {id} has secrets, which the docker engine does not keep, so it cannot be reset; "
                "create another one, or use engine='embedded'"
            )
        with await self._alone(id):
            status, folder = await self.inspect(id), self._book.folder(id)
            if to:
                await Blocking(self._asked, generations.require, asked.prepared(to, Referenced))
            await Blocking(self._remove, id)
            self._mark(id).unlink(missing_ok=True)
            left = replace(made.spec, timeout=max(0.001, status.expires - time.time()))
            try:
                await self._start(left, asked.prepared(to, Referenced) if to else made.root, status, folder)
                if self._book.end(id):
                    raise ConnectionResetError(f"the sandbox {id} has ended")
                if status.tunnels:  # they have ended with the agent
                    with forwarding.listening(dict.fromkeys(left.ports, 0)) as listeners:
                        await self.forward(id, listeners)
            except BaseException as error:
                # Whoever ended it meanwhile may have seen no container, and nobody looks again.
                if self._book.end(id):
                    await Blocking(self._remove, id)
                if folder.exists():
                    self._book.write_end(id, _ends.ended("lost", 137, time.time(), f"its reset failed: {error}"))
                    await Blocking(self._asked, self._clear, id)
                elif isinstance(error, EngineError | OSError):
                    raise ConnectionResetError(f"sandbox {id} was terminated while it was reset") from error
                raise
            return generations.begin(folder)

    async def wait(self, id: str, timeout: float | None = None) -> EndRecord:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (status := await self.inspect(id)).ended:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError
            # One that is paused does not end, before somebody looks at it.
            over = time.monotonic() + max(_GRACE_SECONDS, min(_LOOK_SECONDS, status.expires - time.time()))
            with contextlib.suppress(ConnectionError, TimeoutError):
                until = over if deadline is None else min(over, deadline)
                await until_end(await within(until - time.monotonic(), self.connect(id)), until)
            await Sleep(0.02)  # it is just ending, or being reset
        return status.ended

    async def tag(self, id: str, tags: tuple[tuple[str, str], ...]) -> None:
        if not self._book.write_tags(id, tags):
            raise UnsupportedError(f"the tags of {id} can be changed on the machine that created it only")

    async def main_output(self, id: str, stream: int) -> bytes:
        return self._book.main_output(id, stream)

    async def info(self, id: str) -> Info:
        status = await self.inspect(id)
        found: dict[str, Any] | None = await Blocking(self._described, id)
        if found is None or status.ended:
            raise ConnectionResetError(f"the sandbox {id} has ended")
        generation = generations.now(self._book.folder(id))
        with while_it_runs(id):
            if info := posture.here(found, status.runtime):
                return replace(networks.told(found, info), generation=generation)
            await self.resume(id)  # its agent is asked
            link = Link(await self.connect(id))
            try:
                return replace(await posture.far(found, link, status.runtime), generation=generation)
            finally:
                link.close()

    # -------------------------------------------------------------------------------- keeping house

    @property
    def daemon(self) -> Daemon:
        """The daemon that this engine talks to."""
        return self._daemon

    def gc(self, *, check: bool = False) -> Sequence[str]:
        """Remove what crashes left: containers that ended and nobody looked at, folders without
        one; return what was removed.

        `check`: only tell what would be removed.

        Raises:
            EngineError: something could not be removed; all else is.
        """
        failed: list[str] = []
        with self._daemon.open() as api:
            snapshots = generations.expire(api, self._checkpoints(), check=check)
            known = container.names(api.get("/containers/json", all=True, filters=container.labels(container.ID)))
            left = [info.name for info in volumes.listed(api, self._home)]
            left = [name for name in left if ephemeral.is_abandoned(self._layers.path, name)]
            unused = networks.unused(api, self._home)
            dead = [id for id, item in known.items() if not container.runs(item) and self._may_collect(id, item)]
            orphans = [id for id in self._book.ids() if id not in known and not self._book.alive(id)]
            gone = [id for id in (*dead, *orphans) if not self._has_begun(api, id)]
            if not check:
                self._let_end(api, known)
                for id in gone:
                    with _trash.going_on(failed):
                        self._collect(api, id)
                left = [name for name in left if self._removed(api, name, failed)]
                unused = [name for name in unused if networks.drop(api, self._home, name)]
                with _trash.going_on(failed), contextlib.suppress(FileNotFoundError):
                    self._book.prune_ended()
        _trash.tell(failed)
        return [
            *(f"volume {name}" for name in left),
            *(f"network {name}" for name in unused),
            *(f"sandbox {id}" for id in gone),
            *(f"snapshot {id[7:19]}" for id in snapshots),
        ]

    def images(self) -> Sequence[Built]:
        """The images that the daemon keeps for us."""
        from openmodal.engines.docker.prune import images

        with self._daemon.open() as api:
            return images(api, self._layers)

    def history(self, key: str) -> Sequence[BuiltStep]:
        """The steps of an image that is built, the last one first."""
        from openmodal.engines.docker.prune import history

        with self._daemon.open() as api:
            return history(api, key)

    def prune(self, *, unused_for: float = 0.0, caches: bool = False) -> Pruned:
        """Remove images that were not used for so many seconds. What containers stand on stays."""
        from openmodal.engines.docker.prune import prune

        unused_for = _args.age("unused_for", unused_for)
        with self._daemon.open() as api:
            return prune(api, self._layers, self._checkpoints(), unused_for=unused_for, caches=caches)

    def _checkpoints(self) -> frozenset[str]:
        """The names of those that sandboxes have, which may live longer than they were to."""
        return frozenset(
            of_snapshot(key, self._layers) for id in self._book.ids() for key in checkpoints.of(self._book.folder(id))
        )

    # ------------------------------------------------------------------------------------- to begin

    async def _start(self, spec: SandboxSpec, root: Referenced, status: Status, folder: Path) -> None:
        host: Host = await Blocking(Host.lately if spec.runtime == "native" else Host.of, self._daemon)
        with networks.Membership(self._home, spec.network) as member:
            if spec.network.shared:
                await Blocking(member.begin, self._daemon)
            made: tuple[container.Place, dict[str, str]] = await Blocking(
                self._create, host, spec, root, status, folder, member
            )
            place, env = made
            denied = member.denied(host.denied())
            taken = await Blocking(self._daemon.take, f"/containers/{status.id}/attach?stream=1&stdin=1", speaks=False)
            attached = links.Attached(taken)
            try:
                found = await Blocking(self._run, status.id)
                # Nothing runs in the container yet: its agent waits for what is sent below.
                seen = None if place.gvisor else int(found["State"]["Pid"])
                await Blocking(folders.confirm, spec.mounts, seen)
                links.note_pid(folder, int(found["State"]["Pid"]) if place.run else 0)
                if spec.resources.disk and not (place.run or place.gvisor):
                    await Blocking(host.bound, found, self._layers)
                if place.gvisor and denied:
                    await Blocking(host.wall, found, denied, self._layers)
                # Before the agent begins: if this process is killed, the sandbox has its owner, or
                # ends because nobody tells the agent what it shall be.
                await self._give_again(status.id)
                if spec.on_idle == "pause":
                    await self._pause_when_idle(status.id)
                # gVisor itself confines the container: there are no host capabilities to drop, and
                # no host firewall to load rules into.
                wall = ((), ()) if place.gvisor else (denied, member.servers())
                await attached.send(container.setup(env, *wall, caged=not place.gvisor))
            finally:
                attached.close()
        await self._ready(status.id)

    def _create(
        self,
        host: Host,
        spec: SandboxSpec,
        root: Referenced,
        status: Status,
        folder: Path,
        member: networks.Membership,
    ) -> tuple[container.Place, dict[str, str]]:
        """Make the container; what it got of this machine, and the environment that its agent is to be told."""
        place, env, image = host.place(spec, root, folder, self._layers)
        request = container.body(spec, replace(root, reference=image), status, self._home, place)
        try:
            with self._daemon.open() as api:
                api.post("/containers/create", member.asked(request), name=status.id)
                member.join(api, status.id, request["Hostname"])
                self._cut_off(api, status.id)  # again, if it is reset
            if not (folder / "status.json").exists():
                self._remove(status.id)
            return place, env
        except ConflictError as error:
            raise IdTakenError(status.id) from error
        except ApiError as error:
            if spec.resources.disk and (why := refused_disk(error.message)):
                raise why from error
            raise

    def _run(self, id: str) -> dict[str, Any]:
        """Start the container and return its description."""
        with self._daemon.open() as api:
            api.post(f"/containers/{id}/start")
            found: dict[str, Any] = api.get(f"/containers/{id}/json")
        return found

    async def _ready(self, id: str) -> None:
        """Wait until the agent answers."""
        deadline = time.monotonic() + _START_SECONDS
        while not await self._greets(id):
            if await Blocking(self._has_ended, id):
                return
            if time.monotonic() > deadline:
                raise EngineError(
                    f"sandbox {id} did not start within {_START_SECONDS:.0f} s; is the machine overloaded?"
                )
            await Sleep(_POLL)

    async def _greets(self, id: str) -> bool:
        try:
            stream = await self.connect(id)
        except ConnectionError:
            return False
        try:
            return await stream.receive(memoryview(bytearray(64))) > 0
        except ConnectionError:
            return False
        finally:
            stream.close()

    def _has_ended(self, id: str) -> bool:
        """Whether it came to a proper end already: a main command can be quick.

        Raises:
            EngineError: it never began.
        """
        with self._daemon.open() as api:
            state = api.get(f"/containers/{id}/json")["State"]
            if state["Running"]:
                return False
            log = links.log(api, id)
        if container.end_of(state, log, 0.0)[0].reason == "lost":
            raise EngineError(f"the sandbox could not be started: {container.why_not(log[2])}")
        return True

    # -------------------------------------------------------------------------------------- to look

    def _inspect(self, id: str) -> Status:
        status, end = self._book.status(id), self._book.end(id)
        if end is None:
            with self._daemon.open() as api:
                alive = self._book.alive(id)  # before: a container may begin behind the look at it
                found = self._found(api, id)
                labelled = container.status_of(found["Config"]["Labels"] or {}) if found else None
                status = status or labelled
                if status is None:
                    raise unknown(id)
                if found and labelled and self._runs(id, found["State"]):
                    return self._seen(api, status, paused=bool(found["State"].get("Paused")))
                if alive or self._book.alive(id):
                    return status
                end = self._collect(api, id)
        return self._book.as_ended(id, end, status)

    def _running(self) -> Sequence[Status]:
        wanted = {**container.labels(f"{container.HOME}={self._home}"), "status": ["running", "paused"]}
        with self._daemon.open() as api:
            known = container.names(api.get("/containers/json", filters=wanted))
            found = [(self._book.status(id) or container.status_of(item["Labels"]), item) for id, item in known.items()]
            running = [
                self._seen(api, status, paused=item["State"] == "paused")
                for status, item in found
                if status and not status.build and self._book.end(status.id) is None
            ]
        return sorted(running, key=lambda status: status.created)

    def _described(self, id: str) -> dict[str, Any] | None:
        with self._daemon.open() as api:
            return self._found(api, id)
