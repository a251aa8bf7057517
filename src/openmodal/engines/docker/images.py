"""Images: the recipe's steps, made by the daemon's own builder and kept by it under the recipe's
name.

An image is `openmodal:<name>`, where the name is the same hash of the recipe that the embedded
engine uses (build/names.py): so a second create costs one look-up. Bases are pulled by the daemon,
or made of Debian packages here and imported where no registry can be reached. BuildKit is used
through the API alone: the context travels in the request's body, and every base is pulled before,
so no session is needed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from openmodal import _config
from openmodal._hidden import NOTHING, Hidden
from openmodal._spec import Dockerfile, Recipe, Referenced, Report
from openmodal.build import Options, credentials, debian, dockerfile, names, origin, reference
from openmodal.build import base as bases
from openmodal.build import context as recipes
from openmodal.build.layers import Layers
from openmodal.build.locks import lock, try_lock
from openmodal.build.steps import Builder, count
from openmodal.build.titles import title
from openmodal.build.told import Listener, Told, runs_nothing
from openmodal.engines.docker.daemon import Api, ApiError, Daemon, MissingError
from openmodal.errors import ImageBuildError, RegistryError, UnsupportedError

REPOSITORY = "openmodal"
NAMED = "name-"
"""What the tags begin with that are names of published images; the others are keys."""


def prepare(daemon: Daemon, recipe: Recipe, layers: Layers, report: Report, options: Options) -> Referenced:
    """The image of a recipe, made if it is not there."""
    chain = names.chain(recipe, layers, options)
    with daemon.open() as api:
        if known := _root(api, chain[-1]):
            return known
        with (
            _alone(layers, chain[-1], report),
            Builder(layers, runs_nothing, report, options, count(recipe)) as builder,
        ):
            return _Making(api, builder, recipe, chain).root()


def with_files(daemon: Daemon, root: Referenced, files: dict[str, Path]) -> str:
    """The id of the image with files of this machine in it, for a daemon that cannot see them."""
    content = {target: source.read_bytes() for target, source in files.items()}
    name = names.digest((root.reference,), {target: names.digest(data.hex()) for target, data in content.items()})
    with daemon.open() as api:
        if known := _root(api, name):
            return known.reference
        lines = [
            f"FROM {REPOSITORY}:{root.key}",
            *(f"COPY {json.dumps([f'f{i}', target])}" for i, target in enumerate(content)),
        ]
        listener = Listener(lambda news: None)
        _build(api, recipes.flat("\n".join(lines), list(content.values())), listener, {})
        if not listener.image:
            raise ImageBuildError(f"the agent cannot be put into the image: {listener.error}", step="COPY agent")
        _tag(api, listener.image, name)
        return listener.image


@contextmanager
def _alone(layers: Layers, name: str, report: Report) -> Iterator[None]:
    """Of many that want the image, one makes it; the others wait and find it."""
    from openmodal._spec import Progress

    folder = layers.path / "docker" / "images"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = try_lock(folder / name)
    if held is None:
        report(Progress("waiting", 0, 0, "another build is making this; waiting for it\n"))
        held = lock(folder / name)
    with held:
        yield
        (folder / name).unlink(missing_ok=True)  # whoever waits for it takes the next one of that name (locks.py)


class _Making:
    """One image on its way, from the part of it that is there."""

    def __init__(self, api: Api, builder: Builder, recipe: Recipe, chain: tuple[str, ...]) -> None:
        self._api = api
        self._builder = builder
        self._recipe = recipe
        self._chain = chain

    def root(self) -> Referenced:
        """Make what is missing."""
        root, done = self._begin()
        self._recipe = names.afresh(self._recipe, done)
        self._chain = names.chain(self._recipe, self._builder.store, self._builder.options)
        bundle = _config.authorities()
        authorities = bundle.read_bytes() if bundle else b""
        for part in recipes.parts(self._recipe.steps, done, root.user, "yes" if authorities else ""):
            own = part.last == 0
            first = "" if own else f"FROM {REPOSITORY}:{root.key}\n"
            if isinstance(step := self._recipe.steps[part.last], Dockerfile) and (images := self._bases(step)):
                part = replace(part, text=dockerfile.rebased(step, images), dockerfile=recipes.DOCKERFILE)
            image = self._part(part, first, authorities)
            _tag(self._api, image, self._chain[part.last])
            root = self._known(self._chain[part.last])
        return root

    def _begin(self) -> tuple[Referenced, int]:
        """The longest part that is there, else the base."""
        for done in range(len(self._chain), 0, -1):
            if known := _root(self._api, self._chain[done - 1]):
                for step in self._recipe.steps[:done]:
                    self._builder.starts(title(step))
                    self._builder.ends(title(step), cached=True)
                return known, done
        beginning = origin.first(self._recipe)
        if beginning is None:
            return Referenced("", reference=""), 0
        if beginning.reference:
            pull = partial(self._announced, login=beginning.login)
            image = self._fetched(beginning.reference, beginning.python, pull)
            _tag(self._api, image, self._chain[0])
        else:
            self._import(recipes.empty(), self._chain[0])
        return self._known(self._chain[0]), 1

    def _known(self, name: str) -> Referenced:
        if known := _root(self._api, name):
            return known
        raise ImageBuildError("the image was removed a moment ago; create the sandbox again")

    # ---------------------------------------------------------------------------------------- bases

    def _import(self, content: Iterable[bytes] | bytes, name: str, changes: Iterable[str] = ()) -> None:
        whole = iter((content,)) if isinstance(content, bytes) else content
        imported(self._api, whole, name, changes)

    def _announced(self, name: str, login: Hidden) -> None:
        """Pull an image as a step of the build."""
        self._builder.starts(f"FROM {name}")
        self._pull(name, login)
        self._builder.ends(f"FROM {name}")

    def _pull(self, name: str, login: Hidden = NOTHING) -> None:
        """Have the daemon fetch an image, unless it has it."""
        wanted = reference.parse(name)
        try:
            self._api.get(f"/images/{name}/json")
            return
        except MissingError:
            pass
        separator = "@" if wanted.is_digest else ":"
        repository = name.partition("@")[0].removesuffix(f":{wanted.target}")
        query = {"fromImage": repository if not wanted.is_digest else f"{repository}{separator}{wanted.target}"}
        query |= {} if wanted.is_digest else {"tag": wanted.target}
        try:
            for message in self._api.send("/images/create", None, _authorized(wanted.host, login), **query):
                if "error" in message:
                    raise RegistryError(f"{name} cannot be pulled by Docker: {message['error']}")
                if "progress" not in message and "status" in message:
                    self._builder.prints(f"{message['status']}\n")
        except ApiError as error:
            raise RegistryError(f"{name} cannot be pulled by Docker: {error.message}") from error

    def _bases(self, step: Dockerfile) -> dict[str, str]:
        """Have the daemon get what a Dockerfile takes from registries; the names of images that stand for others."""
        others: dict[str, str] = {}
        for name, stage in dockerfile.stages(step).images():
            try:
                image = self._base(step, name)
            except RegistryError as error:
                raise dockerfile.unavailable(step, name, stage.line, error) from error
            others |= {name: image} if image != name else {}
        return others

    def _base(self, step: Dockerfile, name: str) -> str:
        if recipe := dockerfile.instead_of(step, name):
            chain = names.chain(recipe, self._builder.store, self._builder.options)
            return f"{REPOSITORY}:{_Making(self._api, self._builder, recipe, chain).root().key}"
        return self._fetched(name, debian.version_of(name), self._pull)

    def _fetched(self, name: str, python: str, pull: Callable[[str], None]) -> str:
        """An image of a registry; where none can be reached, Debian's packages with that Python ("": nothing instead)."""
        wanted = self._builder.options.base
        reason = bases.unreachable(self._builder.store) if python and wanted == "auto" else ""
        if not python or wanted == "registry" or (wanted == "auto" and not reason):
            try:
                pull(name)
                return name
            except RegistryError as error:
                if not python or wanted == "registry":
                    raise
                if python not in debian.SUITES:
                    raise UnsupportedError(f"{debian.unsupported(python)} ({error})") from error
                reason = str(error)
        if wanted == "auto":
            self._builder.remarks(bases.instead(reason))
        return f"{REPOSITORY}:{self._packages(name, python)}"

    def _packages(self, name: str, python: str) -> str:
        """Debian's packages as an image of the daemon; its tag."""
        root = bases.packages(self._builder, name, python)
        if not _root(self._api, root.key):
            changes = [*(f"ENV {name}={value}" for name, value in root.env), f"CMD {json.dumps(root.cmd)}"]
            self._import(recipes.folder(self._builder.folders(root)[0]), root.key, changes)
        return root.key

    # ---------------------------------------------------------------------------------------- parts

    def _part(self, part: recipes.Part, first: str, authorities: bytes) -> str:
        """Have a part built, and return the image's id."""
        told = Told(self._builder, part.titles)
        listener = Listener(told.hear)
        if part.remark:
            self._builder.prints(part.remark)
        with recipes.unchanged(part, self._builder.store):
            content = recipes.archive(part, first, authorities)
            _build(self._api, content, listener, dict(part.args), part.dockerfile, again=part.again)
            if not listener.image:
                raise told.failure(listener.error)
        return listener.image


