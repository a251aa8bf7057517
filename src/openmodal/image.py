"""Image: an immutable recipe for a sandbox's files. Pure: nothing is read, built or fetched before
the image is used.

Each method returns a new image with one more step; empty lists add none. Local paths are made
absolute when the method is called, so a later `chdir` changes nothing; the files themselves are
looked at once, when the image or one made of it is first used, and their content, not their path,
decides whether a step is in the cache.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

import msgspec

from openmodal import _args, _config, _image_args, _installers
from openmodal._dual import Blocking, dual
from openmodal._hidden import NOTHING, Hidden, hidden
from openmodal._spec import (
    AnyStep,
    Config,
    Copy,
    Debian,
    Dockerfile,
    Recipe,
    Registry,
    Report,
    Root,
    Run,
    Scratch,
    Snapshot,
)
from openmodal.build import ForPeople
from openmodal.engines import Engine, choose, require
from openmodal.errors import InvalidError, NotFoundError
from openmodal.secret import Secret, merged

Words = _image_args.Words

_REQUIREMENTS = "/usr/local/share/openmodal/requirements"
_PYTHON = r"3\.\d{1,2}(\.\d{1,2})?"
_PACKAGE = r"[A-Za-z0-9][A-Za-z0-9+._:~=*/-]*"
_USER = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?"


class _Seen(msgspec.Struct):
    """A step once its local files were looked at. All images that have the step share it, so one look does for all sandboxes."""

    step: AnyStep | None = None


class Image(msgspec.Struct, frozen=True, eq=False):
    """What a sandbox's files are, as a recipe. Two images are equal if their recipes are.

    Local files are looked at once, when the image is first used: later changes of them are seen by
    images that are made later.

    Example::

        image = Image.debian_slim().apt_install("git").pip_install("requests").env({"STAGE": "test"})
    """

    recipe: Recipe
    _seen: tuple[_Seen, ...] = ()

    def __post_init__(self) -> None:
        if not self._seen:
            msgspec.structs.force_setattr(self, "_seen", tuple(_Seen() for _ in self.recipe.steps))

    def __eq__(self, other: object) -> bool:
        return self.recipe == other.recipe if isinstance(other, Image) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.recipe)

    # ------------------------------------------------------------------------------ where it begins

    @classmethod
    def debian_slim(cls, python_version: str | None = None) -> Image:
        """A small Debian with Python, pip and venv.

        It is Docker Hub's `python:<version>-slim` where that registry can be reached, and made of
        Debian's packages where not; `OPENMODAL_BASE=registry` or `packages` says it exactly.

        Args:
            python_version: such as "3.12". None: "3.13", the newest that both a registry and a
                current Debian have. Debian's packages have 3.11 (bookworm) and 3.13 (trixie);
                building another one without a registry fails and says so.
        """
        version = "" if python_version is None else _args.string("python_version", python_version)
        if version and not re.fullmatch(_PYTHON, version):
            raise InvalidError(f"python_version cannot be {version!r}; write it like '3.13'")
        return cls(Recipe((Debian(version),)))

    @classmethod
    def from_registry(cls, reference: str, *, secret: Secret | None = None) -> Image:
        """An image of a registry: "alpine", "python:3.12", "ghcr.io/owner/name:tag",
        "name@sha256:…".

        A tag is looked up once and then stays what it was, until `openmodal image prune`; a digest
        is always the same.

        Args:
            secret: the registry's credentials, REGISTRY_USERNAME and REGISTRY_PASSWORD, or Google's
                SERVICE_ACCOUNT_JSON. None: those of `docker login`, if there are any.
        """
        from openmodal.build import credentials

        login = NOTHING if secret is None else credentials.checked(merged([secret]))
        return cls(Recipe((Registry(_image_args.word("reference", reference), login),)))

    @classmethod
    def from_dockerfile(
        cls,
        path: str | os.PathLike[str] = "Dockerfile",
        *,
        context_dir: str | os.PathLike[str] | None = None,
        build_args: Mapping[str, str] | None = None,
        bases: Mapping[str, Image] | None = None,
        secrets: Iterable[Secret] = (),
    ) -> Image:
        """What a Dockerfile describes (docs/images.md tells what of it is done and what is
        refused).

        Args:
            path: the Dockerfile.
            context_dir: what COPY reads from; None: the Dockerfile's folder.
            build_args: values for its ARG instructions.
            bases: images to use instead of those that it names: `{"ubuntu:22.04":
                Image.debian_slim()}`.
            secrets: as `run_commands`, in each RUN.
        """
        file = _image_args.local("path", path)
        context = os.path.dirname(file) if context_dir is None else _image_args.local("context_dir", context_dir)
        args = _args.variables("build_args", build_args)
        named, variables = _recipes(bases or {}), Hidden(merged(secrets))
        return cls(Recipe((Dockerfile(file, (), context, args, bases=named, secrets=variables),)))

    @classmethod
    def from_scratch(cls) -> Image:
        """No files at all."""
        return cls(Recipe((Scratch(),)))

    # ------------------------------------------------------------------------------------- commands

    def apt_install(self, *packages: Words) -> Image:
        """Install Debian packages, without those that are only recommended. Downloads are kept between builds."""
        names = _image_args.words("apt_install", packages)
        for name in names:
            if not re.fullmatch(_PACKAGE, name):
                raise InvalidError(
                    f"apt_install() cannot install {name!r}; use names of Debian packages, one per argument"
                )
        return self._add(_installers.apt(names)) if names else self

    def pip_install(
        self,
        *packages: Words,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        secrets: Iterable[Secret] = (),
    ) -> Image:
        """Install Python packages with the image's pip. Downloads and built wheels are kept between
        builds.

        `index_url`, `extra_index_url` and `pre` are options of pip; `extra_options` are more of its
        arguments, as in a shell; `secrets` as `run_commands`, such as one with PIP_EXTRA_INDEX_URL.
        """
        names = _image_args.requirements("pip_install", packages)
        options = _image_args.pip_options(index_url, extra_index_url, pre, extra_options)
        step = _installers.pip((*options, "--", *names), Hidden(merged(secrets)))
        return self._add(step) if names else self

    def pip_install_from_requirements(
        self,
        requirements_txt: str | os.PathLike[str],
        *,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        secrets: Iterable[Secret] = (),
    ) -> Image:
        """Install what a file of this machine lists; it may not refer to others. Options as `pip_install`."""
        file = _image_args.local("requirements_txt", requirements_txt)
        options = _image_args.pip_options(index_url, extra_index_url, pre, extra_options)
        target = f"{_REQUIREMENTS}-{len(self.recipe.steps)}.txt"  # several calls do not replace each other's
        return self._add(Copy(file, target))._add(_installers.pip((*options, "-r", target), Hidden(merged(secrets))))

    def uv_pip_install(
        self,
        *packages: Words,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        secrets: Iterable[Secret] = (),
    ) -> Image:
        """As `pip_install`, but with uv, which is faster. The image needs none and keeps none."""
        names = _image_args.requirements("uv_pip_install", packages)
        options = _image_args.pip_options(index_url, extra_index_url, False, extra_options)
        options = (*options, "--prerelease=allow") if pre else options
        step = _installers.uv((*options, "--", *names), Hidden(merged(secrets)))
        return self._add(step) if names else self

    def run_commands(self, *commands: Words, secrets: Iterable[Secret] = ()) -> Image:
        """Run shell commands, one step each, as root (`user` is for sandboxes) in the image's working
        directory.

        Args:
            secrets: variables of these steps only. Their values are part of nothing that is kept:
                another value does not make a step run again. In the output they are `***`. What a
                command writes to a file is in the image, as ever.
        """
        image, variables = self, Hidden(merged(secrets))
        for command in _image_args.words("run_commands", commands):
            image = image._add(Run(("/bin/sh", "-c", command), secrets=variables))
        return image

    def dockerfile_commands(
        self,
        *commands: Words,
        context_dir: str | os.PathLike[str] | None = None,
        secrets: Iterable[Secret] = (),
    ) -> Image:
        """Add `commands`, lines of a Dockerfile without FROM. `context_dir` is what COPY reads
        from; None: the current folder. `secrets`: as `run_commands`, in each RUN."""
        lines = tuple(_image_args.words("dockerfile_commands", commands))
        context = _image_args.local("context_dir", "." if context_dir is None else context_dir)
        return self._add(Dockerfile("", lines, context, secrets=Hidden(merged(secrets)))) if lines else self

    # ------------------------------------------------------------------------------------- settings

    def env(self, variables: Mapping[str, str]) -> Image:
        """Set variables for later steps and for every command in sandboxes. Not for secrets: an image can be read."""
        pairs = _args.variables("env", variables)
        return self._add(Config(env=pairs)) if pairs else self

    def workdir(self, path: str) -> Image:
        """Set the folder in which later steps and commands start; it is made if it is missing."""
        return self._add(Config(workdir=_args.absolute("workdir", path)))

    def entrypoint(self, arguments: Iterable[str]) -> Image:
        """Set what the sandbox's main command is an argument of; an empty list takes it away. What `cmd` set before is forgotten."""
        return self._add(Config(entrypoint=_image_args.arguments("entrypoint", arguments)))

    def cmd(self, arguments: Iterable[str]) -> Image:
        """Set the main command of sandboxes that are given none: they end with it. An empty list:
        just the entrypoint, if there is one.

        Only this method does: the CMD that a base image or a Dockerfile has is mostly a shell or a
        server of theirs, and is not run.
        """
        return self._add(Config(cmd=_image_args.arguments("cmd", arguments)))

    def user(self, user: str) -> Image:
        """Set who commands in sandboxes run as: "name", "uid", "name:group" or "uid:gid". Build steps run as root."""
        if not re.fullmatch(_USER, _args.string("user", user)):
            raise InvalidError(f"user cannot be {user!r}; use 'name', 'uid', 'name:group' or 'uid:gid'")
        return self._add(Config(user=user))

    # ---------------------------------------------------------------------------------- local files

    def add_local_file(self, local_path: str | os.PathLike[str], remote_path: str) -> Image:
        """Put the file `local_path` at `remote_path`, or into it, if it ends in "/"."""
        return self._add(Copy(_image_args.local("local_path", local_path), _args.absolute("remote_path", remote_path)))

    def add_local_dir(self, local_path: str | os.PathLike[str], remote_path: str, *, ignore: Words = ()) -> Image:
        """Put what is in the folder `local_path` of this machine into the folder `remote_path`.

        Files are owned by root and have mode 0755 if they are executable here, else 0644; links
        stay links.

        Args:
            ignore: patterns of what to leave out, as in a .dockerignore file, for example `[".git",
                "**/*.pyc"]`.
        """
        source, target = _image_args.local("local_path", local_path), _args.absolute("remote_path", remote_path)
        return self._add(Copy(source, target, tuple(_image_args.words("ignore", (ignore,)))))

    def add_local_python_source(self, *modules: Words, ignore: Words = ("**/__pycache__", "**/*.pyc")) -> Image:
        """Put modules or packages that can be imported here where Python in the image can import
        them.

        They go below /root, which becomes part of PYTHONPATH; `ignore` as `add_local_dir`. Finding them is the one look that
        this class takes at local files; nothing is imported.
        """
        image = self
        names = _image_args.words("add_local_python_source", modules)
        for name in names:
            source, base = _image_args.module(name)
            image = image._add(Copy(source, f"/root/{base}", tuple(_image_args.words("ignore", (ignore,)))))
        return image._add(Config(env=(("PYTHONPATH", "/root"),))) if names else self

    # ----------------------------------------------------------------------------------- being made

    @dual
    async def build(self, *, engine: str | Engine | None = None) -> Image:
        """Make the image now instead of at its first use, on that `engine`, and return it.

        Raises:
            ImageBuildError: a step failed; `.step` and `.output` tell. The steps before it stay in
                the cache.
            RegistryError: the base image cannot be fetched.
            UnsupportedError: it cannot be made on this machine; the text says what can.
        """
        await ready(self, choose(engine))
        return self

    # ---------------------------------------------------------------------------------------- names

    @dual
    async def publish(self, name: str, *, engine: str | Engine | None = None) -> Image:
        """Make the image now, give it a name, and return what `from_name` gives: its files as they
        are, whatever becomes of what it was made of.

        It is kept until the name is deleted, or given to another image. A snapshot knows none of
        the secrets of its sandbox, but files that commands wrote may hold some: whoever uses the
        engine can read them under this name.

        Raises:
            ImageError: it cannot be made; nothing has the name that did not have it.
        """
        checked, chosen = _args.name("name", name), choose(engine)
        require(chosen, "published")
        root = await ready(self, chosen)
        return snapshot(await chosen.publish(checked, root))

    @dual
    @classmethod
    async def from_name(cls, name: str, *, engine: str | Engine | None = None) -> Image:
        """The image that is published under that name, as it is now: what is published under it
        later is another.

        Raises:
            NotFoundError: there is none.
        """
        checked, chosen = _args.name("name", name), choose(engine)
        require(chosen, "published")
        names = await chosen.published()
        if checked not in names:
            raise NotFoundError(f"no image is published as {name!r}; `openmodal image list` shows which are")
        return snapshot(names[checked])

    @dual
    @classmethod
    async def delete(cls, name: str, *, engine: str | Engine | None = None) -> None:
        """Delete the name of a published image. The image itself goes with the next
        `openmodal image prune`, if nothing uses it.

        Raises:
            NotFoundError: no image has the name.
        """
        checked, chosen = _args.name("name", name), choose(engine)
        require(chosen, "published")
        if not await chosen.unpublish(checked):
            raise NotFoundError(f"no image is published as {name!r}; `openmodal image list` shows which are")

    # --------------------------------------------------------------------------------------- inside

    def _add(self, step: AnyStep) -> Image:
        if not self.recipe.steps:
            from openmodal.build.origin import REQUIRED

            raise InvalidError(REQUIRED)
        return Image(Recipe((*self.recipe.steps, step)), (*self._seen, _Seen()))

    def __repr__(self) -> str:
        from openmodal.build.titles import title

        return f"<Image {'; '.join(title(step) for step in self.recipe.steps)}>"


