"""What becomes of a container's files: images that the daemon commits, and the names of images.

An image's label tells that it is a snapshot, under which tag, and until when it is kept. Images
that are built on a snapshot inherit the label, but not the tag.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import IO, Any

from msgspec.structs import replace

from openmodal import _config
from openmodal._files import made, text
from openmodal._spec import Referenced
from openmodal.build.layers import Layers, sync_file_system
from openmodal.build.locks import lock, try_lock
from openmodal.build.names import of_snapshot
from openmodal.engines.docker.container import GVISOR, HOME, ID, STATUS
from openmodal.engines.docker.daemon import Api, ConflictError, Daemon, MissingError
from openmodal.engines.docker.images import NAMED, REPOSITORY, imported, tags
from openmodal.errors import NotFoundError, UnsupportedError

SNAPSHOT = "openmodal.snapshot"
"""The label: a tag, and the time on the Unix clock."""

_GENERATION = "generation"  # a file in a sandbox's folder

_Item = Mapping[str, Any]  # of the daemon's list
_PIECE = 1 << 20
_HALF_MADE = 3600.0  # seconds that a commit of another machine may take until its image has a tag


def commit(
    daemon: Daemon, layers: Layers, id: str, root: Referenced, expires: float, timeout: float | None
) -> tuple[str, Referenced]:
    """An image of a container's files, with the settings of the image that it is made of: its key,
    and the image. The daemon stops what runs meanwhile.

    Raises:
        ConnectionError: there is no such container.
        UnsupportedError: the daemon does not see its files.
        TimeoutError: the daemon has not answered in time.
    """
    key = os.urandom(32).hex()
    name = of_snapshot(key, layers)
    try:
        with daemon.open(timeout) as api, _noted(name):
            _refuse_hidden(api, id)
            image = str(api.post("/commit", _settings(root, name, expires), container=id, pause=True)["Id"])
            # Not before it is whole: a commit that nobody waits for any more gets no name.
            api.post(f"/images/{image}/tag", repo=REPOSITORY, tag=name)
    except (MissingError, ConflictError) as error:
        raise ConnectionResetError(f"the sandbox {id} has ended") from error
    return key, replace(root, key=name, reference=image)


def _notes() -> Path:
    """Where a commit on its way has a file of its image's name, locked as long as somebody waits
    for it: who is killed leaves a file that nobody holds, and perhaps an image without a tag."""
    return _config.state() / "docker" / "commits"


@contextlib.contextmanager
def _noted(name: str) -> Iterator[None]:
    file = made(_notes()) / name
    with lock(file):
        yield
        file.unlink(missing_ok=True)


def _refuse_hidden(api: Api, id: str) -> None:
    """Refuse what has its files where the daemon does not see them: gVisor's overlay, which is a
    file in the container, since 2023 unless runsc was installed with `--overlay2=none`.

    Raises:
        UnsupportedError: so it is.
    """
    if api.get(f"/containers/{id}/json")["HostConfig"].get("Runtime") not in GVISOR:
        return
    if any(str(item["Path"]).startswith("/.gvisor.filestore") for item in api.get(f"/containers/{id}/changes") or ()):
        raise UnsupportedError(
            f"the files of sandbox {id} cannot be copied, because gVisor has them to itself; install it with "
            "`runsc install -- --overlay2=none`, or leave runtime='gvisor' out"
        )


def unpacked(api: Api, layers: Layers, files: IO[bytes], expires: float) -> str:
    """An image of a tar file; its key."""
    key = os.urandom(32).hex()
    name = of_snapshot(key, layers)
    with _noted(name):
        imported(api, iter(lambda: files.read(_PIECE), b""), name, [f'LABEL {SNAPSHOT}="{name} {expires}"'])
    return key


def _settings(root: Referenced, name: str, expires: float) -> dict[str, Any]:
    """The image's configuration. What is empty here, the daemon would take from the container."""
    return {
        "Env": [f"{key}={value}" for key, value in root.env],
        "WorkingDir": root.workdir or "/",
        "User": root.user,
        "Entrypoint": [*root.entrypoint] or [""],
        "Cmd": [*root.cmd],
        "Shell": [*root.shell],
        "Labels": {ID: "", HOME: "", STATUS: "", SNAPSHOT: f"{name} {expires}"},
    }


def settle(root_folder: str) -> None:
    """Return when what the daemon has written is on the disk, if it is one of this machine's."""
    with contextlib.suppress(OSError):
        sync_file_system(Path(root_folder))


def expires(item: _Item) -> float:
    """Until when an image of the daemon's list is kept; 0: it is no snapshot."""
    name, until = _labelled(item)
    return float(until) if name and name in tags(item) else 0.0


