"""Base images as layers of the store: an image of a registry, Debian from its packages instead, or
nothing.

Also the one layer that is put on top of any image where this machine trusts certificate authorities
of its own.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from openmodal._binary import PATH
from openmodal._hidden import NOTHING, Hidden
from openmodal._spec import Layered, Scratch
from openmodal.build.layers import Layers, Meta
from openmodal.build.names import FORMAT, architecture, digest
from openmodal.errors import RegistryError, UnsupportedError

if TYPE_CHECKING:
    from openmodal.build.steps import Builder

_HUB = "registry-1.docker.io"
_REMEMBER = {True: 24 * 3600.0, False: 600.0}  # seconds that a registry counts as there, or not
_PATIENCE = 3.0


def scratch(builder: Builder) -> Layered:
    """One empty layer: overlayfs wants something to stand on."""
    from openmodal.build.titles import title

    key = digest("scratch", FORMAT, architecture())
    return builder.layer(Layered(""), key, title(Scratch()), lambda upper: None)


def _pull(builder: Builder, reference: str, login: Hidden) -> Layered:
    from openmodal.build import pull

    return pull.pull(builder, reference, login=login)


def either(builder: Builder, reference: str, version: str, login: Hidden = NOTHING) -> Layered:
    """An image of a registry; where none can be reached, Debian's packages with that Python ("":
    nothing instead).

    Raises:
        RegistryError: it cannot be fetched, and nothing can stand for it.
    """
    if version and builder.options.base == "packages":
        return packages(builder, reference, version)
    text = f"FROM {reference}"
    builder.starts(text)
    if version and builder.options.base == "auto" and (why := unreachable(builder.store)):
        return _instead(builder, reference, version, why, None)
    try:
        root = _pull(builder, reference, login)
    except RegistryError as error:
        if not version or builder.options.base == "registry":
            raise
        return _instead(builder, reference, version, str(error), error)
    builder.ends(text)
    return root


def _instead(builder: Builder, reference: str, version: str, reason: str, cause: RegistryError | None) -> Layered:
    from openmodal.build import debian

    if version not in debian.SUITES:
        raise UnsupportedError(f"{debian.unsupported(version)} ({reason})") from cause
    builder.remarks(instead(reason))
    return packages(builder, reference, version, again=True)


def instead(reason: str) -> str:
    """What a build says when it takes Debian's packages, and why."""
    return f"{reason}, so Debian's packages are used; OPENMODAL_BASE=registry or packages decides"


def packages(builder: Builder, reference: str, version: str, *, again: bool = False) -> Layered:
    """Debian's packages instead of an image, with the settings that it has."""
    from openmodal.build import debian
    from openmodal.build.reference import parse

    root = debian.make(builder, version, again=again)
    if parse(reference).repository != "library/debian":
        return root
    return msgspec.structs.replace(root, key=digest(root.key, "debian"), env=(("PATH", PATH),), cmd=("bash",))


def unreachable(store: Layers) -> str:
    """Why Docker Hub does not answer, "" if it does; asked at most every few minutes, and never
    waited for long."""
    note = store.note("registry")
    why, asked = str(note.get("why", "")), float(note.get("asked", 0.0))
    if 0 <= time.time() - asked < _REMEMBER[not why]:
        return why
    why = silence(_PATIENCE)
    store.set_note("registry", {"why": why, "asked": time.time()})
    return why


def silence(patience: float) -> str:
    """Why Docker Hub does not answer within so many seconds, "" if it does."""
    import httpx2

    try:
        with httpx2.Client(timeout=patience) as client:
            status = client.get(f"https://{_HUB}/v2/").status_code
    except httpx2.TimeoutException:
        return f"the registry {_HUB} does not answer within {patience:g} s"
    except (httpx2.HTTPError, OSError) as error:
        return f"the registry {_HUB} cannot be reached ({str(error) or type(error).__name__})"
    # 401: it wants a token, as always. Anything else is some proxy's page.
    return "" if status in (200, 401) else f"what answers for the registry {_HUB} is none (HTTP status {status})"


# -------------------------------------------------------------------------------------------- trust

TRUST = "trust"
"""The step of layers of certificate authorities."""

BUNDLE = "usr/local/share/openmodal/ca.crt"
"""Where a sandbox has it, below its root."""
TRUST_VARIABLES = dict.fromkeys(
    ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS"),
    f"/{BUNDLE}",
)
"""They point programs at it."""


def trust_layer(store: Layers, bundle: str | os.PathLike[str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The key of a layer with this machine's bundle of certificate authorities, and the variables
    that point programs at it.

    To be put on top of an image when it runs, never under a step's key: an image must not depend on
    where it was built. So there is always a layer below that has /usr, and this one's plain folders
    merge with it.
    """
    info = os.stat(bundle)
    key = _trust_key(os.fspath(bundle), info.st_mtime_ns, info.st_size, info.st_ino)
    if not store.has(key):
        content = Path(bundle).read_bytes()
        key = digest("trust", FORMAT, hashlib.sha256(content).hexdigest())
        _write_trust(store, key, content)
    return key, tuple(TRUST_VARIABLES.items())


@functools.lru_cache(maxsize=4)  # every sandbox asks, and reading the bundle costs as much as making a box's mounts
def _trust_key(bundle: str, changed: int, size: int, inode: int) -> str:
    """The layer's key; the other arguments tell whether the file is still the one that was read."""
    return digest("trust", FORMAT, hashlib.sha256(Path(bundle).read_bytes()).hexdigest())


def _write_trust(store: Layers, key: str, content: bytes) -> None:
    claim = store.claim(key)
    with claim.held, store.scratch() as scratch:
        if claim.made:
            return
        root = scratch / "upper"
        file = root / BUNDLE
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        file.chmod(0o644)
        for folder in (root, *(root / parent for parent in Path(BUNDLE).parents)):
            folder.chmod(0o755)
        store.publish(root, key, Meta(step=TRUST))
