"""Names of sandboxes: unique among the running ones of an app, in the whole cluster.

A name is a Lease, which the API server makes once however many ask at once. It belongs to the pod
and goes with it; one whose sandbox has ended is taken over.
"""

from __future__ import annotations

import hashlib

from openmodal._dual import Blocking
from openmodal._spec import SandboxSpec
from openmodal.engines.book import runs, taken
from openmodal.engines.contract import Engine
from openmodal.engines.kubernetes import policies
from openmodal.engines.kubernetes.api import Api, ApiError, Json
from openmodal.engines.kubernetes.pods import DOMAIN
from openmodal.engines.kubernetes.settings import Settings
from openmodal.errors import AlreadyExistsError

_GROUP = "apis/coordination.k8s.io/v1"
_ATTEMPTS = 10


async def claim(cluster: Api, settings: Settings, pod: Json, spec: SandboxSpec, id: str, engine: Engine) -> None:
    """Give a sandbox its name.

    Raises:
        AlreadyExistsError: a running sandbox of the app has it.
    """
    lease = _lease(settings, pod, spec, id)
    path = cluster.path("leases", group=_GROUP)
    own = f"{path}/{lease['metadata']['name']}"
    for _ in range(_ATTEMPTS):
        try:
            await Blocking(cluster.create, path, lease)
            return
        except ApiError as error:
            if error.status != 409:
                raise
        if await _take_over(cluster, own, lease, spec, engine):
            return
    raise AlreadyExistsError(
        f"several processes claim the name {spec.name!r} of app {spec.app!r} at once; try again, or choose another name"
    )


async def _take_over(cluster: Api, own: str, lease: Json, spec: SandboxSpec, engine: Engine) -> bool:
    """Take the name of a sandbox that has ended; False if things have changed meanwhile."""
    try:
        held: Json = await Blocking(cluster.get, own)
        holder = str(held["spec"].get("holderIdentity", ""))
        if await runs(engine, holder):
            raise taken(spec, holder)
        metadata = {**lease["metadata"], "resourceVersion": held["metadata"]["resourceVersion"]}
        await Blocking(cluster.replace, own, {**lease, "metadata": metadata})
    except ApiError as error:
        if error.status not in (404, 409):
            raise
        return False
    return True


def _lease(settings: Settings, pod: Json, spec: SandboxSpec, id: str) -> Json:
    known = f"{settings.owner}\0{spec.app}\0{spec.name}"
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": f"om-{hashlib.sha256(known.encode()).hexdigest()[:32]}",
            "labels": {"app.kubernetes.io/managed-by": "openmodal", f"{DOMAIN}/part": "name"},
            "ownerReferences": [policies.owner(pod)],
        },
        "spec": {"holderIdentity": id},
    }
