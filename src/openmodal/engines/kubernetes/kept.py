"""Images that a cluster keeps under a key or a name: snapshots and published ones. Each is a
ConfigMap that tells the reference and until when; the files are in the registry."""

from __future__ import annotations

import hashlib
import time
from typing import NamedTuple

import msgspec

from openmodal._spec import AnyStep, Dockerfile, Recipe, Referenced, Registry, Snapshot
from openmodal.engines.kubernetes.api import Api, ApiError, Json
from openmodal.engines.kubernetes.pods import DOMAIN
from openmodal.engines.kubernetes.settings import Settings
from openmodal.errors import NotFoundError

_KEY, _PART = f"{DOMAIN}/key", f"{DOMAIN}/part"


class Kept(NamedTuple):
    """An image; `name` is "" for a snapshot, which expires at that time of the Unix clock."""

    object: str
    key: str
    name: str
    image: Referenced
    expires: float


def keep(cluster: Api, settings: Settings, key: str, image: Referenced, expires: float, name: str = "") -> None:
    """Keep an image under a key, or under a name, which another one may have had."""
    wanted = _config_map(settings, key, image, expires, name)
    try:
        cluster.create(cluster.path("configmaps"), wanted)
    except ApiError as error:
        if error.status != 409:
            raise
        cluster.patch(cluster.path("configmaps", wanted["metadata"]["name"]), wanted)


def listed(cluster: Api, settings: Settings, key: str = "") -> list[Kept]:
    """All of this user; with a key, those of that key."""
    selector = f"{_PART}=image,{DOMAIN}/owner={settings.owner}" + (f",{_KEY}={_short(key)}" if key else "")
    items = cluster.get(cluster.path("configmaps"), labelSelector=selector)["items"]
    found = [_kept(item) for item in items if "deletionTimestamp" not in item["metadata"]]
    return [each for each in found if not key or each.key == key]


def delete(cluster: Api, kept: Kept) -> bool:
    """Forget an image, whose files stay in the registry; whether it was there."""
    return cluster.delete(cluster.path("configmaps", kept.object))


def over(cluster: Api, settings: Settings) -> list[Kept]:
    """Those whose time is over."""
    return [each for each in listed(cluster, settings) if each.expires < time.time()]


def find(cluster: Api, settings: Settings, key: str) -> Referenced:
    """The image of a key, which is there until `gc` finds that it has expired.

    Raises:
        NotFoundError: there is none, or none any more.
    """
    for each in listed(cluster, settings, key):
        return each.image
    raise NotFoundError(
        f"snapshot {key[:12]} is not here: it has expired or was deleted, or another engine, cluster or user has it; "
        "take another one"
    )


def replaced(cluster: Api, settings: Settings, recipe: Recipe) -> Recipe:
    """The recipe with images of a registry in place of what is kept here."""
    return Recipe(tuple(_replaced(cluster, settings, step) for step in recipe.steps))


def _replaced(cluster: Api, settings: Settings, step: AnyStep) -> AnyStep:
    if isinstance(step, Snapshot):
        return Registry(find(cluster, settings, step.key).reference)
    if isinstance(step, Dockerfile) and step.bases:
        bases = tuple((name, replaced(cluster, settings, base)) for name, base in step.bases)
        return msgspec.structs.replace(step, bases=bases)
    return step


def _config_map(settings: Settings, key: str, image: Referenced, expires: float, name: str) -> Json:
    labels = {
        "app.kubernetes.io/managed-by": "openmodal",
        f"{DOMAIN}/owner": settings.owner,
        _PART: "image",
        _KEY: _short(key),
    }
    data = {"key": key, "name": name, "expires": str(expires), "image": msgspec.json.encode(image).decode()}
    digest = hashlib.sha256(f"{settings.owner}\0{name or key}\0{bool(name)}".encode()).hexdigest()[:40]
    metadata = {"name": f"om-image-{digest}", "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _kept(item: Json) -> Kept:
    data = item["data"]
    image = msgspec.json.decode(data["image"], type=Referenced)
    return Kept(str(item["metadata"]["name"]), data["key"], data["name"], image, float(data["expires"]))


def _short(key: str) -> str:
    """A label has 63 characters."""
    return key[:40]
