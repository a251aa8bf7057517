"""Every environment variable, default and file location, read in one place. A change holds from the
next call on.

| variable | what for |
| --- | --- |
| OPENMODAL_ENGINE | the engine, where neither `engine=` nor a flag says one |
| OPENMODAL_HOME | the folder of all state, instead of the places below |
| OPENMODAL_RUN | set by `openmodal run` for the program: which run its sandboxes belong to and end with |
| OPENMODAL_AGENT | the native program to use, instead of the package's |
| OPENMODAL_ALLOW_DEGRADED | what sandboxes may lack, where `allow_degraded=` does not say: "limits", "network", "seccomp", with commas |
| OPENMODAL_JOURNAL | "off": calls to sandboxes are not noted (docs/sandboxes.md) |
| OPENMODAL_DOCKER_LIFETIME | seconds that a container of `openmodal-docker` lives at most; a day |
| OPENMODAL_REGISTRY | where images for a cluster are pushed, as `host/path` |
| OPENMODAL_KUBERNETES_… | what the table `[kubernetes]` of the configuration says, by name: OPENMODAL_KUBERNETES_NAMESPACE … |
| OPENMODAL_PROGRESS | how builds are shown on stderr: "auto", "live", "plain", "quiet" |
| OPENMODAL_BASE | where `debian_slim` comes from: "registry", "packages", or "auto" |
| OPENMODAL_MIRRORS | URLs of private mirrors and proxies that steps of images may reach |
| PIP_…, UV_…, NPM_CONFIG_…, …_PROXY | the same: URLs in them |
| SSL_CERT_FILE | certificate authorities that sandboxes shall trust, too |
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openmodal._files import Stamp, stamp, stat_of
from openmodal.errors import InvalidError, reason

_KEYS = {"allow_degraded", "base", "bases", "engine", "journal", "kubernetes", "mirrors", "registry"}
"""What the configuration file may have on its top level; a misspelt setting would be no setting."""

PROGRESS = ("auto", "live", "plain", "quiet")
"""Ways to show a build; "auto": live in a terminal."""

_PACKAGE_SOURCE = r"(?i)OPENMODAL_MIRRORS|(PIP|UV|NPM_CONFIG)_.+|.+_PROXY"


def state() -> Path:
    """Where layers, images and sandboxes are: on a disk, private to this user."""
    if home := _home():
        return _absolute(home)
    if os.geteuid() == 0:
        return _path("/var/lib/openmodal")
    return _path(os.environ.get("XDG_DATA_HOME") or _users(".local/share"), "openmodal")


def _home() -> str:
    """The folder that OPENMODAL_HOME names, or ""."""
    home = os.environ.get("OPENMODAL_HOME", "")
    if not home:
        return ""
    try:
        found = stat_of(home)
    except OSError as error:
        raise _bad_home(home, f"which cannot be used: {error.strerror}") from error
    if found and not stat.S_ISDIR(found.st_mode):
        raise _bad_home(home, "which is no folder")
    return home


def _bad_home(home: str, why: str) -> InvalidError:
    return InvalidError(f"OPENMODAL_HOME is {home[:80]!r}, {why}; set it to a folder, which is made if it is not there")


def machine() -> Path:
    """What all of this machine's sandboxes of this user share until the next boot: network, id ranges."""
    if os.geteuid() == 0:
        return _path("/run/openmodal")
    return _path(os.environ.get("XDG_RUNTIME_DIR") or state(), "openmodal-run")


def brief(state: Path) -> str:
    """What the paths of a state folder's sandboxes begin with, in memory; "": in that folder.

    /run is empty after a boot. A plain user's folder there goes when the user logs out. Sandboxes
    survive that, so theirs are not in memory.
    """
    if os.geteuid() != 0 or not (found := stat_of(state)):
        return ""
    # A folder may have several paths, and these numbers no other folder has.
    return f"{machine()}/sandboxes/{found.st_dev:x}-{found.st_ino:x}."


def config_file() -> Path:
    """The user's configuration."""
    if home := _home():
        return _path(_absolute(home), "config.toml")
    return _path(os.environ.get("XDG_CONFIG_HOME") or _users(".config"), "openmodal", "config.toml")


def _users(name: str) -> Path:
    """A folder of this user's own."""
    return _path(_home_of(os.environ.get("HOME")), name)


@functools.lru_cache(maxsize=4)
def _home_of(said: str | None) -> Path:
    """This user's home. `said` is HOME, which it depends on."""
    return Path.home()


def _absolute(folder: str) -> Path:
    return _path(folder) if os.path.isabs(folder) else Path(folder).absolute()


@functools.lru_cache(maxsize=32)  # making one costs more than a look at its file, and each creation needs ten
def _path(*parts: str | Path) -> Path:
    return Path(*parts)


