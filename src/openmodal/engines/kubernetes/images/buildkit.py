"""Builds in the cluster: a Job whose pod has BuildKit in one container and, in another, our agent
and BuildKit's client.

The agent makes it a pod like a sandbox's: context and credentials travel over a link, in no object
of the cluster, output comes back by the same, and the pod ends by itself if who made it is dead.
Two containers, because the commands of a build run beside the daemon, where they could read its
files: the credentials are with the client, which uses them in the daemon's stead.

BuildKit without root needs system calls that "baseline" forbids (docs/kubernetes.md), hence a
namespace that has no sandboxes.
"""

from __future__ import annotations

import base64
import io
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

import msgspec

from openmodal import _wire
from openmodal._agent import Agent
from openmodal._command import Command, Feed, Sink
from openmodal._dual import run_sync
from openmodal._spec import ExecSpec, ExitRecord, OutputGap, Referenced, Resources, SandboxSpec
from openmodal._wire import Flag
from openmodal.build import credentials
from openmodal.build.reference import HUB
from openmodal.build.remote import Order, hosts
from openmodal.build.told import Listener, Told
from openmodal.engines.kubernetes import agent, pods
from openmodal.engines.kubernetes.api import Api, ApiError, Json
from openmodal.engines.kubernetes.links import open_link
from openmodal.engines.kubernetes.settings import Settings
from openmodal.errors import EngineError, ImageError

_GROUP = "apis/batch/v1"
_SECONDS = 3600.0  # for all of a build
_IDLE = 120.0  # seconds without a command, after which the agent ends, because who made it must be dead
_LOOKS = {"initialDelaySeconds": 10, "periodSeconds": 5, "failureThreshold": 3}  # at whether the agent is there
_FORGET = 60  # seconds after its end, in which the cluster removes a Job that nobody has
_STARTING = 60.0
_FOLDER = "/tmp/openmodal"
_SOCKETS = "/run/openmodal-buildkit"
_ADDRESS = f"unix://{_SOCKETS}/buildkitd.sock"
_DAEMON = "buildkitd"
_STATE = "/home/user/.local/share/buildkit"
_CLIENT_SIZE = Resources(cpu=0.5, memory=512, disk=10240)
_DAEMON_SIZE = Resources(cpu=1.0, memory=4096, disk=20480)

_TAKE = 'umask 077 && rm -rf "$0" && mkdir -p "$0/login" "$0/context" && cat >"$0/login/config.json"'
_READY = 'until buildctl --addr "$0" debug workers >/dev/null 2>&1; do sleep 0.2; done'

_MAY_NOT = (
    "images cannot be built in the cluster: {}; a cluster administrator makes the namespace for it with "
    "`openmodal setup kubernetes --builds`"
)


@contextmanager
def builder(cluster: Api, settings: Settings) -> Iterator[BuildKit]:
    """A pod for builds, for as long as the block lasts. `cluster` is with the namespace of builds.

    Raises:
        ImageError: the nodes cannot pull BuildKit's image.
        EngineError: the pod cannot be made, or does not start.
    """
    name, token = f"om-build-{secrets.token_hex(5)}", secrets.token_hex(16)
    try:
        pod = _made(cluster, settings, name)
        with BuildPod(cluster, pod, token).opened() as opened:
            opened.run(("sh", "-c", _READY, _ADDRESS), timeout=_STARTING)
            yield BuildKit(opened, settings)
    finally:
        with suppress(EngineError):  # then the cluster removes it, a minute after its agent has ended
            cluster.delete(cluster.path("jobs", name, group=_GROUP), grace=0)


def _made(cluster: Api, settings: Settings, name: str) -> str:
    """The pod of a new Job, when its containers run."""
    try:
        cluster.create(
            cluster.path("jobs", group=_GROUP), job(name, settings, agent.ensure(cluster, agent.config_map(settings)))
        )
        return started(cluster, settings, name)
    except ApiError as error:
        if error.status not in (403, 404):
            raise
        raise EngineError(_MAY_NOT.format(str(error).partition(";")[0])) from error


