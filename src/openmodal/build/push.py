"""An image of the layer store made an image of a registry: folders → tars → blobs → manifest. Only
what the registry lacks travels.

Tars are made anew when they are needed and not kept: what the store remembers of a layer is which
blob it became.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from urllib.parse import urljoin

import httpx2
import msgspec

from openmodal import _idmap
from openmodal._spec import Layered, Referenced, Root
from openmodal.build import credentials, names
from openmodal.build.layers import Layers
from openmodal.build.merged import is_opaque, is_whiteout
from openmodal.build.names import DEEPEST
from openmodal.build.pull import Plan
from openmodal.build.reference import MANIFESTS, Descriptor, ImageConfig, Manifest, Reference, RootFs, RunConfig
from openmodal.build.registry import Client
from openmodal.errors import ImageBuildError, RegistryError

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_ATTEMPTS = 4
_SURE = 600.0  # seconds for which a registry is believed to have what it had
_PIECE = 1 << 20


class Base(NamedTuple):
    """An image of a registry, whose layers another one begins with."""

    client: Client
    reference: Reference
    plan: Plan


class Blob(msgspec.Struct, frozen=True):
    """What a layer became: the digest of its tar, and digest and size of that compressed."""

    content: str
    digest: str
    size: int


def push(store: Layers, root: Layered, target: Reference) -> Referenced:
    """Have an image in a registry, and return it as a reference by digest. Safe from many
    processes.

    Args:
        root: the image, with folders for layers.
        target: host and repository; the tag is made of the image's key.

    Raises:
        RegistryError: the registry cannot be reached or refuses.
    """
    note = f"pushed-{names.digest(target.host, target.repository, root.key)[:40]}"
    digest = _lately(store, note)
    if not digest:
        with store.guard(f"push-{root.key}"):
            digest = _lately(store, note) or _ensure(store, root, target, note)
    reference = msgspec.structs.replace(target, target=digest)
    return referenced(root, str(reference))


def referenced(root: Root, reference: str) -> Referenced:
    """The same image, as a registry keeps it."""
    return Referenced(**{name: getattr(root, name) for name in Root.__struct_fields__}, reference=reference)


def _lately(store: Layers, note: str) -> str:
    """The manifest that was in the registry a moment ago; "" if nobody has looked."""
    known = store.note(note)
    return str(known["digest"]) if known and 0 <= time.time() - float(known["asked"]) < _SURE else ""


def _ensure(store: Layers, root: Layered, target: Reference, note: str) -> str:
    """Look whether it is there, push it if not; its manifest's digest."""
    known = str(store.note(note).get("digest", ""))
    with closing(Pusher(target)) as registry:
        digest = known if known and registry.has_manifest(known) else registry.image(store, root)
    store.set_note(note, {"digest": digest, "asked": time.time()})
    return digest