def engine() -> str | None:
    """The engine that environment or configuration file choose."""
    return os.environ.get("OPENMODAL_ENGINE") or setting("engine")


def allow_degraded() -> tuple[str, ...]:
    """The controls that a sandbox may lack, unchecked."""
    value = os.environ.get("OPENMODAL_ALLOW_DEGRADED") or setting("allow_degraded") or ""
    return tuple(filter(None, value.replace(" ", "").split(",")))


def journal() -> bool:
    """Whether calls to sandboxes are noted."""
    value = os.environ.get("OPENMODAL_JOURNAL") or setting("journal") or "on"
    if value not in ("on", "off"):
        raise InvalidError(f"OPENMODAL_JOURNAL is {value!r}; use on or off")
    return value == "on"


def run() -> str:
    """The `openmodal run` that this process is part of, or ""."""
    return os.environ.get("OPENMODAL_RUN", "")


def docker_lifetime() -> float:
    """How many seconds a container of `openmodal-docker` lives at most."""
    value = os.environ.get("OPENMODAL_DOCKER_LIFETIME") or "86400"
    if not re.fullmatch(r"\d{1,8}", value):
        raise InvalidError(f"OPENMODAL_DOCKER_LIFETIME is {value!r}; set it to a number of seconds, such as 86400")
    return float(value)


def base() -> str:
    """Where `debian_slim` comes from."""
    value = os.environ.get("OPENMODAL_BASE") or setting("base") or "auto"
    if value not in ("registry", "packages", "auto"):
        raise InvalidError(f"OPENMODAL_BASE is {value!r}; use registry, packages or auto")
    return value


def progress() -> str:
    """How builds of images are shown on stderr."""
    value = os.environ.get("OPENMODAL_PROGRESS") or "auto"
    if value not in PROGRESS:
        raise InvalidError(f"OPENMODAL_PROGRESS is {value[:80]!r}; use {', '.join(PROGRESS[:-1])} or {PROGRESS[-1]}")
    return value


def authorities() -> Path | None:
    """The bundle of certificate authorities that this machine was told to trust, if it was."""
    value = os.environ.get("SSL_CERT_FILE")
    return _path(value) if value and os.path.isfile(value) else None


def registry() -> str:
    """Where images for a cluster are pushed, as "host/path", or ""."""
    return os.environ.get("OPENMODAL_REGISTRY") or setting("registry") or ""


def package_sources() -> list[str]:
    """What the environment and the configuration file say of mirrors and proxies: texts with URLs in them."""
    said = [value for name, value in os.environ.items() if re.fullmatch(_PACKAGE_SOURCE, name)]
    return [*said, setting("mirrors") or ""]


def bases() -> dict[str, str]:
    """Other names for images of registries: the table `[bases]`."""
    found = table("bases", ())
    for name, other in found.items():
        if not isinstance(other, str):
            raise InvalidError(f"bases.{name!r} in {config_file()} must be the name of an image, not {other!r}")
    return found


def setting(name: str) -> str | None:
    """A top-level string of the configuration file."""
    value = settings().get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidError(f"{name} in {config_file()} must be a string, not {value!r}")
    return value


def table(name: str, keys: Iterable[str]) -> dict[str, Any]:
    """A table of the configuration file, over it what OPENMODAL_<NAME>_<KEY> says. Values of the environment are strings."""
    found = settings().get(name, {})
    if not isinstance(found, dict):
        raise InvalidError(f"{name} in {config_file()} must be a table, [{name}]")
    said = {key: os.environ.get(f"OPENMODAL_{name}_{key}".upper()) for key in keys}
    return {**found, **{key: value for key, value in said.items() if value is not None}}


def settings() -> dict[str, Any]:
    """The configuration file; empty if there is none."""
    path = config_file()
    try:
        changed = stamp(path)
    except PermissionError:  # in a state folder of somebody else's, whose use is an error that says so
        return {}
    return _parsed(path, changed) if changed else {}


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, changed: Stamp) -> dict[str, Any]:
    """What the file says; the stamp tells whether it is still the one that was read."""
    try:
        return parse(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"the configuration {path} cannot be read: {reason(error)}") from error


def parse(path: Path, text: str) -> dict[str, Any]:
    """What a text says that is, or will be, in the configuration file.

    Raises:
        InvalidError: it is no TOML, or has a setting that there is not.
    """
    import tomllib

    try:
        found = tomllib.loads(text)
    except ValueError as error:
        raise InvalidError(f"the configuration {path} cannot be read: {error}") from error
    for name in found.keys() - _KEYS:
        raise InvalidError(f"the configuration {path} has {name!r}, which is no setting; {_instead(name)}")
    return found


def _instead(name: str) -> str:
    from difflib import get_close_matches

    alike = get_close_matches(name, _KEYS, n=1)
    return f"did you mean {alike[0]!r}?" if alike else f"there are {', '.join(sorted(_KEYS))}"
