"""The way of one sandbox from a manifest to an agent that runs; every refusal of the cluster becomes one sentence."""

from __future__ import annotations

import functools
import logging
import random
import secrets
import time
from typing import NoReturn

from msgspec.structs import replace

from openmodal import _wire
from openmodal._dual import Blocking, Sleep
from openmodal._spec import Network, Referenced, SandboxSpec, Status
from openmodal._wire import Flag
from openmodal.engines import asked
from openmodal.engines.contract import IdTakenError
from openmodal.engines.kubernetes import agent, pods, policies, pool, snapshots, volumes
from openmodal.engines.kubernetes.api import SAY_AFTER, Api, ApiError, Json
from openmodal.engines.kubernetes.settings import Settings
from openmodal.errors import EngineError, ImageError

_SLICE = 10.0  # seconds: a watch under asyncio cannot be cancelled, so it is short
_NO_ROOM = "exceeded quota"
_log = logging.getLogger("openmodal")


class Start:
    """One sandbox being created."""

    def __init__(self, cluster: Api, settings: Settings, id: str, spec: SandboxSpec, root: Referenced) -> None:
        self._cluster = cluster
        # "native" is whatever the cluster, or the configuration, says of every pod
        self._settings = settings if spec.runtime == "native" else replace(settings, runtime_class=spec.runtime)
        self.id = id
        self._spec = spec
        self._root = root
        self._began = time.monotonic()
        self._told = False
        self._pod: Json = {}
        self.name = pods.name_of(id)
        self.token = secrets.token_hex(16)
        inside = replace(spec, workdir=spec.workdir or root.workdir)
        self.setup = _wire.setup(self.token, inside, root.user, Flag.STDIN)

    def status(self, created: float) -> Status:
        """What the pod's object says of the sandbox; `created` 0: not yet set up."""
        return asked.status(self.id, self._spec, self._root, "kubernetes", created)

    async def pod(self) -> Json:
        """Take a warm pod, or make one. While a quota is used up, wait for room.

        Raises:
            IdTakenError: there is a pod of that name, or one of a pool that has become the
                sandbox of that id.
        """
        # Those that wait are selected by the usual policy, and have names of their own: of two
        # calls with one id, each would take one.
        if self._spec.network == Network() and not self._spec.id and await self.take():
            return self._pod
        if self._spec.id and await Blocking(self._is_taken):
            raise IdTakenError(self.id)
        await Blocking(agent.ensure, self._cluster, self._agent)
        pause = 0.2
        while True:
            try:
                self._pod = await Blocking(self._cluster.create, self._cluster.pods(), self._manifest)
                return self._pod
            except ApiError as error:
                if error.status == 409:
                    raise IdTakenError(self.id) from error
                if _NO_ROOM not in str(error) or self._out_of_patience():
                    raise
                self._tell(f"room in the quota ({error})")
            await Sleep(pause * random.uniform(0.5, 1.5))  # of many that wait, not all at the same moment
            pause = min(5.0, pause * 2)

    async def rehearse(self) -> None:
        """Ask the API server whether it would take such a pod; none is made. A quota without room
        is no refusal: `pod` waits.

        Raises:
            EngineError: it would not.
        """
        try:
            await Blocking(self._cluster.request, "POST", self._cluster.pods(), self._manifest, {"dryRun": "All"})
        except ApiError as error:
            if _NO_ROOM not in str(error):
                raise

    async def take(self) -> bool:
        """Take a warm pod, if there is one."""
        taken: bool = await Blocking(self._take)
        return taken

    async def confine(self) -> None:
        """With a list of networks: let these through, and nothing else. Until that holds, the policies of `setup` do: nothing gets out."""
        if self._spec.network.cidrs is None:
            return
        labels, settings = pods.labels(self.id, self._spec, self._settings), self._settings
        policy = policies.listed(self._pod, labels, self._spec.network.cidrs, settings)
        await Blocking(self._cluster.create, self._cluster.path("networkpolicies", group=policies.GROUP), policy)

    async def wait(self) -> None:
        """Wait until the agent runs.

        Raises:
            ImageError: the node cannot pull the image.
            EngineError: the pod cannot run, or had to wait too long; the text tells for what.
        """
        while not pods.started(self._pod):
            self.check(self._pod)
            if self._out_of_patience():
                self._give_up()
            self._tell(pods.waits_for(self._pod))
            version = self._pod["metadata"]["resourceVersion"]
            try:
                changed = await Blocking(self._cluster.changed, self._cluster.pods(), self.name, version, self._slice())
            except ApiError as error:
                raise self._deleted(error) from error
            self._pod = changed or self._pod

    def check(self, pod: Json) -> None:
        """Raise what keeps the pod from running."""
        if not (trouble := pods.trouble(pod)):
            return
        kind, text = trouble
        if kind == "image":
            raise ImageError(
                f"the cluster cannot pull the image {self._root.reference}: {text}; "
                "check its name, and that the nodes can reach the registry and may pull from it"
            )
        raise EngineError(f"the pod of sandbox {self.id} cannot run: {text}")

    # ---------------------------------------------------------------------------------------- parts

    @functools.cached_property
    def _agent(self) -> Json:
        return agent.config_map(self._settings)

    @functools.cached_property
    def _manifest(self) -> Json:
        made = pods.manifest(self.name, self._shape, self._lifetime())
        made["metadata"] |= self._metadata()
        return made

    @functools.cached_property
    def _shape(self) -> Json:
        shape = pods.pod_spec(self._root, self._spec.resources, self._agent["metadata"]["name"], self._settings)
        return volumes.mounted(shape, self._spec.mounts, self._settings)

    def _take(self) -> bool:
        pod = pool.take(self._cluster, self._settings, self._shape, self._metadata(), self._lifetime())
        if pod:
            self._pod, self.name = pod, str(pod["metadata"]["name"])
        return pod is not None

    def _is_taken(self) -> bool:
        """Whether there is a sandbox of this id, whatever its pod is called."""
        chosen = f"{pods.DOMAIN}/id={pods.name_of(self.id)}"
        return bool(self._cluster.metadata(self._cluster.pods(), labelSelector=chosen))

    def _metadata(self) -> Json:
        fleeting = bool(self._spec.argv or self._spec.lease or self._spec.idle_timeout)
        notes = pods.first_described(self.status(0.0), self.token, fleeting=fleeting)
        notes |= snapshots.noted(self._root)
        return {"labels": pods.labels(self.id, self._spec, self._settings), "annotations": notes}

    def _lifetime(self) -> float:
        """The cluster's own deadline, for a pod whose agent does not keep its."""
        return self._spec.timeout + self._settings.patience + pods.SETUP_SECONDS + pods.EXTENSION

    def _slice(self) -> float:
        return max(1.0, min(_SLICE if self._told else SAY_AFTER, self._patience_left()))

    def _out_of_patience(self) -> bool:
        return self._patience_left() < 0

    def _patience_left(self) -> float:
        return self._began + self._settings.patience - time.monotonic()

    def _tell(self, what: str) -> None:
        """Say once what takes so long."""
        if not self._told and time.monotonic() - self._began > SAY_AFTER:
            self._told = True
            _log.warning("sandbox %s waits for %s", self.id, what)

    def _give_up(self) -> NoReturn:
        raise EngineError(
            f"the pod of sandbox {self.id} waited {self._settings.patience:.0f} s for "
            f"{pods.waits_for(self._pod)}; ask for less, add nodes, or raise kubernetes.patience"
        )

    def _deleted(self, error: ApiError) -> EngineError:
        if error.status != 404:
            return error
        return EngineError(f"the pod of sandbox {self.id} was deleted by somebody while it started; try again")
