"""`docker build`."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import Any

from openmodal import Image, _halfmade
from openmodal.docker_cli import images
from openmodal.docker_cli.asked import check_platform
from openmodal.docker_cli.failures import Failure
from openmodal.docker_cli.flags import Flags, Given

_FLAGS = Flags(
    "build",
    switches="quiet,q no-cache pull rm force-rm load compress provenance",
    texts="tag,t file,f build-arg platform progress network label target memory,m shm-size ulimit output,o secret ssh cache-from "
    "cache-to iidfile",
)
_REFUSED = {
    "cache-to": "leave it out: steps are kept here",
    "output": "`docker cp` copies files out of a container of the image",
    "secret": "give build arguments, or copy what needs no secret",
    "ssh": "clone here, and COPY the folder",
    "target": "cut the Dockerfile behind the stage that you want",
}


def build(arguments: list[str]) -> int:
    """Build an image of a Dockerfile: of a folder, or of standard input."""
    given = _FLAGS.parse(arguments)
    place = given.at_least(1, "build")[0]
    for name, remedy in _REFUSED.items():
        if name in given.values:
            raise Failure(f"OpenModal builds without --{name}; {remedy}", 125)
    check_platform(given.text("platform"))
    if given.on("no-cache"):
        print(
            "docker: steps are the same if their words and files are; `openmodal image prune --all` forgets them",
            file=sys.stderr,
        )
    with ExitStack() as stack:
        file, context = _source(given, place, stack)
        image = Image.from_dockerfile(file, context_dir=context, build_args=_variables(given.all("build-arg")))
        id = images.keep(image, given.all("tag"))
    if iidfile := given.text("iidfile"):
        with open(iidfile, "w", encoding="utf-8") as opened:
            opened.write(id)
    if given.on("quiet"):
        print(id)
        return 0
    print(f"Successfully built {id.removeprefix('sha256:')[:12]}")
    for tag in given.all("tag"):
        print(f"Successfully tagged {tag if ':' in tag.rpartition('/')[2] else f'{tag}:latest'}")
    return 0


def _source(given: Given, place: str, stack: ExitStack) -> tuple[str, str]:
    """The Dockerfile and the folder that COPY reads."""
    file = given.text("file")
    if place == "-" or file == "-":
        folder = stack.enter_context(_halfmade.temporary())
        text = sys.stdin.buffer.read()
        if place == "-" and text[257:262] == b"ustar":
            return _unpacked(text, folder, file or "Dockerfile")
        path = os.path.join(folder, "Dockerfile")
        with open(path, "wb") as opened:
            opened.write(text)
        return path, folder if place == "-" else place
    if "://" in place or place.startswith("git@"):
        raise Failure(f"a build of {place} needs its files here; clone it, and name the folder", 125)
    if not os.path.isdir(place):
        raise Failure(f"unable to prepare context: path {place!r} not found")
    return file or os.path.join(place, "Dockerfile"), place


def _unpacked(archive: bytes, folder: str, file: str) -> tuple[str, str]:
    import io

    from openmodal.build.unpack import unpack_archive

    unpack_archive(io.BytesIO(archive), folder)
    return os.path.join(folder, file), folder


def _variables(given: list[str]) -> dict[str, Any]:
    """NAME=value; a NAME alone takes this process's value."""
    pairs = [text.partition("=") for text in given]
    return {
        name: value if equals else os.environ[name] for name, equals, value in pairs if equals or name in os.environ
    }
