"""The store of layers: one folder per layer, found by its key, made by one process and then never
changed.

::

    layers/<key>/root     the files, as overlayfs wants them      layers/<key>/meta.json   where it came from
    images/<name>.json    which layers an image has               locks/<key>              who makes or uses a layer
    tmp/<pid>-<random>/   what is being made                      cache/<name>/            package downloads between builds

Promises: a layer appears complete or not at all (written under `tmp`, synced, renamed). A layer's
lock is held exclusively by whoever makes it and shared by whoever uses it; its parents are safe
with it, because `prune` removes no layer that another one stands on. A folder under `tmp` is locked
by its owner, so what a killed process left is known by being unlocked.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from openmodal import _trash
from openmodal._files import made, text, within
from openmodal._spec import Layered
from openmodal._store import make_folder
from openmodal._trash import remove as remove_tree
from openmodal.build.locks import Lock, lock, lock_folder, try_lock
from openmodal.errors import ImageBuildError, disk_full_named, no_state

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH_PIECE = 2048  # bytes; PATH_MAX is 4096
_FAILURE_MOST = 1 << 20
_USED_EVERY = 600.0  # seconds between two notes of an image's use: a hit must not write each time


class Meta(msgspec.Struct, frozen=True):
    """What is known of a layer: the key of the one below ("" for none), the step, its size in
    bytes, when it was made.

    `expires`: it is a snapshot, and the image that ends with it is kept until then; 0: it is made
    by a step, and can be made again.
    """

    parent: str = ""
    step: str = ""
    size: int = 0
    made: float = 0.0
    expires: float = 0.0


class Failure(msgspec.Struct, frozen=True):
    """How a step failed, and when (monotonic clock): in its layer's lock file, for those who wait."""

    at: float
    text: str
    step: str
    output: str


class Claim:
    """A layer that is this build's for now: `made` tells whether it exists; if not, nobody else makes it meanwhile."""

    def __init__(self, held: Lock, made: bool) -> None:
        self.held = held
        self.made = made


