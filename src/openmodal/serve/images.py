"""Images: Dockerfile lines of the client, a layer each, as our recipes; their builds and output."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from modal_proto import api_pb2 as api

from openmodal._dual import run_async
from openmodal._spec import Copy, Debian, Dockerfile, Progress, Recipe, Registry, Root
from openmodal.build import credentials
from openmodal.engines import Engine
from openmodal.errors import Error, ImageBuildError, InvalidError, NotFoundError, UnsupportedError
from openmodal.image import Image, ready
from openmodal.serve import fields, ids
from openmodal.serve.calls import Call, log, serves
from openmodal.serve.kept import FORCED, Kept, KeptSecrets

KEEPS_RUNNING = ("sleep", "172800")
"""The CMD of images that the client makes itself: nobody's program, but a way to stay."""

_PYTHON = re.compile(r"FROM python:(3\.\d+)(?:\.\d+)?-slim-\w+")
_DEBIAN_SLIM = re.compile(
    r"""RUN apt-get update
RUN apt-get install -y gcc gfortran build-essential
RUN pip install --upgrade [^\n]*
RUN echo 'debconf debconf/frontend select Noninteractive' \| debconf-set-selections
CMD \["sleep", "172800"\]"""
)
_LINES_KEPT = 10_000
_BUILDS_KEPT = 100
_IMAGES_KEPT = 1000


@dataclass
class Build:
    """A build under way, or done: its output as it comes, for any number of readers."""

    lines: list[str] = field(default_factory=list[str])
    dropped: int = 0  # lines before those that are kept
    result: api.GenericResult | None = None
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    def report(self, loop: asyncio.AbstractEventLoop, progress: Progress) -> None:
        """News of the build, from the thread that builds."""
        if text := {
            "start": f"{progress.text}\n",
            "remark": f"{progress.text}\n",
            "output": progress.text,
        }.get(progress.event, ""):
            asyncio.run_coroutine_threadsafe(self._add(text), loop)

    async def _add(self, text: str) -> None:
        async with self.news:
            self.lines.append(text)
            self.dropped += len(self.lines[:-_LINES_KEPT])
            del self.lines[:-_LINES_KEPT]
            self.news.notify_all()

    async def more_than(self, lines: int) -> None:
        """Wait until it has more lines of output, or has ended."""
        async with self.news:
            await self.news.wait_for(lambda: self.result or self.count > lines)

    @property
    def count(self) -> int:
        """How many lines there were."""
        return self.dropped + len(self.lines)

    async def end(self, result: api.GenericResult) -> None:
        async with self.news:
            self.result = result
            self.news.notify_all()