class Pusher(Client):
    """A registry that is written to."""

    def __init__(self, target: Reference) -> None:
        super().__init__(target.host, login=credentials.find(target.host))
        self._target = target
        self._repository = f"{self._base}/v2/{target.repository}"
        self._authorization: dict[str, str] = {}

    def image(self, store: Layers, root: Layered) -> str:
        """Send what is missing of an image; its manifest's digest."""
        blobs = [self._layer(store, key) for key in reversed(root.layers)]
        layers = tuple(Descriptor(_LAYER, blob.digest, blob.size) for blob in blobs)
        return self._manifest(root, layers, tuple(blob.content for blob in blobs), f"om-{root.key[:40]}")

    def on_top(self, root: Root, base: Base | None, layer: Blob, file: IO[bytes], cpu: str) -> str:
        """Send one layer, and an image for a CPU that has it on top of another; its manifest's
        digest."""
        layers = tuple(self._copied(base, blob) for blob in base.plan.blobs) if base else ()
        if not self._has(f"blobs/{layer.digest}"):
            self._upload(file, layer.digest, layer.size)
        contents = (*(base.plan.contents if base else ()), layer.content)
        return self._manifest(
            root, (*layers, Descriptor(_LAYER, layer.digest, layer.size)), contents, self._target.target, cpu
        )

    def _copied(self, base: Base, blob: Descriptor) -> Descriptor:
        """A layer of another image, which may be in another registry."""
        if not self._has(f"blobs/{blob.digest}"):
            with tempfile.NamedTemporaryFile() as copy:
                base.client.download(base.reference, blob, Path(copy.name), lambda size: None)
                self._upload(cast("IO[bytes]", copy), blob.digest, blob.size)
        # A registry may refuse a manifest of one kind with layers of the other.
        return msgspec.structs.replace(blob, media_type=_LAYER) if blob.media_type == _DOCKER_LAYER else blob

    def _manifest(
        self, root: Root, layers: tuple[Descriptor, ...], contents: tuple[str, ...], tag: str, cpu: str = ""
    ) -> str:
        config = msgspec.json.encode(_config(root, contents, cpu or names.architecture()))
        described = _described(_CONFIG, config)
        if not self._has(f"blobs/{described.digest}"):
            self._upload(io.BytesIO(config), described.digest, len(config))
        manifest = msgspec.json.encode(_manifest(Manifest(described, layers)))
        url = f"{self._repository}/manifests/{tag}"
        self._send("PUT", url, io.BytesIO(manifest), {"Content-Type": MANIFESTS[0]}, len(manifest))
        return _described("", manifest).digest

    def has_manifest(self, digest: str) -> bool:
        """Whether the registry still has an image."""
        return self._has(f"manifests/{digest}")

    def _layer(self, store: Layers, key: str) -> Blob:
        note = f"blob-{key}"
        known = store.note(note)
        if known and self._has(f"blobs/{known['digest']}"):
            return msgspec.convert(known, Blob)
        with store.scratch() as scratch, (scratch / "blob").open("w+b") as file:
            blob = pack(store.folder(key), file)
            if not self._has(f"blobs/{blob.digest}"):
                self._upload(file, blob.digest, blob.size)
        store.set_note(note, msgspec.to_builtins(blob))
        return blob

    # ------------------------------------------------------------------------------------- requests

    def _has(self, what: str) -> bool:
        accept = {"Accept": ", ".join(MANIFESTS)}  # without it, an OCI manifest is "not found"
        return self._send("HEAD", f"{self._repository}/{what}", None, accept, missing=True).status_code == 200

    def _upload(self, file: IO[bytes], digest: str, size: int) -> None:
        begun = self._send("POST", f"{self._repository}/blobs/uploads/")
        place = urljoin(str(begun.url), begun.headers.get("Location", ""))
        self._check_target(place)
        url = str(httpx2.URL(place).copy_merge_params({"digest": digest}))
        self._send("PUT", url, file, {"Content-Type": "application/octet-stream"}, size)

    def _send(
        self,
        method: str,
        url: str,
        body: IO[bytes] | None = None,
        headers: dict[str, str] | None = None,
        size: int = 0,
        *,
        missing: bool = False,
    ) -> httpx2.Response:
        """Ask until it works. A PUT to an upload that was done already is refused as unknown; then the blob is there."""
        headers = {**(headers or {}), "Content-Length": str(size)}
        reason = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._pause(0.2 * 2**attempt)
            try:
                content = _pieces(body) if body else None
                response = self._http.request(method, url, content=content, headers={**headers, **self._authorization})
            except httpx2.TransportError as error:
                reason = str(error) or type(error).__name__
                continue
            if response.status_code == 401:
                value = self._authorize(response.headers.get("WWW-Authenticate", ""), str(self._target))
                reason, self._authorization = "it wants credentials", {"Authorization": value}
            elif response.status_code in (429, 500, 502, 503, 504):
                reason = f"it answers {response.status_code}"
            elif response.status_code < 300 or (missing and response.status_code == 404):
                return response
            else:
                raise self._refusal(response)
        raise RegistryError(f"{self._target} cannot be pushed to: {reason}; check the registry and its credentials")

    def _refusal(self, response: httpx2.Response) -> RegistryError:
        host, text = self._target.host, response.text[:200].strip()
        if response.status_code == 403:
            return RegistryError(
                f"{host} does not let us push to {self._target.repository}; `docker login {host}` may help"
            )
        return RegistryError(f"{host} answers {response.status_code} to {response.request.method}: {text}")


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while data := file.read(_PIECE):
        yield data


def _config(root: Root, contents: tuple[str, ...], cpu: str) -> ImageConfig:
    return ImageConfig(
        architecture=cpu,
        os="linux",
        config=RunConfig(
            env=tuple(f"{name}={value}" for name, value in root.env),
            working_dir=root.workdir,
            user=root.user,
            entrypoint=root.entrypoint or None,
            shell=root.shell or None,
            cmd=root.cmd or None,
        ),
        rootfs=RootFs(diff_ids=contents),
    )


