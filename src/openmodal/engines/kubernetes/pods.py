"""Pods as values: the manifest of a sandbox, and what a pod's object tells about one. Nothing here talks to a cluster."""

from __future__ import annotations

import hashlib
import math
import re
import time
from datetime import datetime
from typing import Any

import msgspec

from openmodal import _ends
from openmodal._spec import EndRecord, Referenced, Resources, SandboxSpec, Status
from openmodal.engines import asked, posture
from openmodal.engines.kubernetes.settings import Settings, label

Json = dict[str, Any]

DOMAIN = "openmodal.dev"
CONTAINER = "sandbox"
SOCKET = "@openmodal"
AGENT = "/.openmodal/openmodal-agent"
GPU = "nvidia.com/gpu"
PORT = 7333
"""Where the agent of a pod can be reached directly that was made with the setting `direct`."""

_PORT_NAME = "openmodal"

DEFAULT_DISK = 10240

_FOR_EVER_MS = 10**12  # 30 years

SETUP_SECONDS = 120
"""How long an agent waits to be told what it shall be: its pod ends by itself when who made it is dead."""


EXTENSION = 24 * 3600.0
"""How much later than it was created to end a sandbox may be told to end: a pod's own deadline can only be brought
forward."""


def name_of(id: str) -> str:
    """The pod of a sandbox: an id may have capitals and underscores, a pod's name may not."""
    app, hyphen, number = id.rpartition("-")
    if not hyphen:  # one that its maker chose (_args.sandbox_id): no other may have the same name
        return f"om-{id}"
    return f"om-{re.sub('[^a-z0-9]+', '-', app.lower())[:40].strip('-') or 'app'}-{number.lower()}"


def labels(id: str, spec: SandboxSpec, settings: Settings) -> dict[str, str]:
    """What a sandbox's pod is selected by."""
    return {
        f"{DOMAIN}/id": name_of(id),
        "app.kubernetes.io/managed-by": "openmodal",
        f"{DOMAIN}/owner": settings.owner,
        f"{DOMAIN}/app": label(spec.app),
        f"{DOMAIN}/network": "none" if spec.network.block else "listed" if spec.network.listed else "internet",
        **({f"{DOMAIN}/run": label(spec.run)} if spec.run else {}),
    }


def selector(settings: Settings) -> str:
    """The sandboxes of this user."""
    return f"app.kubernetes.io/managed-by=openmodal,{DOMAIN}/owner={settings.owner},{DOMAIN}/app"


def described(status: Status) -> dict[str, str]:
    """What any process of this user has to know of a sandbox."""
    return {f"{DOMAIN}/sandbox": msgspec.json.encode(status).decode()}


def first_described(status: Status, token: str, *, fleeting: bool) -> dict[str, str]:
    """What its pod is made with. The token is what its agent asks who connects for."""
    return {**described(status), f"{DOMAIN}/token": token, f"{DOMAIN}/fleeting": str(fleeting).lower()}