class Images:
    """Serves the calls about images."""

    def __init__(self, engine: Engine, kept: Kept) -> None:
        self._engine = engine
        self._kept = kept
        self._builds: dict[str, Build] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._images: dict[str, Image] = {}
        self._forced: dict[str, str] = {}  # which image each one stands for when it is built

    # -------------------------------------------------------------------------------- for sandboxes

    async def root(self, image_id: str, mount_ids: tuple[str, ...] = ()) -> Root:
        """An image that is ready to run, with these trees of files laid over it."""
        key = "/".join((image_id, *mount_ids))
        if key not in self._images:
            recipe = self._kept.recipe(image_id)
            trees = [Copy(str(self._kept.tree(id)), "/") for id in mount_ids]
            self._images[key] = Image(Recipe((*recipe.steps, *trees)))
        self._kept.use(image_id, mount_ids)
        return await run_async(ready(self._images[key], self._engine, _unheard))

    # ---------------------------------------------------------------------------------------- calls

    @serves("ImageGetOrCreate")
    async def get_or_create(self, request: Any, call: Call) -> Any:
        if request.existing_image_id:
            self._kept.recipe(request.existing_image_id)
            return _succeeded(request.existing_image_id)
        if request.build_function_id:
            raise UnsupportedError("Image.run_function is not supported; use run_commands()")
        fields.check(request.image, fields.IMAGE, call, name="image.")
        id = self._id(request.image, call, again=request.force_build or request.ignore_cache)
        build = self._build(id)
        # What is built already is told at once; the client joins all else.
        try:
            async with asyncio.timeout(0.2), build.news:
                await build.news.wait_for(lambda: build.result)
        except TimeoutError:
            return api.ImageGetOrCreateResponse(image_id=id)
        if build.result and build.result.status == api.GenericResult.GENERIC_STATUS_SUCCESS:
            return _succeeded(id)
        return api.ImageGetOrCreateResponse(image_id=id)

    @serves("ImageJoinStreaming")
    async def join(self, request: Any, call: Call) -> AsyncIterator[Any]:
        build = self._build(request.image_id)
        sent = int(request.last_entry_id or 0)
        while True:
            await build.more_than(sent)
            lines, sent = build.lines[max(0, sent - build.dropped) :], build.count
            logs = [api.TaskLogs(data=line, file_descriptor=api.FILE_DESCRIPTOR_STDOUT) for line in lines]
            if logs:
                yield api.ImageJoinStreamingResponse(task_logs=logs, entry_id=str(sent))
            if build.result and sent == build.count:
                yield api.ImageJoinStreamingResponse(result=build.result, entry_id=str(sent), eof=True)
                return

    @serves("ImageFromId")
    async def from_id(self, request: Any, call: Call) -> Any:
        self._kept.recipe(request.image_id)
        return api.ImageFromIdResponse(image_id=request.image_id)

    @serves("ImagePublish")
    async def publish(self, request: Any, call: Call) -> Any:
        self._kept.recipe(request.image_id)
        self._kept.name("image", request.tag, request.image_id)
        return api.ImagePublishResponse(image_id=request.image_id)

    @serves("ImageGetByTag")
    async def by_tag(self, request: Any, call: Call) -> Any:
        id = self._kept.named("image", request.tag)
        if id is None:
            raise NotFoundError(f"there is no image {request.tag!r}; Image.publish gives one a name")
        return api.ImageGetByTagResponse(image_id=id)

    # --------------------------------------------------------------------------------------- inside

    def _id(self, image: Any, call: Call, *, again: bool) -> str:
        """The image of what the client describes: what was built last with `force_build`, if it
        ever was."""
        plain = self._kept.keep_recipe(self._recipe(image, ""))
        if not again:
            return self._kept.named(FORCED, plain) or plain
        # The same, if the client sends the call once more.
        id = self._kept.keep_recipe(self._recipe(image, ids.letters("again", call.key or os.urandom(16))))
        if id == plain:
            call.warn("force_build=True of debian_slim() is ignored: `openmodal image prune` makes it anew")
        else:
            self._forced[id] = plain
        return id

    def _recipe(self, image: Any, again: str) -> Recipe:
        """What the client describes, as a recipe of ours; another for another `again`."""
        bases = {base.docker_tag: self._kept.recipe(base.image_id) for base in image.base_images}
        lines = [line for command in image.dockerfile_commands for line in command.split("\n")]
        if not bases and (debian := _debian(lines)):
            return Recipe((debian,))
        args = tuple(sorted(image.build_args.items()))
        context = self._context(image)
        begin = lines[0].split() if lines else []
        secrets = KeptSecrets(self._kept, self._kept.variables(image.secret_ids), image.secret_ids)
        more = Dockerfile("", tuple(lines[1:]), context, secrets=secrets, again=again)
        rest = (more,) if any(map(str.strip, lines[1:])) else ()
        # A layer over another of the client's: one image of ours, with the steps of both.
        if len(begin) == 2 and begin[0].upper() == "FROM" and begin[1] in bases and not args:
            return Recipe((*bases[begin[1]].steps, *rest))
        if image.image_registry_config.secret_id:
            if len(begin) != 2 or args:
                raise UnsupportedError("secret= of an image of a registry goes with one FROM and no build arguments")
            login = credentials.checked(self._kept.variables([image.image_registry_config.secret_id]))
            hidden = KeptSecrets(self._kept, login.names, [image.image_registry_config.secret_id])
            return Recipe((Registry(begin[1], hidden, again), *rest))
        path = self._kept.keep_dockerfile("\n".join(lines))
        named = tuple(sorted(bases.items()))
        return Recipe((Dockerfile(str(path), (), context, args, bases=named, secrets=secrets, again=again),))

    def _context(self, image: Any) -> str:
        """The folder that COPY reads from."""
        if not image.context_files:
            return str(self._kept.tree(image.context_mount_id)) if image.context_mount_id else _empty(self._kept)
        if image.context_mount_id:
            raise InvalidError("an image step has either files of its own or a context, not both")
        files: dict[str, tuple[str, int]] = {}
        for each in image.context_files:
            digest = hashlib.sha256(each.data).hexdigest()
            self._kept.keep_bytes(each.data, digest)
            files[each.filename] = (digest, 0o644)
        return str(self._kept.tree(self._kept.keep_tree(files)))

    def _build(self, id: str) -> Build:
        """The build of an image; one for all who want it, and another after a failure."""
        build = self._builds.get(id)
        failed = build is not None and build.result and build.result.status != api.GenericResult.GENERIC_STATUS_SUCCESS
        if build is None or failed:
            recipe = self._kept.recipe(id)
            self._builds.pop(id, None)
            build = self._builds[id] = Build()
            self._forget()
            task = asyncio.get_running_loop().create_task(self._run(id, recipe, build))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return build

    def _forget(self) -> None:
        """Keep what was built last; what is built already is found in the engine's store."""
        ended = [id for id, build in self._builds.items() if build.result]
        for id in ended[:-_BUILDS_KEPT]:
            del self._builds[id]
        for key in list(self._images)[:-_IMAGES_KEPT]:
            del self._images[key]

    async def _run(self, id: str, recipe: Recipe, build: Build) -> None:
        loop = asyncio.get_running_loop()
        image = self._images[id] = Image(recipe)
        # Of a bug of ours: who waits must learn that nothing more comes.
        result = _failure("the build failed in OpenModal; the log of its door has more")
        try:
            await run_async(ready(image, self._engine, lambda progress: build.report(loop, progress)))
            if plain := self._forced.pop(id, ""):
                self._kept.name(FORCED, plain, id)
            result = api.GenericResult(status=api.GenericResult.GENERIC_STATUS_SUCCESS)
        except (Error, OSError) as error:  # such as a full disk
            log.info("build failed", extra={"image": id, "reason": str(error)})
            output = error.output if isinstance(error, ImageBuildError) else ""
            result = _failure(f"{error}\n{output}".rstrip())
        finally:
            await build.end(result)


def _failure(text: str) -> api.GenericResult:
    return api.GenericResult(status=api.GenericResult.GENERIC_STATUS_FAILURE, exception=text)


def _debian(lines: list[str]) -> Debian | None:
    """`debian_slim()` of the client, which is our own: without a compiler, and made of packages
    where there is no registry."""
    found = _PYTHON.fullmatch(lines[0]) if lines else None
    return Debian(found[1]) if found and _DEBIAN_SLIM.fullmatch("\n".join(lines[1:])) else None


def _empty(kept: Kept) -> str:
    return str(kept.tree(kept.keep_tree({})))


def _succeeded(id: str) -> Any:
    return api.ImageGetOrCreateResponse(
        image_id=id,
        result=api.GenericResult(status=api.GenericResult.GENERIC_STATUS_SUCCESS),
        metadata=api.ImageMetadata(image_builder_version="2025.06"),
    )


def _unheard(progress: Progress) -> None:
    """Nobody listens to the build of an image whose sandbox is being created."""


__all__ = ["KEEPS_RUNNING", "Images"]