def expire(api: Api, kept: Set[str] = frozenset(), *, check: bool = False) -> list[str]:
    """Remove the snapshots whose time is over, and what a commit left for which nobody waits any
    more; return which. `kept`: names that are left alone; `check`: only tell."""
    over = [item for item in _snapshots(api) if _is_over(item) and kept.isdisjoint(tags(item))]
    found = [str(item["Id"]) for item in over if check or _removed(api, item)]
    if not check:
        _drop_notes({_labelled(item)[0] for item in over})
    return found


def _drop_notes(names: Set[str]) -> None:
    """Remove the notes of images that are gone, and of those that never came."""
    with contextlib.suppress(FileNotFoundError):
        for file in [*_notes().iterdir()]:
            with contextlib.suppress(FileNotFoundError):
                if file.name in names or file.stat().st_mtime < time.time() - _HALF_MADE:
                    _unlinked_if_left(file)


def _unlinked_if_left(file: Path) -> None:
    if held := try_lock(file):
        with held:
            file.unlink(missing_ok=True)


def _is_over(item: _Item) -> bool:
    if not tags(item):
        # What has another's name is another's, who has built it on a snapshot or named one.
        named = any(name != "<none>:<none>" for name in item["RepoTags"] or ())
        return not named and (_is_left(_labelled(item)[0]) or float(item["Created"]) < time.time() - _HALF_MADE)
    return 0.0 < expires(item) < time.time() and not names_of(item)


def _is_left(name: str) -> bool:
    """Whether the commit of that image was made here, and nobody waits for it any more."""
    file = _notes() / name
    if not name or not file.exists():
        return False
    if held := try_lock(file):
        held.close()
    return held is not None


def _labelled(item: _Item) -> tuple[str, str]:
    """The tag and the end in the label of an image of the daemon's list; "" if it has none."""
    name, _, until = str((item.get("Labels") or {}).get(SNAPSHOT, "")).partition(" ")
    return name, until


def _snapshots(api: Api) -> list[_Item]:
    found: list[_Item] = api.get("/images/json", filters={"label": [SNAPSHOT]})
    return found


def _removed(api: Api, item: _Item) -> bool:
    try:
        for name in tags(item) or [str(item["Id"])]:
            api.delete(f"/images/{REPOSITORY}:{name}" if tags(item) else f"/images/{name}")
    except (MissingError, ConflictError):  # gone meanwhile, or in use
        return False
    return True


def require(api: Api, root: Referenced) -> None:
    """Raise NotFoundError if the daemon has the files of a checkpoint no more."""
    try:
        api.get(f"/images/{root.reference}/json")
    except MissingError as error:
        raise NotFoundError("these files are not kept any more: they have expired, or were removed") from error


def drop(api: Api, layers: Layers, keys: list[str]) -> None:
    """Remove checkpoints of a sandbox that has ended. One that a fork stands on expires."""
    for key in keys:
        with contextlib.suppress(MissingError, ConflictError):
            api.delete(f"/images/{REPOSITORY}:{of_snapshot(key, layers)}")


# ------------------------------------------------------------------------------------------ names


def publish(api: Api, layers: Layers, name: str, root: Referenced) -> str:
    """Give an image a name, and return its key."""
    key = root.reference.removeprefix("sha256:")
    for tag in (of_snapshot(key, layers), f"{NAMED}{name}"):
        api.post(f"/images/{root.reference}/tag", repo=REPOSITORY, tag=tag)
    return key


def published(api: Api) -> dict[str, str]:
    """The keys of images by their names."""
    items: list[_Item] = api.get("/images/json", filters={"reference": [REPOSITORY]})
    return {name: str(item["Id"]).removeprefix("sha256:") for item in items for name in names_of(item)}


def unpublish(api: Api, name: str) -> bool:
    """Delete a name; whether it was there."""
    try:
        api.delete(f"/images/{REPOSITORY}:{NAMED}{name}")
    except MissingError:
        return False
    return True


def names_of(item: _Item) -> list[str]:
    """The names that an image of the daemon's list is published under."""
    return [tag.removeprefix(NAMED) for tag in tags(item, named=True) if tag.startswith(NAMED)]


# ------------------------------------------------------------------------------------- generations


def now(folder: Path) -> int:
    """The generation of the sandbox of that folder."""
    return int(text(folder / _GENERATION) or 0)


def begin(folder: Path) -> int:
    """Another generation begins; return its number."""
    number = now(folder) + 1
    with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
        (folder / _GENERATION).write_text(str(number), "ascii")
    return number
