"""Package managers in the steps of an image: what they are told, and which folders are kept between
builds, outside the layers."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from openmodal._hidden import Hidden
from openmodal._spec import Run

# The folder is our own, because official images have hooks that empty apt's usual one. The lists of
# other distributions stay; apt need not become another user to download into our folder.
_APT_CACHE = "/var/cache/openmodal/apt"
_APT = (
    f"-o Dir::Cache={_APT_CACHE} -o APT::Keep-Downloaded-Packages=true -o APT::Get::List-Cleanup=false "
    "-o APT::Sandbox::User=root -o Acquire::Retries=3 -o Dpkg::Use-Pty=0"
)

_PIP_CACHE = "/root/.cache/pip"
# Debian marks its Python as its own; an image's Python is the user's.
_PIP_ENV = (
    ("PIP_BREAK_SYSTEM_PACKAGES", "1"),
    ("PIP_CACHE_DIR", _PIP_CACHE),
    ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
    ("PIP_NO_INPUT", "1"),
    ("PIP_PROGRESS_BAR", "off"),
    ("PIP_ROOT_USER_ACTION", "ignore"),
)

_UV_CACHE = "/root/.cache/uv"
_UV_HOME = "/root/.cache/openmodal-uv"
# uv itself is in a cache folder, too: the image gets the packages only.
_UV = (
    f'PATH="$PATH:{_UV_HOME}/bin"; '
    f"command -v uv >/dev/null || python3 -m pip install --quiet --target {_UV_HOME} --upgrade uv && "
    "exec uv pip install --system --break-system-packages"
)
_UV_ENV = (*_PIP_ENV, ("UV_CACHE_DIR", _UV_CACHE), ("UV_LINK_MODE", "copy"), ("UV_NO_PROGRESS", "1"))


def apt(packages: Iterable[str]) -> Run:
    """Debian packages."""
    script = f"apt-get {_APT} update && apt-get {_APT} install -y --no-install-recommends {shlex.join(packages)}"
    caches = (_APT_CACHE, "/var/lib/apt/lists")
    return Run(("/bin/sh", "-c", script), env=(("DEBIAN_FRONTEND", "noninteractive"),), caches=caches)


def pip(arguments: Iterable[str], secrets: Hidden) -> Run:
    """Python packages, as arguments of `pip install`."""
    argv = ("python3", "-m", "pip", "install", *arguments)
    return Run(argv, env=_PIP_ENV, caches=(_PIP_CACHE,), secrets=secrets)


def uv(arguments: Iterable[str], secrets: Hidden) -> Run:
    """Python packages, as arguments of `uv pip install`."""
    argv = ("/bin/sh", "-c", f"{_UV} {shlex.join(arguments)}")
    return Run(argv, env=_UV_ENV, caches=(_PIP_CACHE, _UV_CACHE, _UV_HOME), secrets=secrets)