def snapshot(key: str) -> Image:
    """The image that an engine keeps under a key."""
    return Image(Recipe((Snapshot(key),)))


async def ready(image: Image, engine: Engine, report: Report | None = None) -> Root:
    """Have an engine make an image, of what its local files were when they were first looked at.
    `report` None: people are told, on stderr."""
    if any(seen.step is None for seen in image._seen):
        await Blocking(_look, image)
    recipe = Recipe(tuple(seen.step for seen in image._seen if seen.step is not None))
    for kind in hidden(recipe):
        require(engine, {"secrets": "build_secrets", "login": "registry_login"}[kind])
    if report:
        return await engine.prepare(recipe, report)
    with ForPeople() as told:
        return await engine.prepare(recipe, told)


def _look(image: Image) -> None:
    from openmodal.build.layers import Layers
    from openmodal.build.mapped import mapped
    from openmodal.build.names import looked_at

    store, table = Layers(_config.state()), _config.bases()
    for step, seen in zip(image.recipe.steps, image._seen, strict=True):
        seen.step = seen.step or looked_at(mapped(step, table), store)


def main_command(image: Image) -> tuple[str, ...] | None:
    """What `cmd` said last and `entrypoint` has not taken back since; None for nothing."""
    said = None
    for step in image.recipe.steps:
        if isinstance(step, Config) and (step.cmd is not None or step.entrypoint is not None):
            said = step.cmd
    return said


def _recipes(bases: Mapping[str, Image]) -> tuple[tuple[str, Recipe], ...]:
    for name, image in bases.items():
        if not isinstance(image, Image):
            raise InvalidError(f"bases[{name!r}] must be an openmodal.Image, not {type(image).__name__}")
    return tuple((_image_args.word("bases", name), image.recipe) for name, image in sorted(bases.items()))


def checked_image(image: Image | None) -> Image:
    """The image of a sandbox; None: a small Debian."""
    if image is None:
        return Image.debian_slim()
    if not isinstance(image, Image):
        raise InvalidError(
            f"image must be an openmodal.Image, not {type(image).__name__}; use Image.from_registry(name)"
        )
    return image