def imported(api: Api, content: Iterable[bytes], name: str, changes: Iterable[str] = ()) -> None:
    """Have the daemon make an image of that name of a tar."""
    image = ""
    query = {"fromSrc": "-", "changes": list(changes)}
    for message in api.send("/images/create", content, {"Content-Type": "application/x-tar"}, **query):
        if "error" in message:
            raise ImageBuildError(f"Docker cannot import an image: {message['error']}", step="import")
        image = str(message.get("status") or image).strip()  # the last one is the image's id
    _tag(api, image, name)  # not by the import's own parameters: Podman takes the repository only


def _build(
    api: Api,
    content: Iterable[bytes],
    listener: Listener,
    args: dict[str, str],
    file: str = recipes.DOCKERFILE,
    *,
    again: bool = False,
) -> None:
    query = {"version": "2", "dockerfile": file, "buildargs": args, "rm": True, "forcerm": True, "nocache": again}
    for message in api.send("/build", content, {"Content-Type": "application/x-tar"}, **query):
        listener.hear(message)


def _tag(api: Api, image: str, name: str) -> None:
    api.post(f"/images/{image}/tag", repo=REPOSITORY, tag=name)


def _root(api: Api, name: str) -> Referenced | None:
    """The image of that name, if the daemon has it."""
    try:
        found = api.get(f"/images/{REPOSITORY}:{name}/json")
    except MissingError:
        return None
    config: dict[str, Any] = found["Config"] or {}
    env = (entry.partition("=") for entry in config.get("Env") or ())
    return Referenced(
        key=name,
        reference=found["Id"],
        env=tuple((key, value) for key, _, value in env),
        workdir=config.get("WorkingDir") or "",
        user=config.get("User") or "",
        entrypoint=tuple(filter(None, config.get("Entrypoint") or ())),
        cmd=tuple(config.get("Cmd") or ()),
        shell=tuple(config.get("Shell") or ()),
    )


def tags(item: Mapping[str, Any], *, named: bool = False) -> list[str]:
    """The keys of an image of the daemon's list; `named`: its other tags, too."""
    found = (tag.rpartition(":") for tag in item["RepoTags"] or ())
    # The second name is Podman's.
    own = [tag for name, _, tag in found if name in (REPOSITORY, f"localhost/{REPOSITORY}")]
    return own if named else [tag for tag in own if not tag.startswith(NAMED)]


def _authorized(host: str, login: Hidden) -> dict[str, str]:
    found = credentials.of(login) or credentials.find(host)
    if found is None:
        return {}
    entry = {"username": found.user, "password": found.password, "identitytoken": found.token, "serveraddress": host}
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(entry).encode()).decode()}