def manifest(name: str, spec: Json, lifetime: float) -> Json:
    """A pod that waits to be told what sandbox it is; nothing of its user is in it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {**spec, "restartPolicy": "Never", "activeDeadlineSeconds": math.ceil(lifetime)},
    }


def warm(spec: Json) -> Json:
    """The same pod as it waits in a pool: without end, and restarted by the cluster, so that its agent must not exit."""
    first = spec["containers"][0]
    options = ("--setup-ms", str(_FOR_EVER_MS), "--linger", "1")
    container = {**first, "command": [*first["command"][:-2], *options]}
    return {**spec, "restartPolicy": "Always", "containers": [container]}


def shape(spec: Json) -> str:
    """A name for all that cannot be changed of a pod once it runs: warm pods of one shape are alike."""
    return hashlib.sha256(msgspec.json.encode(spec, order="sorted")).hexdigest()[:32]


def pod_spec(root: Referenced, resources: Resources, agent: str, settings: Settings) -> Json:
    """How it runs (security.md, 2.5)."""
    spec: Json = {
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostNetwork": False,
        "hostPID": False,
        "hostIPC": False,
        "shareProcessNamespace": False,
        "dnsPolicy": "Default",
        "nodeSelector": {"kubernetes.io/arch": settings.cpu, "kubernetes.io/os": "linux"},
        "securityContext": {"runAsUser": 0, "runAsGroup": 0, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [_container(root, resources, settings)],
        "volumes": [{"name": "agent", "configMap": {"name": agent, "defaultMode": 0o555}}],
    }
    if settings.runtime_class:
        spec["runtimeClassName"] = settings.runtime_class
    if settings.user_namespaces:
        spec["hostUsers"] = False
    if resources.gpus:  # nodes that have some are kept free of pods that need none
        spec["tolerations"] = [{"key": GPU, "operator": "Exists"}]
    if resources.gpu_type:
        spec["nodeSelector"][settings.gpu_label] = resources.gpu_type
    return spec


def _container(root: Referenced, resources: Resources, settings: Settings) -> Json:
    port = ("--port", str(PORT)) if settings.direct else ()
    container: Json = {
        "name": CONTAINER,
        "image": root.reference,
        "imagePullPolicy": "IfNotPresent",
        "command": [AGENT, "init", "--listen", SOCKET, *port, "--setup-ms", str(SETUP_SECONDS * 1000)],
        "resources": _limits(resources, settings),
        "volumeMounts": [{"name": "agent", "mountPath": AGENT.rpartition("/")[0], "readOnly": True}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "capabilities": {"drop": ["ALL"], "add": list(posture.KEPT)},
        },
    }
    # The agent is told the image's folder. Each link is an exec, which fails where that is gone.
    if root.workdir:
        container["workingDir"] = "/"
    if port:
        container["ports"] = [{"name": _PORT_NAME, "containerPort": PORT, "protocol": "TCP"}]
    return container


def _limits(resources: Resources, settings: Settings) -> Json:
    """Reserved as much as it may use, unless the configuration lets nodes promise more than they have."""
    cpu = resources.cpu or asked.DEFAULT_CPU
    sizes = {
        "memory": resources.memory or asked.DEFAULT_MEMORY,
        "ephemeral-storage": resources.disk or DEFAULT_DISK,
    }
    share = settings.overcommit
    limits = {"cpu": _cores(cpu), **{name: f"{size}Mi" for name, size in sizes.items()}}
    requests = {
        "cpu": _cores(cpu / share),
        **{name: f"{math.ceil(size / share)}Mi" for name, size in sizes.items()},
    }
    gpus = {GPU: str(resources.gpus)} if resources.gpus else {}
    return {"limits": limits | gpus, "requests": requests | gpus}


def _cores(cpu: float) -> str:
    return f"{max(1, math.ceil(cpu * 1000))}m"


def agent_map(binary: bytes, settings: Settings) -> Json:
    """The ConfigMap that brings the agent into any image: named by its content, never changed."""
    import base64

    digest = hashlib.sha256(binary).hexdigest()[:12]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"openmodal-agent-{settings.cpu}-{digest}",
            "labels": {"app.kubernetes.io/managed-by": "openmodal", f"{DOMAIN}/part": "agent"},
        },
        "immutable": True,
        "binaryData": {AGENT.rpartition("/")[2]: base64.b64encode(binary).decode()},
    }


# --------------------------------------------------------------------------------- what a pod tells


class Found(msgspec.Struct, frozen=True):
    """A sandbox as its pod, of that name, tells. `fleeting`: it may end before its time; `ready`:
    it was set up.

    `address` is where its agent listens for those who need no API server, as long as the pod runs
    and is not being deleted.
    """

    pod: str
    uid: str
    status: Status
    token: str
    phase: str
    deleting: bool
    ready: bool
    fleeting: bool
    address: tuple[str, int] | None

    @property
    def may_have_ended(self) -> bool:
        """Whether its agent's report is worth a look. A pod from a pool runs on when its sandbox has ended."""
        lingers = self.pod != name_of(self.status.id)
        return self.phase != "Running" or (lingers and (self.fleeting or self.status.expires < time.time()))


def found(pod: Json) -> Found | None:
    """The sandbox that a pod is; None if it is none of ours, or says so in words that we do not know."""
    notes = pod["metadata"].get("annotations") or {}
    try:
        status = msgspec.json.decode(notes[f"{DOMAIN}/sandbox"], type=Status)
        token = str(notes[f"{DOMAIN}/token"])
    except (KeyError, msgspec.DecodeError):
        return None
    return Found(
        pod=str(pod["metadata"]["name"]),
        uid=str(pod["metadata"]["uid"]),
        status=status,
        token=token,
        phase=str(pod.get("status", {}).get("phase", "")),
        deleting="deletionTimestamp" in pod["metadata"],
        ready=status.created > 0,
        fleeting=notes.get(f"{DOMAIN}/fleeting") == "true",
        address=_address(pod),
    )


