"""The configuration file, changed by a command: what the user wrote, comments too, stays as it is."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openmodal.errors import InvalidError, UnsupportedError, extra


def merged(path: Path, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The file's text with these values, tables within. `defaults` are for what the user does not
    say, and what is in both, too.

    Raises:
        InvalidError: the file is no TOML, or has something else where a table must be.
    """
    try:
        import tomlkit
        from tomlkit.exceptions import TOMLKitError
    except ModuleNotFoundError as missing:
        raise UnsupportedError(
            f"to write the configuration, the package {missing.name} is needed; {extra('gke')}"
        ) from missing
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8") if path.exists() else "")
    except (TOMLKitError, ValueError) as error:
        raise InvalidError(f"the configuration {path} cannot be read: {error}; mend it first") from error
    _merge(path, document, values, keep=False)
    _merge(path, document, defaults, keep=True)
    return tomlkit.dumps(document)


def _merge(path: Path, place: Any, values: Mapping[str, Any], *, keep: bool) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping):
            if not isinstance(place.setdefault(name, {}), Mapping):
                raise InvalidError(f"{name} in {path} must be a table, [{name}]; mend it first")
            _merge(path, place[name], value, keep=keep)
        elif name not in place or (not keep and place[name] != value):
            place[name] = value


def write(path: Path, text: str) -> None:
    """Replace the file, in one moment: a reader sees the old one or the new one. A link to it stays a link."""
    target = path.resolve()
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
