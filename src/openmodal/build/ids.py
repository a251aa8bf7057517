"""The ids of whoever builds, and programs that run as root of them.

A plain user is root of a user namespace in which his own id is 0 and a range of /etc/subuid and /etc/subgid follows: in every sandbox of
his, and here. So what such a program writes belongs, on disk, to the ids that a sandbox sees as root and as the others.
"""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from openmodal.errors import EngineError

REMEDY = (
    "as root: apt-get install uidmap && usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name} "
    "(another range if others have this one)"
)

_NOBODY = 65534

_HELPERS = ("newuidmap", "newgidmap")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # where the native program looks for them, too

# The first dies with its parent, the second is process 1 of its own namespace and dies with the first.
_TIED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# A line says that the user namespace is there, and an answer that it has its maps: what is executed then is root with all rights in it.
# Only then can it be tied, because the kernel forgets that when a process gains rights.
_MAPPED = ("unshare", "--user", "sh", "-c", 'echo; read -r mapped && exec "$@" < /dev/null', "sh")


class Maps(NamedTuple):
    """Lines of uid_map and gid_map (user_namespaces(7))."""

    uids: tuple[str, ...]
    gids: tuple[str, ...]


def maps(root: Path = Path("/")) -> Maps | None:
    """The ids of a plain user; None: his own alone. `root` is where /etc is looked for."""
    uid, gid = os.getuid(), os.getgid()
    ranges = [subordinate(_text(root / "etc" / name), uid) for name in ("subuid", "subgid")]
    if not all(ranges) or not all(shutil.which(helper, path=_PATH) for helper in _HELPERS):
        return None
    uids, gids = (
        (f"0 {own} 1", f"1 {found[0]} {found[1]}") for own, found in zip((uid, gid), ranges, strict=True) if found
    )
    return Maps(uids, gids)


@functools.lru_cache(maxsize=1024)  # every file of a layer asks, and there are few owners
def inside(uid: int, gid: int) -> tuple[int, int]:
    """The owner of a file on disk as sandboxes see it, and so do others whom the file is given to."""
    if os.geteuid() == 0:
        return uid, gid
    found = maps() or Maps((f"0 {os.getuid()} 1",), (f"0 {os.getgid()} 1",))
    return _mapped(uid, found.uids), _mapped(gid, found.gids)


def _mapped(id: int, lines: Sequence[str]) -> int:
    for first, outside, count in (map(int, line.split()) for line in lines):
        if outside <= id < outside + count:
            return first + id - outside
    return _NOBODY


def subordinate(text: str, uid: int) -> tuple[int, int] | None:
    """First id and count of the user's first range in /etc/subuid or /etc/subgid (subuid(5))."""
    names = {str(uid), user_name(uid)}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if name in names and first.isdigit() and count.isdigit():
            return int(first), int(count)
    return None


def user_name(uid: int) -> str:
    """The user's name; the number, if there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def start(argv: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a program as root of the ids, with all its output in one pipe.

    It and all its descendants and mounts end with this process, even if that is killed.

    Raises:
        EngineError: this user has his own id only, or may make no user namespace.
    """
    pipe = subprocess.PIPE
    if os.geteuid() == 0:
        return subprocess.Popen(
            [*_TIED, *argv], stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT, env=env
        )
    found = maps()
    if found is None:
        raise EngineError(
            f"files of more than one owner need more ids than your own; {REMEDY.format(name=user_name(os.getuid()))}"
        )
    process = subprocess.Popen([*_MAPPED, *_TIED, *argv], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=env)
    try:
        _map(process, found)
    except BaseException:
        with process:
            process.kill()
        raise
    return process


def _map(process: subprocess.Popen[bytes], found: Maps) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    if (said := os.read(process.stdout.fileno(), 1)) != b"\n":
        text = (said + process.stdout.read()).decode("utf-8", "replace").strip()
        raise EngineError(f"this user may make no user namespace: {text}; `openmodal doctor` tells what to change")
    for helper, lines in zip(_HELPERS, found, strict=True):
        words = " ".join(lines).split()
        done = subprocess.run([helper, str(process.pid), *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EngineError(
                f"{helper} refuses the ids of this user: {done.stderr.strip()}; correct /etc/subuid and /etc/subgid"
            )
    process.stdin.write(b"\n")
    process.stdin.close()


def remove(folder: Path) -> None:
    """Remove a folder in which other ids of a plain user have folders that he cannot even look into."""
    with start(("rm", "-rf", "--", os.fspath(folder))) as process:
        assert process.stdout is not None
        said = process.stdout.read().decode("utf-8", "replace").strip()
    if process.returncode != 0:
        raise EngineError(f"the folder {folder} cannot be removed: {said}")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
