"""Images for a cluster: one of a registry as it is; anything else is built, here or where the settings say, and pushed to the registry."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from openmodal import _config
from openmodal._dual import Blocking
from openmodal._spec import Layered, Recipe, Referenced, Report
from openmodal.build import credentials, origin, pull, remote
from openmodal.build.base import trust_layer
from openmodal.build.layers import Layers
from openmodal.build.names import digest
from openmodal.build.push import push, referenced
from openmodal.build.reference import HUB, Reference, parse
from openmodal.build.registry import Client, Denied
from openmodal.engines import asked, load
from openmodal.engines.kubernetes import api
from openmodal.engines.kubernetes.images import buildkit, cloudbuild
from openmodal.engines.kubernetes.settings import Settings
from openmodal.errors import EngineError

NO_REGISTRY = (
    "this image has to be built, and the cluster can only pull it from a registry: set OPENMODAL_REGISTRY=host/path, "
    "or `registry` in the configuration, to one that the builder and the cluster can reach; Image.from_registry needs none"
)


def builder(settings: Settings) -> str:
    """Where images are built: "local", "cluster" or "cloudbuild"."""
    return settings.builder or ("local" if remote.possible_here() else "cluster")


class Images:
    """Images as references that nodes can pull."""

    def __init__(self, state: Path, settings: Settings) -> None:
        self._store = Layers(state)
        self._settings = settings

    async def prepare(self, image: Recipe, report: Report) -> Referenced:
        """The image, as one reference."""
        if reference := origin.as_it_is(image):
            as_it_is: Referenced = await Blocking(self._as_it_is, reference)
            return as_it_is
        registry = _config.registry()
        if not registry:
            raise EngineError(NO_REGISTRY)
        target = parse(f"{registry.rstrip('/')}/openmodal:latest")
        if (where := builder(self._settings)) != "local":
            made: Referenced = await Blocking(self._elsewhere, where, image, report, target)
            return made
        built = asked.prepared(await load("embedded").prepare(image, report), Layered)
        pushed: Referenced = await Blocking(push, self._store, _over_trust(self._store, built), target)
        return pushed

    def _elsewhere(self, builder: str, image: Recipe, report: Report, target: Reference) -> Referenced:
        """Have it built where `builder` says."""
        maker = functools.partial(cloudbuild.builder, target) if builder == "cloudbuild" else self._in_the_cluster
        return remote.prepare(maker, self._store, image, target, report, self._seen, self._settings.cpu)

    def _in_the_cluster(self) -> AbstractContextManager[remote.Maker]:
        cluster = api.connect(self._settings.context, self._settings.builds)
        return buildkit.builder(cluster, self._settings)

    def _as_it_is(self, text: str) -> Referenced:
        """An image of a registry: its digest and configuration; just its name, if only the nodes may see it."""
        reference = parse(text)

        def find() -> Referenced:
            try:
                return self._seen(reference)
            except Denied:
                return Referenced(text, reference=text)

        note = f"seen-{digest(str(reference), self._settings.cpu)[:40]}"
        return remote.remembered(self._store, note, find, always=reference.is_digest)

    def _seen(self, reference: Reference) -> Referenced:
        """An image of a registry for the nodes' CPU, by its digest."""
        return seen(reference, self._settings.cpu)


def _over_trust(store: Layers, root: Layered) -> Layered:
    """The image with this machine's extra certificate authorities, if it was told to trust some."""
    if not (bundle := _config.authorities()):
        return root
    key, variables = trust_layer(store, bundle)
    env = tuple({**dict(variables), **dict(root.env)}.items())
    return msgspec.structs.replace(root, key=digest(root.key, key), layers=(key, *root.layers), env=env)


def seen(reference: Reference, cpu: str) -> Referenced:
    """An image of a registry for a CPU, by its digest."""
    with Client(reference.host, login=credentials.find(reference.host)) as client:
        _, manifest, _ = client.manifest(reference)
        root = pull.root(pull.resolve(client, reference, cpu))
    host = "docker.io" if reference.host == HUB else reference.host
    return referenced(root, f"{host}/{reference.repository}@{manifest}")
