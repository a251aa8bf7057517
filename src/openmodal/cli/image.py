"""`openmodal image …`: list, build, publish, delete, prune."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openmodal import _args
from openmodal._dual import run_sync
from openmodal.cli import _output, _program
from openmodal.cli._session import Session, build_options, engine_options, json_option, pass_session, yes_option
from openmodal.cli._types import DAYS
from openmodal.errors import InvalidError

if TYPE_CHECKING:
    from openmodal import Image
    from openmodal.engines import Engine
    from openmodal.housekeeping import Built


image_option = click.option(
    "--image",
    metavar="NAME",
    help="One that is published, FILE.py::NAME, or one of a registry; Debian with Python if left out.",
)


@click.command("list")
@json_option
@engine_options
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """Show the images that are built, the newest use first."""
    from openmodal import housekeeping

    found = housekeeping.images(engine=session.engine)
    if as_json:
        _output.emit([_described(image) for image in found])
        return
    now = time.time()
    _output.table(
        ("IMAGE", "SIZE", "LAYERS", "USED", "KEPT", "LAST STEP"),
        (
            (
                i.key[:12],
                _output.size(i.size),
                str(i.layers),
                f"{_output.duration(now - i.used)} ago",
                _kept(i, now),
                i.step,
            )
            for i in found
        ),
        empty="No image is built yet; the first Sandbox.create() builds one.",
    )


def _described(image: Built) -> dict[str, object]:
    return {
        "key": image.key,
        "size": image.size,
        "layers": image.layers,
        "used": image.used,
        "step": image.step,
        "expires": image.expires or None,
        "names": list(image.names),
    }


@click.command()
@click.argument("words", metavar="NAME|KEY...", nargs=-1, required=True)
@engine_options
@pass_session
def inspect(session: Session, words: tuple[str, ...]) -> None:
    """Print what is known of images, by name or the first digits of a key, as JSON."""
    from openmodal import housekeeping

    found = housekeeping.images(engine=session.engine)
    _output.emit([_described(_meant(found, word)) for word in words])


@click.command()
@click.argument("word", metavar="NAME|KEY")
@json_option
@engine_options
@pass_session
def history(session: Session, word: str, as_json: bool) -> None:
    """Show the steps of an image, by name or the first digits of a key: the last one first, with
    the size of what each added."""
    from openmodal import housekeeping

    key = _meant(housekeeping.images(engine=session.engine), word).key
    steps = housekeeping.history(key, engine=session.engine)
    if as_json:
        _output.emit([{"step": s.step, "size": s.size, "made": s.made or None} for s in steps])
        return
    now = time.time()
    _output.table(
        ("MADE", "SIZE", "STEP"),
        ((f"{_output.duration(now - s.made)} ago" if s.made else "", _output.size(s.size), s.step) for s in steps),
        empty="This image has no steps.",
    )


def _meant(images: Sequence[Built], word: str) -> Built:
    """The image of that name, or whose key begins so."""
    from openmodal.errors import NotFoundError

    meant = [i for i in images if word in i.names] or [i for i in images if word and i.key.startswith(word)]
    if not meant:
        raise NotFoundError(f"there is no image {word!r}; `openmodal image list` shows those that are built")
    if len(meant) > 1:
        raise InvalidError(f"{word!r} may be {_output.count(len(meant), 'image')}; write more of the key")
    return meant[0]


def _kept(image: Built, now: float) -> str:
    """Why an image stays, however long nobody uses it; "" if it does not."""
    if image.names:
        return f"as {', '.join(image.names)}"
    return f"for {_output.duration(image.expires - now)}" if image.expires > now else ""


@click.command()
@click.argument("target", metavar="FILE.py::NAME | NAME | REFERENCE")
@click.argument("name")
@build_options
@engine_options
@pass_session
def publish(session: Session, target: str, name: str) -> None:
    """Make an image, and give it a NAME for Image.from_name, under which it is kept."""
    image = named(target, session.engine)
    if image:
        image.publish(name, engine=session.engine)


@click.command()
@click.argument("name")
@engine_options
@pass_session
def delete(session: Session, name: str) -> None:
    """Delete the NAME of a published image; the image goes with the next prune."""
    from openmodal import Image

    Image.delete(name, engine=session.engine)


@click.command()
@click.argument("target", metavar="FILE.py[::NAME] | DOCKERFILE")
@click.option(
    "--context", type=click.Path(exists=True, file_okay=False), help="The folder that COPY reads; the Dockerfile's."
)
@build_options
@engine_options
@pass_session
def build(session: Session, target: str, context: str | None) -> None:
    """Build an image ahead of its first use, and print its key.

    Of a Python file: its openmodal.Image of that name, or all that it has. Anything else is a
    Dockerfile.
    """
    from openmodal import Image
    from openmodal.image import ready

    if target.partition("::")[0].endswith(".py"):
        images = list(images_of_file(target).values())
    else:
        images = [Image.from_dockerfile(target, context_dir=context)]
    for image in images:
        root = run_sync(ready(image, session.engine))
        click.echo(root.key)


@click.command()
@click.option("--older", type=DAYS, metavar="TIME", help="Those not used for so long: days, or 12h, 2w; 7 days.")
@click.option("--all", "everything", is_flag=True, help="All that no running sandbox uses.")
@click.option("--caches", is_flag=True, help="The downloads of apt and pip, and disks kept ready for disk=, too.")
@yes_option
@json_option
@engine_options
@pass_session
def prune(session: Session, older: float | None, everything: bool, caches: bool, yes: bool, as_json: bool) -> int:
    """Remove images that were not used for a week; those of running sandboxes stay.

    Shows which, and asks in a terminal.
    """
    from openmodal import housekeeping

    if everything and older is not None:
        raise click.UsageError("--all and --older exclude each other; leave one out")
    seconds = _args.age("--older", 0.0 if everything else 7 * 86400.0 if older is None else older)
    found = housekeeping.prunable(unused_for=seconds, engine=session.engine)
    lines = [f"{i.key[:12]}  {_output.size(i.size)}  {i.step}" for i in reversed(found.images)]
    if caches:
        lines.append("the downloads of apt and pip")
    if not _output.agreed(lines, f"Remove {_output.count(len(found.images), 'image')}?", yes=yes):
        return 1
    removed = housekeeping.prune(unused_for=seconds, caches=caches, engine=session.engine)
    if as_json:
        _output.emit({"layers": removed.layers, "bytes": removed.bytes, "leftovers": removed.leftovers})
    else:
        click.echo(f"Removed {_output.count(removed.layers, 'layer')}, {_output.size(removed.bytes)}.")
    return 0


def images_of_file(target: str) -> dict[str, Image]:
    """The images that a Python file defines, by name: the one of FILE.py::NAME, or all."""
    from openmodal import Image

    file, name = _program.split(target)
    found = _program.members(_program.load(_program.read(file)), Image)
    if name and name not in found:
        raise InvalidError(f"{Path(file).name} has no image {name!r}; it has {', '.join(found) or 'none'}")
    if not found:
        raise InvalidError(f"{Path(file).name} defines no image; write image = openmodal.Image.debian_slim() in it")
    return {name: found[name]} if name else found


def named(name: str | None, engine: Engine) -> Image | None:
    """What --image says: the one of FILE.py::NAME, one that is published, or one of a registry;
    None if nothing."""
    from openmodal import Image
    from openmodal.errors import NotFoundError, UnsupportedError

    if name is None:
        return None
    if not name.partition("::")[0].endswith(".py"):
        try:
            return Image.from_name(name, engine=engine)
        except (InvalidError, NotFoundError, UnsupportedError):
            return Image.from_registry(name)
    found = images_of_file(name)
    if len(found) > 1:
        raise InvalidError(f"{name} defines several images: {', '.join(found)}; say which with {name}::NAME")
    return next(iter(found.values()))