def _address(pod: Json) -> tuple[str, int] | None:
    status = pod.get("status", {})
    if status.get("phase") != "Running" or "deletionTimestamp" in pod["metadata"] or not status.get("podIP"):
        return None
    ports = pod["spec"]["containers"][0].get("ports", ())
    return next(
        ((str(status["podIP"]), int(port["containerPort"])) for port in ports if port.get("name") == _PORT_NAME), None
    )


def most_left(pod: Json) -> float:
    """Seconds until the cluster ends it, whatever its agent says."""
    began = pod.get("status", {}).get("startTime") or pod["metadata"]["creationTimestamp"]
    ends = datetime.fromisoformat(began).timestamp() + float(pod["spec"].get("activeDeadlineSeconds", math.inf))
    return ends - SETUP_SECONDS - time.time()


def started(pod: Json) -> bool:
    """Whether its agent runs, or has run."""
    return any("running" in state or "terminated" in state for state in _states(pod))


def trouble(pod: Json) -> tuple[str, str] | None:
    """Why it will not start, as (kind, text): kind "image" or "pod"; None if it may."""
    status = pod.get("status", {})
    if status.get("phase") == "Failed":
        return "pod", _failure(pod)
    for state in _states(pod):
        waiting = state.get("waiting", {})
        reason, text = str(waiting.get("reason", "")), str(waiting.get("message", ""))
        if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"):
            return "image", text or reason
        if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"):
            return "pod", text or reason
    return None


def exit_codes(pod: Json) -> dict[str, int]:
    """The exit codes of those of its containers that have ended, by name."""
    containers = pod.get("status", {}).get("containerStatuses", [])
    ended = (
        (item["name"], item["state"]["terminated"]) for item in containers if "terminated" in item.get("state", {})
    )
    return {str(name): int(state["exitCode"]) for name, state in ended}


def waits_for(pod: Json) -> str:
    """What it is waiting for, in a few words."""
    conditions = {item["type"]: item for item in pod.get("status", {}).get("conditions", [])}
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") != "True":
        return f"a node{_wanted(pod)} ({scheduled.get('message') or 'the scheduler has not looked at it yet'})"
    reasons = [str(state["waiting"].get("reason", "")) for state in _states(pod) if "waiting" in state]
    return f"its node to pull the image and start it ({reasons[0] if reasons else 'nothing is known yet'})"


def _wanted(pod: Json) -> str:
    """What a node must have that not every node has."""
    limits, selector = pod["spec"]["containers"][0]["resources"]["limits"], pod["spec"].get("nodeSelector", {})
    chosen = {name: value for name, value in selector.items() if not name.startswith("kubernetes.io/")}
    special = {name: value for name, value in limits.items() if name == GPU} | chosen
    return " with " + ", ".join(f"{name}: {value}" for name, value in special.items()) if special else ""


def end(pod: Json) -> EndRecord | None:
    """How a pod's sandbox ended, if its agent could not say so itself; None while it may run."""
    finished = [state["terminated"] for state in (*_states(pod), *_states(pod, "lastState")) if "terminated" in state]
    if pod.get("status", {}).get("phase") not in ("Failed", "Succeeded") and not finished:
        return None
    reason = str(pod["status"].get("reason", ""))
    if reason == "DeadlineExceeded":
        return _ends.ended("timeout", 124, time.time())
    if any(state.get("reason") == "OOMKilled" for state in finished):
        return _ends.ended("oom", 137, time.time())
    return _ends.ended("error", 137, time.time(), _failure(pod))


def _failure(pod: Json) -> str:
    """What the cluster says of a pod that failed."""
    status = pod.get("status", {})
    texts = [str(status.get(name, "")) for name in ("reason", "message")]
    for state in _states(pod):
        ended = state.get("terminated", {})
        if not any(texts) and ended:
            texts = [str(ended.get("reason", "")), str(ended.get("message", "")), f"exit code {ended.get('exitCode')}"]
    return "the cluster ended its pod: " + (": ".join(filter(None, texts)) or "it does not say why")


def _states(pod: Json, which: str = "state") -> list[Json]:
    return [dict(item.get(which, {})) for item in pod.get("status", {}).get("containerStatuses", [])]