def job(name: str, settings: Settings, agent_map: str) -> Json:
    """The Job of one build."""
    # BuildKit makes its own namespaces, and nobody shall reach builds over the network
    own = msgspec.structs.replace(settings, runtime_class="", user_namespaces=False, direct=False)
    image = Referenced("", reference=settings.build_image)
    spec, other = (pods.pod_spec(image, size, agent_map, own) for size in (_CLIENT_SIZE, _DAEMON_SIZE))
    client, like = spec["containers"][0], other["containers"][0]
    shared = {"name": "sockets", "mountPath": _SOCKETS}
    containers = [{**client, "volumeMounts": [*client["volumeMounts"], shared]}, _daemon(like, shared)]
    volumes = [*spec["volumes"], {"name": "sockets", "emptyDir": {}}, {"name": "state", "emptyDir": {}}]
    labels = {"app.kubernetes.io/managed-by": "openmodal", f"{pods.DOMAIN}/part": "build"}
    metadata = {
        "labels": {**labels, f"{pods.DOMAIN}/network": "internet"},
        "annotations": {f"container.apparmor.security.beta.kubernetes.io/{_DAEMON}": "unconfined"},
    }
    pod = {**spec, "restartPolicy": "Never", "containers": containers, "volumes": volumes}
    limits = {"backoffLimit": 0, "activeDeadlineSeconds": int(_SECONDS), "ttlSecondsAfterFinished": _FORGET}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {**limits, "template": {"metadata": metadata, "spec": pod}},
    }


def _daemon(like: Json, shared: Json) -> Json:
    """BuildKit as a user without rights. Its own sandbox for processes needs a /proc of its own, which a container may not mount."""
    return {
        "name": _DAEMON,
        **{key: like[key] for key in ("image", "imagePullPolicy", "resources")},
        "args": ["--addr", _ADDRESS, "--oci-worker-no-process-sandbox"],
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "seccompProfile": {"type": "Unconfined"}},
        "volumeMounts": [shared, {"name": "state", "mountPath": _STATE}],
        "livenessProbe": _with_its_agent(),
    }


def _with_its_agent() -> Json:
    """The daemon ends with the agent, whose socket is a name in the network that the containers share. Then pod and Job have ended."""
    return {"exec": {"command": ["grep", "-q", pods.SOCKET, "/proc/net/unix"]}, **_LOOKS}


def started(cluster: Api, settings: Settings, name: str) -> str:
    """The name of the Job's pod, when the containers run."""
    give_up = time.monotonic() + settings.patience
    while True:
        found: list[Json] = cluster.get(cluster.pods(), labelSelector=f"job-name={name}")["items"]
        for pod in found:
            _check(pod, settings)
            if len(pod["status"].get("containerStatuses", ())) == 2 and _all_run(pod):
                return str(pod["metadata"]["name"])
        if time.monotonic() > give_up:
            waited = pods.waits_for(found[0]) if found else "its pod, which the cluster does not make"
            raise EngineError(f"the build waited {settings.patience:.0f} s for {waited}; add nodes")
        time.sleep(0.3)


def _all_run(pod: Json) -> bool:
    return all("running" in item.get("state", {}) for item in pod["status"]["containerStatuses"])


def _check(pod: Json, settings: Settings) -> None:
    ended = pods.end(pod)
    if not (trouble := pods.trouble(pod) or (ended and ("pod", ended.text))):
        return
    kind, text = trouble
    if kind == "image":
        raise ImageError(
            f"the cluster cannot pull {settings.build_image}: {text}; set kubernetes.build_image to a copy that it can pull"
        )
    raise EngineError(
        f"the pod of the build cannot run: {text}; if the cluster forbids that, set kubernetes.builder to another"
    )


