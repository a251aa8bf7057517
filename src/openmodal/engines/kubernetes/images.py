"""Images for a cluster: one of a registry as it is; anything else is built on this machine and pushed to the configured registry."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from openmodal import _config
from openmodal._dual import Blocking
from openmodal._spec import Recipe, Registry, Report, Root
from openmodal.build import credentials, pull
from openmodal.build.base import trust_layer
from openmodal.build.layers import Layers
from openmodal.build.names import digest
from openmodal.build.push import push
from openmodal.build.reference import HUB, Reference, parse
from openmodal.build.registry import Client, Denied
from openmodal.engines import load
from openmodal.engines.kubernetes.settings import Settings
from openmodal.errors import EngineError

_SURE = 300.0  # seconds for which a tag is believed to mean what it meant

_NO_REGISTRY = (
    "this image is built on this machine, and the cluster can only pull it from a registry: set OPENMODAL_REGISTRY=host/path, "
    "or `registry` in the configuration, to one that both can reach; Image.from_registry needs none"
)


class Images:
    """Images as references that nodes can pull."""

    def __init__(self, state: Path, settings: Settings) -> None:
        self._store = Layers(state)
        self._settings = settings

    async def prepare(self, image: Recipe, report: Report) -> Root:
        """The image, as one reference."""
        if len(image.steps) == 1 and isinstance(step := image.steps[0], Registry):
            as_it_is: Root = await Blocking(self._as_it_is, step.reference)
            return as_it_is
        registry = _config.registry()
        if not registry:
            raise EngineError(_NO_REGISTRY)
        built = await load("embedded").prepare(image, report)
        target = parse(f"{registry.rstrip('/')}/openmodal:latest")
        pushed: Root = await Blocking(push, self._store, _over_trust(self._store, built), target)
        return pushed

    def _as_it_is(self, text: str) -> Root:
        """An image of a registry: its digest and configuration; just its name, if only the nodes may see it."""
        reference = parse(text)
        note = f"seen-{digest(str(reference), self._settings.cpu)[:40]}"
        known = self._store.note(note)
        if known and (reference.is_digest or 0 <= time.time() - float(known["asked"]) < _SURE):
            return msgspec.convert(known["root"], Root)
        try:
            root = _seen(reference)
        except Denied:
            root = Root(key=text, layers=(text,))
        self._store.set_note(note, {"root": msgspec.to_builtins(root), "asked": time.time()})
        return root


def _over_trust(store: Layers, root: Root) -> Root:
    """The image with this machine's extra certificate authorities, if it was told to trust some."""
    if not (bundle := _config.authorities()):
        return root
    layer, variables = trust_layer(store, bundle)
    env = tuple({**dict(variables), **dict(root.env)}.items())
    return msgspec.structs.replace(
        root, key=digest(root.key, Path(layer).parent.name), layers=(layer, *root.layers), env=env
    )


def _seen(reference: Reference) -> Root:
    with Client(reference.host, login=credentials.find(reference.host)) as client:
        _, manifest, _ = client.manifest(reference)
        root = pull.root(pull.resolve(client, reference))
    host = "docker.io" if reference.host == HUB else reference.host
    return msgspec.structs.replace(root, layers=(f"{host}/{reference.repository}@{manifest}",))