def _manifest(manifest: Manifest) -> dict[str, object]:
    def described(blob: Descriptor) -> dict[str, object]:
        return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}

    return {
        "schemaVersion": 2,
        "mediaType": MANIFESTS[0],
        "config": described(manifest.config),
        "layers": [described(blob) for blob in manifest.layers],
    }


def _described(kind: str, data: bytes) -> Descriptor:
    return Descriptor(kind, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))


# --------------------------------------------------------------------------------------------- tars


class _Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hasher = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hasher.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def digest(self) -> str:
        return f"sha256:{self._hasher.hexdigest()}"


def pack(folder: Path, file: IO[bytes]) -> Blob:
    """Write a layer's folder into a file as a compressed tar: the same files, the same bytes."""

    def write(output: IO[bytes]) -> None:
        seen: dict[tuple[int, int], str] = {}
        with writing(output) as tar:
            for name in _walk(folder):
                _add(tar, folder, name, seen)

    return pack_with(write, file)


def pack_with(write: Callable[[IO[bytes]], None], file: IO[bytes]) -> Blob:
    """Compress into a file what `write` writes, the tar of a layer."""
    compressed = _Hashing(file)
    with gzip.GzipFile("", "wb", compresslevel=1, fileobj=cast("Any", compressed), mtime=0) as stream:
        plain = _Hashing(cast("Any", stream))
        write(cast("Any", plain))
    file.flush()
    return Blob(plain.digest, compressed.digest, file.tell())


def writing(output: IO[bytes]) -> tarfile.TarFile:
    """A tar of a layer, to be written one member after the other."""
    return tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT, errors="surrogateescape")


def _walk(folder: Path, prefix: str = "") -> Iterator[str]:
    """Every name below, folders before what is in them, always in the same order."""
    if prefix.count("/") > DEEPEST:
        raise ImageBuildError(
            f"{prefix[:80]!r}… is deeper than the {DEEPEST} folders of a registry's image; move it up"
        )
    for name in sorted(os.listdir(folder / prefix)):
        path = prefix + name
        yield path
        if stat.S_ISDIR(os.lstat(folder / path).st_mode):
            yield from _walk(folder, path + "/")


def _add(tar: tarfile.TarFile, folder: Path, name: str, seen: dict[tuple[int, int], str]) -> None:
    file = folder / name
    info = os.lstat(file)
    if is_whiteout(info):
        head, _, tail = name.rpartition("/")
        tar.addfile(tarfile.TarInfo(f"{head}/.wh.{tail}" if head else f".wh.{tail}"))
        return
    if stat.S_ISSOCK(info.st_mode):
        return
    member = _member(file, name, info, seen)
    if member.isreg():
        with file.open("rb") as content:
            tar.addfile(member, content)
        return
    tar.addfile(member)
    if member.isdir() and is_opaque(str(file)):
        tar.addfile(tarfile.TarInfo(f"{name}/.wh..wh..opq"))


def _member(file: Path, name: str, info: os.stat_result, seen: dict[tuple[int, int], str]) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode = stat.S_IMODE(info.st_mode)
    member.uid, member.gid = _idmap.inside(info.st_uid, info.st_gid)
    member.mtime = int(info.st_mtime)
    member.pax_headers = _attributes(file)
    identity = (info.st_dev, info.st_ino)
    if stat.S_ISLNK(info.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink(file)
    elif stat.S_ISDIR(info.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISREG(info.st_mode) and identity in seen:
        member.type, member.linkname = tarfile.LNKTYPE, seen[identity]
    elif stat.S_ISREG(info.st_mode):
        member.size = info.st_size
        if info.st_nlink > 1:
            seen[identity] = name
    else:
        kinds = {stat.S_IFIFO: tarfile.FIFOTYPE, stat.S_IFBLK: tarfile.BLKTYPE, stat.S_IFCHR: tarfile.CHRTYPE}
        member.type = kinds[stat.S_IFMT(info.st_mode)]
        member.devmajor, member.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
    return member


def _attributes(file: Path) -> dict[str, str]:
    """Extended attributes (capabilities of executables) as PAX has them; overlayfs' own stay here."""
    found = {}
    for name in os.listxattr(file, follow_symlinks=False):
        if ".overlay." not in name:
            value = os.getxattr(file, name, follow_symlinks=False)
            found[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
    return found