class BuildPod:
    """The pod of a build, in which commands run one after the other."""

    def __init__(self, cluster: Api, pod: str, token: str) -> None:
        self._cluster = cluster
        self._pod = pod
        self._token = token
        self._agent = Agent(lambda: open_link(cluster, pod, _wire.auth(token)), self._why)

    @contextmanager
    def opened(self) -> Iterator[BuildPod]:
        """The pod with its agent told what it is, until the end of the block."""
        spec = SandboxSpec(app="builds", timeout=_SECONDS, idle_timeout=_IDLE)
        give_up = time.monotonic() + _STARTING
        while True:
            try:
                run_sync(open_link(self._cluster, self._pod, _wire.setup(self._token, spec, "", 0))).close()
                break
            except ConnectionError as error:  # it listens a moment after its start
                if time.monotonic() > give_up:
                    raise EngineError(f"the agent in the pod {self._pod} does not answer: {error}") from error
                time.sleep(0.1)
        try:
            yield self
        finally:
            self._agent.close()

    async def _why(self, error: Exception) -> None:
        """Raise why the pod has ended; return if it runs."""
        found = self._cluster.get(self._cluster.pods(), fieldSelector=f"metadata.name={self._pod}")["items"]
        if not found or not _all_run(found[0]):
            ended = pods.end(found[0]) if found else None
            reason = ended.text if ended else "somebody deleted it"
            raise EngineError(f"the pod of the build has ended: {reason}; build again") from error

    def run(
        self,
        argv: tuple[str, ...],
        *,
        stdin: bytes | IO[bytes] = b"",
        env: tuple[tuple[str, str], ...] = (),
        tell: Callable[[bytes], None] | None = None,
        timeout: float = _SECONDS,
    ) -> ExitRecord:
        """Run a command. `tell` takes the lines of its stderr, and may look at how it ended; without, it has to succeed."""
        lines = _Lines(tell or (lambda line: None))
        command = Command(self._agent, os.urandom(16))
        sinks: dict[int, Sink] = {1: _Lines(lambda line: None), 2: lines}
        spec = ExecSpec(argv, env=env, timeout=timeout, flags=Flag.STDIN)
        _, record = run_sync(command.run(spec, Feed(stdin), sinks))
        if tell is None and (record.code or record.signaled):
            raise EngineError(
                f"the builder in the cluster does not work: {argv[0]} ends with {record.code}: {lines.last}"
            )
        return record


class _Lines:
    """A stream, line by line."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        self.last = ""
        self._tell = tell
        self._rest = b""

    def skip(self, gap: OutputGap) -> None:
        """There is none: all is asked for."""

    def write(self, data: memoryview) -> None:
        *lines, self._rest = (self._rest + bytes(data)).split(b"\n")
        for line in lines:
            self.last = line.decode(errors="replace").strip() or self.last
            self._tell(line)


class BuildKit:
    """A builder that waits for orders."""

    def __init__(self, pod: BuildPod, settings: Settings) -> None:
        self._pod = pod
        self._settings = settings

    def make(self, order: Order, told: Told) -> str:
        """See `remote.Maker`."""
        self._pod.run(("sh", "-c", _TAKE, _FOLDER), stdin=login(hosts(order)))
        tar = ("tar", "-xf", "-", "-C", f"{_FOLDER}/context")
        self._pod.run(tar, stdin=cast("IO[bytes]", _Content(order.content())))
        listener, said = Listener(told.hear), list[str]()

        def hear(line: bytes) -> None:
            if line.startswith(b"{"):
                listener.solved(cast("dict[str, Any]", msgspec.json.decode(line)))
            elif line.strip():
                said.append(line.decode(errors="replace"))

        environment = (("DOCKER_CONFIG", f"{_FOLDER}/login"), ("PATH", "/usr/local/bin:/usr/bin:/bin"))
        record = self._pod.run(command(order, self._settings), env=environment, tell=hear)
        if record.code or record.signaled:
            raise told.failure("\n".join(said[-5:]))
        return ""


def command(order: Order, settings: Settings) -> tuple[str, ...]:
    """What BuildKit's client is told."""
    options = {"filename": order.part.dockerfile, "platform": f"linux/{settings.cpu}"}
    options |= {f"build-arg:{name}": value for name, value in order.part.args}
    return (
        *("buildctl", "--addr", _ADDRESS, "build", "--progress=rawjson", "--frontend=dockerfile.v0"),
        *(f"--local={name}={_FOLDER}/context" for name in ("context", "dockerfile")),
        *(f"--opt={name}={value}" for name, value in options.items()),
        *(("--no-cache",) if order.part.again else ()),
        f"--output=type=image,name={order.target},push=true",
    )


def login(names: Iterable[str]) -> bytes:
    """Docker's config.json with the credentials for these registries and no others."""
    auths: dict[str, dict[str, str]] = {}
    for host in names:
        if found := credentials.find(host):
            key = "https://index.docker.io/v1/" if host == HUB else host
            pair = base64.b64encode(f"{found.user}:{found.password}".encode()).decode()
            auths[key] = {"identitytoken": found.token} if found.token else {"auth": pair}
    return json.dumps({"auths": auths}).encode()


class _Content(io.RawIOBase):
    """A file that is made while it is read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._held = piece
        count = min(len(buffer), len(self._held))
        buffer[:count], self._held = self._held[:count], self._held[count:]
        return count
