"""An image of a registry made into layers: index → manifest → blobs → folders.

Layers are downloaded side by side and unpacked in order. Their keys are made of the digests of
their uncompressed content, so images that share layers share them here, whatever they are
compressed with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from openmodal._hidden import NOTHING, Hidden
from openmodal._spec import Layered
from openmodal.build import credentials
from openmodal.build.layers import Meta
from openmodal.build.names import FORMAT, architecture, digest
from openmodal.build.reference import (
    INDEXES,
    MANIFESTS,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Reference,
    RunConfig,
    checked_digest,
    parse,
)
from openmodal.build.registry import Client
from openmodal.build.streams import Stream
from openmodal.build.unpack import Limits, unpack
from openmodal.errors import RegistryError

if TYPE_CHECKING:
    from openmodal.build.steps import Builder

_MOST_LAYERS = 127  # as Docker; more is no image but an attack
_LARGEST_BLOB = 32 << 30
_NESTED = 3
_TITLE = 200
_AT_ONCE = 4
_T = TypeVar("_T")


class Plan(msgspec.Struct, frozen=True):
    """What is to be fetched: blobs with the digests of their content, the keys of their layers and
    what made them, the lowest first."""

    key: str
    blobs: tuple[Descriptor, ...]
    contents: tuple[str, ...]
    keys: tuple[str, ...]
    titles: tuple[str, ...]
    config: RunConfig


def pull(builder: Builder, text: str, limits: Limits | None = None, *, login: Hidden = NOTHING) -> Layered:
    """Fetch what is missing of an image and return it. `login`: instead of Docker's configuration.

    Raises:
        RegistryError: the registry cannot be reached, refuses, or lies.
    """
    reference = parse(text)
    found = credentials.of(login) or credentials.find(reference.host, builder.options.docker_config)
    with Client(reference.host, login=found, insecure=builder.options.insecure) as client:
        plan = resolve(client, reference)
        # One process downloads; the others find the layers made.
        with builder.store.guard(f"pull-{plan.key}"):
            _fetch(builder, client, reference, plan, limits)
    return root(plan)


def resolve(client: Client, reference: Reference, cpu: str = "") -> Plan:
    """Follow a name to a CPU's manifest, this machine's if it is "", and check everything that is known before the first layer."""
    cpu = cpu or architecture()
    manifest = _decode(_manifest(client, reference, cpu), Manifest, reference)
    if manifest.manifests is not None:
        raise RegistryError(f"{reference} is index and manifest at once; refused")
    if not 0 < len(manifest.layers) <= _MOST_LAYERS:
        raise RegistryError(f"{reference} has {len(manifest.layers)} layers; 1 to {_MOST_LAYERS} are possible")
    for blob in (manifest.config, *manifest.layers):
        checked_digest(blob.digest)
        if not 0 <= blob.size <= _LARGEST_BLOB:
            raise RegistryError(f"{reference} has a layer of {blob.size} bytes; refused")
    config = _decode(client.small(reference, manifest.config), ImageConfig, reference)
    _check_platform(config, reference, cpu)
    contents = tuple(checked_digest(content) for content in config.rootfs.diff_ids)
    if len(contents) != len(manifest.layers):
        raise RegistryError(f"{reference} has {len(manifest.layers)} layers, and digests for {len(contents)}; refused")
    key = digest("registry", FORMAT, cpu, manifest.config.digest)
    return Plan(key, manifest.layers, contents, _keys(contents), _titles(config), config.config or RunConfig())


def _manifest(client: Client, reference: Reference, cpu: str) -> bytes:
    target = ""
    for _ in range(_NESTED):
        kind, _, body = client.manifest(reference, target)
        if kind not in INDEXES:  # the header counts: podman's manifests do not say their type inside
            if kind not in MANIFESTS:
                raise RegistryError(f"{reference} is of the type {kind!r}, which is no image")
            return body
        index = _decode(body, Index, reference)
        if index.layers is not None or index.config is not None:
            raise RegistryError(f"{reference} is index and manifest at once; refused")
        target = checked_digest(_choose(index.manifests, reference, cpu).digest)
    raise RegistryError(f"{reference} is an index of indexes without end; refused")


def _choose(manifests: Sequence[Descriptor], reference: Reference, cpu: str) -> Descriptor:
    ours = [m for m in manifests if m.platform and (m.platform.os, m.platform.architecture) == ("linux", cpu)]
    unnamed = [m for m in manifests if m.platform is None]
    if found := (ours or unnamed):
        return found[0]
    others = ", ".join(sorted({f"{m.platform.os}/{m.platform.architecture}" for m in manifests if m.platform}))
    raise RegistryError(f"{reference} is not made for linux/{cpu}, only for {others[:200] or 'nothing'}")


def _check_platform(config: ImageConfig, reference: Reference, cpu: str) -> None:
    if (config.os, config.architecture) not in (("linux", cpu), ("", "")):
        raise RegistryError(f"{reference} is made for {config.os}/{config.architecture}, not for linux/{cpu}")


def _decode(body: bytes, kind: type[_T], reference: Reference) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RegistryError(f"what the registry says about {reference} cannot be read: {error}") from error


def _titles(config: ImageConfig) -> tuple[str, ...]:
    """What made each layer, as the image says; its digest if the image does not say it of each."""
    made = [" ".join((past.created_by or "").split()) for past in config.history or () if not past.empty_layer]
    contents = config.rootfs.diff_ids
    known = made if len(made) == len(contents) else [""] * len(contents)
    return tuple(f"layer {made or content}"[:_TITLE] for made, content in zip(known, contents, strict=True))


def _keys(contents: Sequence[str]) -> tuple[str, ...]:
    keys: list[str] = []
    for content in contents:
        keys.append(digest("layer", FORMAT, keys[-1] if keys else "", content))
    return tuple(keys)


def root(plan: Plan) -> Layered:
    config = plan.config
    pairs = (entry.partition("=") for entry in config.env or ())
    return Layered(
        key=plan.key,
        layers=tuple(reversed(plan.keys)),
        env=tuple((name, value) for name, _, value in pairs),
        workdir=config.working_dir or "",
        user=config.user or "",
        entrypoint=config.entrypoint or (),
        shell=config.shell or (),
        onbuild=config.on_build or (),
        cmd=config.cmd or (),
    )


# ------------------------------------------------------------------------------------------- layers


def _fetch(builder: Builder, client: Client, reference: Reference, plan: Plan, limits: Limits | None) -> None:
    with builder.store.scratch() as folder, ThreadPoolExecutor(_AT_ONCE) as pool:
        files: dict[str, Path] = {}
        missing = [n for n, key in enumerate(plan.keys) if not builder.store.has(key)]
        blobs = {plan.blobs[n].digest: plan.blobs[n] for n in missing}
        downloads = {}
        arriving = _Arriving(builder, blobs.values())
        for name, blob in blobs.items():
            files[name] = folder / name.removeprefix("sha256:")
            downloads[name] = pool.submit(client.download, reference, blob, files[name], arriving.of(name))
        try:
            for n, key in enumerate(plan.keys):
                below = plan.keys[n - 1] if n else ""
                if not builder.store.has(key) and plan.blobs[n].digest in downloads:
                    downloads[plan.blobs[n].digest].result()
                    builder.prints(f"layer {n + 1} of {len(plan.keys)}: {plan.blobs[n].size / 1e6:.1f} MB\n")
                _make(builder, plan, n, below, files, limits)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Arriving:
    """Tells about once a second how much of an image has arrived."""

    def __init__(self, builder: Builder, blobs: Collection[Descriptor]) -> None:
        self._builder = builder
        self._whole = sum(blob.size for blob in blobs)
        self._sizes = dict.fromkeys((blob.digest for blob in blobs), 0)
        self._told = time.monotonic()

    def of(self, blob: str) -> Callable[[int], None]:
        """Takes the length of each piece of a blob; each blob's comes from one thread."""

        def add(size: int) -> None:
            self._sizes[blob] += size
            if time.monotonic() - self._told > 1:
                self._told = time.monotonic()
                done = min(self._whole, sum(self._sizes.values()))  # a piece may come twice
                self._builder.prints(f"downloaded {done / 1e6:.1f} MB of {self._whole / 1e6:.1f} MB\n")

        return add


def _make(builder: Builder, plan: Plan, n: int, below: str, files: dict[str, Path], limits: Limits | None) -> None:
    blob, content = plan.blobs[n], plan.contents[n]

    def write(upper: Path) -> None:
        file = files.get(blob.digest)
        if file is None:
            raise RegistryError("a layer was pruned while the image was pulled; try again")
        with file.open("rb") as packed:
            stream = Stream(packed)
            unpack(stream.read, upper, blob.size, limits)
            if stream.digest != content:
                raise RegistryError(f"the content of the layer {blob.digest} is not what its image says; refused")

    builder.ensure(plan.keys[n], Meta(below, plan.titles[n]), write)
