"""Names of images in registries, and the records that registries speak."""

from __future__ import annotations

import re

import msgspec

from openmodal.errors import InvalidError, RegistryError

HUB = "registry-1.docker.io"
_HUB_NAMES = ("docker.io", "index.docker.io", HUB)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*)(:[0-9]{1,5})?")
_REPOSITORY = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")

INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")


class Reference(msgspec.Struct, frozen=True):
    """`host` as asked; `target` is the tag or digest."""

    host: str
    repository: str
    target: str

    @property
    def is_digest(self) -> bool:
        return self.target.startswith("sha256:")

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}{'@' if self.is_digest else ':'}{self.target}"


def parse(text: str) -> Reference:
    """Read "name", "name:tag", "host/name:tag", "name@sha256:…" as Docker does.

    Raises:
        InvalidError: it is none of these.
    """
    name, _, digest = text.partition("@")
    first, slash, rest = name.partition("/")
    has_host = bool(slash) and ("." in first or ":" in first or first == "localhost")
    host, path = (first, rest) if has_host else (HUB, name)
    repository, colon, tag = path.partition(":")
    if host in _HUB_NAMES:
        host = HUB
        repository = repository if "/" in repository else f"library/{repository}"
    target = digest or tag or "latest"
    right = _HOST.fullmatch(host) and _REPOSITORY.fullmatch(repository) and len(repository) <= 255
    if (
        not right
        or not (_DIGEST if digest else _TAG).fullmatch(target)
        or (colon and not tag)
        or ("@" in text and not digest)
    ):
        raise InvalidError(f"{text!r} is not the name of an image; write it like 'python:3.13' or 'host/name@sha256:…'")
    return Reference(host, repository, target)


def same_image(one: str, other: str) -> bool:
    """Whether two names mean the same image: "ubuntu" is "docker.io/library/ubuntu:latest"."""
    try:
        return one == other or parse(one) == parse(other)
    except InvalidError:
        return False


def checked_digest(text: str) -> str:
    """A digest that is one: it becomes part of file names and addresses."""
    if not _DIGEST.fullmatch(text):
        raise RegistryError(f"the registry named a digest that is none: {text[:80]!r}")
    return text


class Platform(msgspec.Struct, frozen=True):
    """What a manifest of an index is for."""

    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """Something in a registry: its digest and size are promises to be checked."""

    media_type: str = ""
    digest: str = ""
    size: int = -1
    platform: Platform | None = None


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """Manifests for several platforms."""

    manifests: tuple[Descriptor, ...] = ()
    layers: msgspec.Raw | None = None
    config: msgspec.Raw | None = None


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """One image: its configuration and layers, the lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    manifests: msgspec.Raw | None = None


class RunConfig(msgspec.Struct, frozen=True, rename="pascal"):
    """What commands run with."""

    env: tuple[str, ...] | None = None
    working_dir: str | None = None
    user: str | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    shell: tuple[str, ...] | None = None
    on_build: tuple[str, ...] | None = None


class RootFs(msgspec.Struct, frozen=True):
    """The digests of the layers' uncompressed tars."""

    diff_ids: tuple[str, ...] = ()


class Past(msgspec.Struct, frozen=True):
    """What made a layer, or a setting, which has none."""

    created_by: str | None = None
    empty_layer: bool = False


class ImageConfig(msgspec.Struct, frozen=True):
    """An image's configuration."""

    architecture: str = ""
    os: str = ""
    config: RunConfig | None = None
    rootfs: RootFs = RootFs()
    history: tuple[Past, ...] | None = None
