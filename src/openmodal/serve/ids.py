"""Ids on the wire, and ours. Nothing is kept: each is made from the other.

The client tells old sandboxes from new ones by the length of the id: `sb-` and 22 letters or digits
are old. After the prefix it takes letters and digits only.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re

from openmodal.errors import NotFoundError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]+")
_OLD, _NEW = 22, 26
_OURS = "h"
_CHOSEN = re.compile(rf"sb-[a-z0-9]{{{_OLD}}}([a-z0-9]{{{_NEW - _OLD}}})?")


def letters(*parts: str | bytes, count: int = _NEW) -> str:
    """So many letters and digits that only these parts have."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return base64.b32encode(whole.digest()).decode().lower()[:count]


def name(text: str) -> str:
    """How our engines call what the client calls so: the same, unless they do not take it; then
    what they take of it, and a digest."""
    if _NAME.fullmatch(text):
        return text
    return f"{re.sub(_NO_NAME, '-', text).strip('-._')[:40]}-{letters('name', text, count=12)}".lstrip("-")


def new_sandbox(key: str, *, old: bool) -> str:
    """An id for a sandbox, the same for the same idempotency key, which is "" if the client gave
    none."""
    return f"sb-{letters('sandbox', key or os.urandom(16), count=_OLD if old else _NEW)}"


def sandbox_on_wire(id: str) -> str:
    """How a sandbox is called on the wire: those that a door made by their ids, others by the
    hexadecimal digits of theirs."""
    return id if _CHOSEN.fullmatch(id) else f"sb-{_OURS}{id.encode().hex()}"


def sandbox(wire: str) -> str:
    """The sandbox of an id on the wire.

    Raises:
        NotFoundError: this cannot be the id of a sandbox.
    """
    if _CHOSEN.fullmatch(wire):
        return wire
    return _hexadecimal(wire, f"sb-{_OURS}", "sandbox")


def task(sandbox_on_wire: str) -> str:
    """A sandbox is one task; the last letter tells the client that it is a new one."""
    old = len(sandbox_on_wire) == len("sb-") + _OLD
    return f"ta-{sandbox_on_wire[3:]}{'' if old else 'V'}"


def sandbox_of_task(task: str) -> str:
    """The sandbox of a task, on the wire."""
    if not task.startswith("ta-"):
        raise NotFoundError(f"there is no task {task!r}")
    return f"sb-{task[3:].removesuffix('V')}"


def app(name: str, run: str = "") -> str:
    """The id of an app, and of one run of it."""
    return f"ap-{_OURS}{f'{name}/{run}'.encode().hex()}"


def app_and_run(wire: str) -> tuple[str, str]:
    """The app of an id on the wire, and the run, "" for none."""
    name, _, run = _hexadecimal(wire, f"ap-{_OURS}", "app").partition("/")
    return name, run


def volume(name: str) -> str:
    """The id of a volume."""
    return f"vo-{_OURS}{name.encode().hex()}"


def volume_name(wire: str) -> str:
    """The volume of an id on the wire."""
    return _hexadecimal(wire, f"vo-{_OURS}", "volume")


def command(exec_id: str) -> bytes:
    """The agent's id of a command, which the client has chosen."""
    return hashlib.sha256(exec_id.encode()).digest()[:16]


def _hexadecimal(wire: str, prefix: str, what: str) -> str:
    try:
        if wire.startswith(prefix):
            return bytes.fromhex(wire.removeprefix(prefix)).decode()
    except ValueError:
        pass
    raise NotFoundError(f"there is no {what} {wire!r}")
