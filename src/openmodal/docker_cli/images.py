"""Images: of a registry, built, or kept. What docker knows by a name is published under it."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from openmodal import Image, _halfmade
from openmodal._dual import run_sync
from openmodal._spec import Built, Root
from openmodal.docker_cli import names, templates
from openmodal.docker_cli.asked import architecture, check_platform
from openmodal.docker_cli.containers import ago, find_running, utc
from openmodal.docker_cli.failures import Failure, no_such_image
from openmodal.docker_cli.flags import Flags
from openmodal.engines import choose
from openmodal.errors import InvalidError, NotFoundError, UnsupportedError

_ID = re.compile(r"(sha256:)?[0-9a-f]{12,64}")
_NAMELESS = "none_._."
"""What the names of images begin with that docker knows by their ids only."""

_COLUMNS = {
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "ID": "IMAGE ID",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Digest": "DIGEST",
    "Size": "SIZE",
}


def find(reference: str) -> Image | None:
    """The image of that name or id, if it is here."""
    try:
        return Image.from_name(names.published(reference))
    except (InvalidError, NotFoundError, UnsupportedError):
        pass
    if _ID.fullmatch(reference):
        digits = reference.removeprefix("sha256:")
        for image in _built():
            if image.key.startswith(digits) and image.names:
                return Image.from_name(image.names[0])
    return None


def have(reference: str, when: str = "missing") -> Image:
    """The image of that name, pulled "always", if it is "missing", or "never".

    Raises:
        Failure: it is to be here, and is not.
    """
    found = None if when == "always" else find(reference)
    if found:
        return found
    if when == "never" or reference.startswith("sha256:"):
        raise Failure(str(no_such_image(reference)), 125)
    return fetch(reference)


def fetch(reference: str) -> Image:
    """The image of a registry, as it is there now."""
    name = names.published(reference)
    with _halfmade.temporary() as folder:
        # Where no registry is reached, Debian's packages stand for some images in a FROM.
        file = os.path.join(folder, "Dockerfile")
        with open(file, "w", encoding="utf-8") as opened:
            opened.write(f"FROM {reference}\n")
        image = Image.from_dockerfile(file)
        try:
            return image.publish(name) if name else image.build()
        except UnsupportedError:  # this engine keeps no names
            return image.build()


def keep(image: Image, tags: list[str]) -> str:
    """Give an image names; with none, docker knows it by its id. Returns the id."""
    made = root(image)
    kept = [_name_for(reference) for reference in tags] or [f"{_NAMELESS}{made.key[:40]}"]
    for name in kept:
        image.publish(name)
    found = _listed(made, kept[0])
    return f"sha256:{found.key if found else made.key}"


def _name_for(reference: str) -> str:
    name = names.published(reference)
    if not name:
        raise Failure(f"invalid reference format: {reference!r}; write NAME or NAME:TAG")
    return name


def root(image: Image) -> Root:
    """What an image says of its commands; it is made if it is not there."""
    from openmodal.image import ready

    return run_sync(ready(image, choose(None)))


def _built() -> list[Built]:
    from openmodal import housekeeping

    return housekeeping.images()


def _listed(made: Root, name: str) -> Built | None:
    """An image as the list has it, whose key may be another one than that of the name: a daemon has
    ids of its own."""
    return next((each for each in _built() if made.key == each.key or name in each.names), None)


def pull(arguments: list[str]) -> int:
    """Fetch an image."""
    given = Flags("pull", switches="quiet,q all-tags,a", texts="platform").parse(arguments)
    check_platform(given.text("platform"))
    for reference in given.at_least(1, "pull"):
        fetch(reference)
        name, tag = names.split(reference)
        print(f"docker.io/{name}:{tag}" if given.on("quiet") else f"Status: Image is up to date for {name}:{tag}")
    return 0


def tag(arguments: list[str]) -> int:
    """Give an image another name."""
    source, target = Flags("tag").parse(arguments).at_least(2, "tag")[:2]
    _known(source).publish(_name_for(target))
    return 0


def commit(arguments: list[str]) -> int:
    """Make an image of a container's files."""
    given = Flags("commit", switches="pause,p", texts="author,a change,c message,m").parse(arguments)
    word, *tags = given.at_least(1, "commit")
    found = find_running(word)
    image, remembered = found.sandbox.snapshot_filesystem(), found.record
    if remembered.argv:
        count = len(remembered.entrypoint)
        image = image.entrypoint(remembered.entrypoint).cmd(remembered.argv[count:])
    for line in given.all("change"):
        image = image.dockerfile_commands(line)
    print(keep(image, tags))
    return 0