class Layers:
    """The store in a folder. Making one touches nothing; the folder is made by the first write."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path if isinstance(path, Path) else Path(path)

    # --------------------------------------------------------------------------------------- images

    def image(self, name: str) -> Layered | None:
        """The image of that name, if it and its layers are there; notes that it was used."""
        file = f"{self.path}/images/{name}.json"
        try:
            root = msgspec.json.decode(text(file), type=Layered)
        except msgspec.DecodeError:
            # There is none, or one that cannot be read and is written again.
            return None
        # One stat is enough: no layer goes before the layers that stand on it.
        if not root.layers or not self.has(root.layers[0]):
            return None
        _touch(file)
        return root

    def remember(self, name: str, root: Layered) -> None:
        """Give an image a name."""
        self.write(self.path / "images" / f"{name}.json", msgspec.json.encode(root))

    def forget(self, name: str) -> None:
        """Take an image's name away; its layers go with the next prune."""
        (self.path / "images" / f"{name}.json").unlink(missing_ok=True)

    def folders(self, root: Layered) -> tuple[str, ...]:
        """The folders of an image's layers. Keys are what is stored, so that the store can be moved."""
        return tuple(map(self.root, root.layers))

    def hold(self, root: Layered) -> Lock | None:
        """Keep an image's layers from `prune` until the lock is closed; None if they are gone
        already: build again.

        The lock's descriptor may be handed to the process that outlives this one.
        """
        key = root.layers[0]
        held = lock(self._lock_file(key), shared=True)
        if self.has(key):
            return held
        held.close()
        return None

    # --------------------------------------------------------------------------------------- layers

    def folder(self, key: str) -> Path:
        """The layer's files."""
        return Path(self.root(key))

    def root(self, key: str) -> str:
        """The path of the layer's files."""
        return f"{self.path}/layers/{key}/root"

    def has(self, key: str) -> bool:
        """Whether the layer is there, which means: complete."""
        return os.path.isdir(self.root(key))

    def meta(self, key: str) -> Meta:
        """What is known of a layer."""
        return msgspec.json.decode((self.path / "layers" / key / "meta.json").read_bytes(), type=Meta)

    def set_meta(self, key: str, meta: Meta) -> None:
        """Change what is known of a layer."""
        self.write(self.path / "layers" / key / "meta.json", msgspec.json.encode(meta))

    def claim(self, key: str, waiting: Callable[[], None] = lambda: None) -> Claim:
        """Wait until the layer is made by another process, or is to be made by this one.

        `waiting` is called once if another process is making it.

        Raises:
            ImageBuildError: another process made it, and its step failed: it would fail again.
        """
        held = try_lock(self._lock_file(key), shared=True)
        if held is None:
            since = time.monotonic()
            waiting()
            held = lock(self._lock_file(key), shared=True)
            self._fail_alike(key, held, since)
        while not self.has(key):
            held.close()
            held = lock(self._lock_file(key))
            if not self.has(key):
                os.ftruncate(held.fd, 0)
                return Claim(held, False)
            held.share()
        return Claim(held, True)

    def fail(self, claim: Claim, error: ImageBuildError) -> None:
        """Leave a step's failure to those who wait for its layer; later builds try again."""
        failure = Failure(time.monotonic(), str(error), error.step, error.output)
        os.pwrite(claim.held.fd, msgspec.json.encode(failure), 0)

    def _fail_alike(self, key: str, held: Lock, since: float) -> None:
        note = os.pread(held.fd, _FAILURE_MOST, 0)
        if not note or self.has(key):
            return
        failure = msgspec.json.decode(note, type=Failure)
        if failure.at >= since:
            held.close()
            raise ImageBuildError(failure.text, step=failure.step, output=failure.output)

    def publish(self, files: Path, key: str, meta: Meta) -> None:
        """Make a folder under `scratch` the layer of that key, whose claim is held."""
        wrapper = files.parent / f"layer-{os.urandom(4).hex()}"
        wrapper.mkdir()
        self.describe(wrapper, msgspec.structs.replace(meta, size=size_of(files)))
        os.rename(files, wrapper / "root")
        # A rename may reach the disk before the data: after a power cut there would be a layer with
        # empty files.
        self.sync()
        with suppress(FileExistsError):
            os.rename(wrapper, self.place(key))

    def describe(self, wrapper: Path, meta: Meta) -> None:
        """Say what is known of the layer that a folder becomes when it has its files, `root`, and is
        renamed."""
        wrapper.chmod(0o755)
        meta = msgspec.structs.replace(meta, made=time.time())
        (wrapper / "meta.json").write_bytes(msgspec.json.encode(meta))

    def place(self, key: str) -> Path:
        """Where the layer of that key is, or will be."""
        return self._made("layers") / key

    def using(self, key: str) -> Lock:
        """Keep a layer from `prune`, also one that is still to come, until the lock is closed."""
        return lock(self._lock_file(key), shared=True)

    def sync(self) -> None:
        """Return when the files of all layers are on the disk."""
        sync_file_system(self._made("layers"))

    def sync_names(self, name: str) -> None:
        """Return when an image's name, and the names of its layers, are on the disk."""
        images = self._made("images")
        _sync(images / f"{name}.json", images, self._made("layers"))

    # ----------------------------------------------------------------------------------- being made

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder of this process's own, removed at the end; if the process is killed, by the next `collect`."""
        folder, held = self._new_scratch()
        try:
            with disk_full_named(self.path):
                yield folder
        finally:
            remove_tree(folder)
            held.close()

    def _new_scratch(self) -> tuple[Path, Lock]:
        while True:
            folder = self._made("tmp") / f"{os.getpid()}-{os.urandom(6).hex()}"
            folder.mkdir(mode=0o700)
            if held := lock_folder(folder):  # else `collect` of another process was faster
                return folder, held

    def collect(self, failed: list[str] | None = None) -> int:
        """Remove what killed processes left half-made; returns how many folders. What cannot be removed yet is noted in `failed`."""
        count, failed = 0, [] if failed is None else failed
        for folder in _children(self.path / "tmp"):
            with _trash.going_on(failed):
                if held := lock_folder(folder):
                    with held:
                        # The step of a killed builder may still write: the next `collect` removes
                        # the rest.
                        remove_tree(folder)
                        count += 1
        return count

    @contextmanager
    def cache(self, name: str, *, exclusive: bool) -> Iterator[Path]:
        """A folder that is kept between builds. If `exclusive`, concurrent builds get one each instead of waiting."""
        with self._cache_slot(name, exclusive) as path:
            if not path.is_dir():
                with suppress(FileExistsError):  # of shared ones, another build was faster
                    make_folder(path)
            yield path

    @contextmanager
    def _cache_slot(self, name: str, exclusive: bool) -> Iterator[Path]:
        base = self._made("cache")
        for slot in range(16 if exclusive else 1):
            held = try_lock(self._lock_file(f"cache-{name}-{slot}"), shared=not exclusive)
            if held is not None:
                with held:
                    yield base / f"{name}-{slot}"
                return
        with lock(self._lock_file(f"cache-{name}-0"), shared=not exclusive):
            yield base / f"{name}-0"

    # ---------------------------------------------------------------------------------------- notes

    def note(self, name: str) -> dict[str, Any]:
        """A small remembered fact, empty if there is none."""
        try:
            value = msgspec.json.decode((self.path / "notes" / f"{name}.json").read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return {}
        return value if isinstance(value, dict) else {}

    def set_note(self, name: str, value: dict[str, Any]) -> None:
        """Remember a small fact."""
        self.write(self.path / "notes" / f"{name}.json", msgspec.json.encode(value))

    def notes(self, kind: str) -> list[str]:
        """The names of facts of a kind."""
        return [file.stem for file in _children(self.path / "notes") if file.name.startswith(f"{kind}-")]

    def drop_note(self, name: str) -> None:
        """Forget a fact."""
        (self.path / "notes" / f"{name}.json").unlink(missing_ok=True)

    def guard(self, name: str) -> Lock:
        """A lock for something that is no layer."""
        return lock(self._lock_file(name))

    def _lock_file(self, key: str) -> str:
        return f"{self._made('locks')}/{key}"

    def _made(self, name: str) -> Path:
        try:
            return made(within(self.path, name))
        except OSError as error:
            raise no_state(self.path, error) from error

    def write(self, file: Path, data: bytes, *, durable: bool = False) -> None:
        """Replace a file of the store: old or new, never torn, for readers do not lock."""
        self._made(str(file.parent.relative_to(self.path)))
        temporary = file.with_name(f".{file.name}.{os.getpid()}-{os.urandom(4).hex()}")
        with disk_full_named(self.path):
            try:
                temporary.write_bytes(data)
                os.rename(temporary, file)
                if durable:
                    _sync(file, file.parent)
            finally:
                temporary.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------- files


def size_of(folder: Path) -> int:
    """Bytes on disk of everything in a folder; hard links count once. Not what a plain user may not look into: other ids' folders."""
    seen: set[tuple[int, int]] = set()
    total = 0
    pending = [b""]
    top = os.open(folder, _OPEN_FOLDER)
    try:
        while pending:
            path = pending.pop()
            for name, info in _infos(top, path):
                if stat.S_ISDIR(info.st_mode):
                    pending.append(path + name + b"/")
                elif (info.st_dev, info.st_ino) not in seen:
                    if info.st_nlink > 1:
                        seen.add((info.st_dev, info.st_ino))
                    total += info.st_blocks * 512
    finally:
        os.close(top)
    return total


def _infos(top: int, path: bytes) -> list[tuple[bytes, os.stat_result]]:
    """What is in a folder below the open folder `top`; `path` is empty or ends in a slash, and may be longer than a path's limit."""
    fd = os.dup(top)
    try:
        while path:
            cut = path.rfind(b"/", 0, _PATH_PIECE) + 1
            fd, above = os.open(path[:cut], _OPEN_FOLDER, dir_fd=fd), fd
            os.close(above)
            path = path[cut:]
        return [(name, os.lstat(name, dir_fd=fd)) for name in map(os.fsencode, os.listdir(fd))]
    except PermissionError:
        return []
    finally:
        os.close(fd)


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _touch(file: str) -> None:
    with suppress(OSError):  # a read-only store is fine: its images are just never pruned by age
        if time.time() - os.stat(file).st_mtime > _USED_EVERY:
            os.utime(file)


def _sync(*paths: Path) -> None:
    """Return when these files and folders are on the disk."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def sync_file_system(path: Path) -> None:
    """Return when all of the file system that has that path is on the disk (syncfs(2))."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(path))
    finally:
        os.close(fd)
