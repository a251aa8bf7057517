"""Networks that sandboxes share: which number each has, and the file in which its members are.

A network is there as long as it has members, so nobody makes or removes one. Its file is what all
of them see as /etc/hosts; the file's name is the network's number, which is the group of their
interfaces in the router (network.py). Their supervisors write their names into it, and the last one
removes it (native/member.c). A member holds a shared lock on it: if a process gets
an exclusive one, all supervisors of that network were killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from openmodal import _config
from openmodal._files import made
from openmodal._spec import Network
from openmodal.build.locks import Lock, lock, try_lock
from openmodal.engines.embedded.plan import Lines
from openmodal.errors import EngineError

_LINE = 256  # as native/member.c says
_MOST = 0xFFFF
_HEAD = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n# {key}"


@contextmanager
def joining(wanted: Network, state: Path) -> Iterator[Lines]:
    """The plan's lines for a member of a network, which is there until the end of the block: by
    then the sandbox is in it, or never will be.

    Raises:
        EngineError: there are too many networks.
    """
    import hashlib

    folder = Path(made(_config.machine() / "networks"))
    head = _HEAD.format(key=hashlib.sha256(f"{state}\0{wanted.shared}".encode()).hexdigest())
    with lock(folder / "lock"):
        number, held = _take(folder, head.encode())
    with held:
        yield [
            ("network", str(folder / str(number))),
            ("group", str(number)),
            *([("names", " ".join(wanted.aliases))] if wanted.aliases else []),
            *([("cut", "1")] if wanted.block else []),
        ]


def sweep() -> None:
    """Remove what networks left whose supervisors were all killed."""
    folder = Path(_config.machine()) / "networks"
    if folder.exists():
        with lock(folder / "lock"):
            _living(folder)


def _take(folder: Path, head: bytes) -> tuple[int, Lock]:
    """The number of the network whose file begins like this, and the lock of a member; a new one,
    if there is none."""
    living = _living(folder)
    for number in living:
        held = lock(folder / str(number), shared=True)
        if os.pread(held.fd, len(head), 0) == head:
            return number, held
        _drop_if_new(folder / str(number), held)
    number = _free(living)
    held = lock(folder / str(number), shared=True)
    os.fchmod(held.fd, 0o644)
    os.pwrite(held.fd, head.ljust(_LINE - 1) + b"\n", 0)
    return number, held


def _living(folder: Path) -> list[int]:
    """The numbers of the networks that have members; the files of others are removed."""
    numbers = sorted(int(name) for name in os.listdir(folder) if name.isdigit())
    return [number for number in numbers if not _removed(folder / str(number))]


def _removed(file: Path) -> bool:
    if alone := try_lock(file):
        with alone:
            file.unlink()
    return alone is not None


def _drop_if_new(file: Path, held: Lock) -> None:
    """Its last member has removed it a moment ago, so looking at it has made an empty one."""
    with held:
        if os.fstat(held.fd).st_size == 0:
            file.unlink(missing_ok=True)


def _free(taken: Sequence[int]) -> int:
    for number in range(1, _MOST + 1):
        if number not in taken:
            return number
    raise EngineError(f"there are {_MOST} networks that sandboxes share, and no more can be; end some sandboxes first")