def rmi(arguments: list[str]) -> int:
    """Delete names of images. What has none goes with the next `openmodal image prune`."""
    given = Flags("rmi", switches="force,f no-prune").parse(arguments)
    code = 0
    for reference in given.at_least(1, "rmi"):
        doomed = _names_of(reference)
        if not doomed:
            print(no_such_image(reference), file=sys.stderr)
            code = 0 if given.on("force") else 1
        for name in doomed:
            Image.delete(name)
            print(f"Untagged: {':'.join(names.reference(name))}")
    return code


def _names_of(reference: str) -> list[str]:
    """The names that go with a reference: its own, or all of an id."""
    name, digits = names.published(reference), reference.removeprefix("sha256:")
    found = _built()
    if any(name in image.names for image in found):
        return [name]
    if not _ID.fullmatch(reference):
        return []
    return [each for image in found if image.key.startswith(digits) for each in image.names]


def _known(reference: str) -> Image:
    if image := find(reference):
        return image
    raise no_such_image(reference)


def list_(arguments: list[str]) -> int:
    """Show the images that have names."""
    flags = Flags("images", switches="all,a digests no-trunc quiet,q tree", texts="filter,f format")
    given = flags.parse(arguments)
    wanted = [
        *given.words,
        *(text.removeprefix("reference=") for text in given.all("filter") if text.startswith("reference=")),
    ]
    rows = [row for row in _rows(full=given.on("no-trunc")) if not wanted or any(_fits(row, word) for word in wanted)]
    usual = "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
    return templates.show(given, rows, usual, _COLUMNS)


def _fits(row: dict[str, str], word: str) -> bool:
    from fnmatch import fnmatchcase

    name, tag = names.split(word)
    return fnmatchcase(row["Repository"], name) and (":" not in word.rpartition("/")[2] or fnmatchcase(row["Tag"], tag))


def _rows(*, full: bool) -> Iterator[dict[str, str]]:
    for image in sorted(_built(), key=lambda image: -image.used):
        for name in image.names:
            nameless = name.startswith(_NAMELESS)
            repository, tag = ("<none>", "<none>") if nameless else names.reference(name)
            yield {
                "Repository": repository,
                "Tag": tag,
                "ID": f"sha256:{image.key}" if full else image.key[:12],
                "CreatedSince": f"{ago(time.time() - image.used)} ago",
                "CreatedAt": utc(image.used),
                "Digest": "<none>",
                "Size": _size(image.size),
            }


def _size(count: float) -> str:
    """Bytes in powers of ten, as docker writes them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}TB"


def described(reference: str) -> dict[str, Any] | None:
    """What `docker inspect` tells of an image; None: it is not here."""
    image = find(reference)
    if image is None:
        return None
    found = root(image)
    built = _listed(found, names.published(reference))
    tags = [":".join(names.reference(n)) for n in (built.names if built else ()) if not n.startswith(_NAMELESS)]
    return {
        "Id": f"sha256:{built.key if built else found.key}",
        "RepoTags": tags,
        "RepoDigests": [],
        "Parent": "",
        "Comment": "",
        "Created": utc(built.used if built else 0.0, nanoseconds=True),
        "Author": "",
        "Config": {
            "User": found.user,
            "Env": [f"{name}={value}" for name, value in found.env],
            "Cmd": [*found.cmd] or None,
            "WorkingDir": found.workdir,
            "Entrypoint": [*found.entrypoint] or None,
            "Labels": None,
        },
        "Architecture": architecture(),
        "Os": "linux",
        "Size": built.size if built else 0,
        "RootFS": {"Type": "layers", "Layers": [f"sha256:{layer}" for layer in getattr(found, "layers", ())]},
    }
