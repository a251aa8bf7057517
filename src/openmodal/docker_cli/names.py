"""Docker's names, which may be longer and of other characters than ours, as ours.

An image `host:5000/team/tool:v1` is published as `host_-5000_.team_.tool..v1`: no name of an image
has these pairs of characters. A name that is too long keeps its beginning, and a digest stands for
the rest.
"""

from __future__ import annotations

_MOST = 63


def shortened(name: str) -> str:
    """The name of a sandbox or image that stands for a name of any length."""
    if len(name) <= _MOST:
        return name
    import hashlib

    return f"{name[:30]}.{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def published(reference: str) -> str:
    """The name under which an image of that reference is published; "" if it has none, as one that
    is named by its digest."""
    name, tag = split(reference)
    if "@" in reference or not name:
        return ""
    name = name.replace(":", "_-").replace("/", "_.")
    return shortened(name if tag == "latest" else f"{name}..{tag}")


def reference(published: str) -> tuple[str, str]:
    """The repository and tag of a published image."""
    name, dots, tag = published.partition("..")
    return name.replace("_.", "/").replace("_-", ":"), tag if dots else "latest"


def split(reference: str) -> tuple[str, str]:
    """Repository and tag, as docker shows them: without `docker.io/library/`."""
    for prefix in ("docker.io/", "index.docker.io/", "registry-1.docker.io/"):
        reference = reference.removeprefix(prefix)
    name, colon, tag = reference.removeprefix("library/").rpartition(":")
    return (name, tag) if colon and "/" not in tag else (reference.removeprefix("library/"), "latest")
