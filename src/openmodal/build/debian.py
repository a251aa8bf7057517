"""Debian from its packages, by mmdebstrap: a base image where no registry can be reached.

No mirror is named here: mmdebstrap takes Debian's own, and checks signatures with the keys in
/usr/share/keyrings.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from openmodal._binary import PATH
from openmodal._spec import Layered
from openmodal._store import make_folder
from openmodal._trash import remove as remove_tree
from openmodal.build import ids
from openmodal.build.names import FORMAT, architecture, digest
from openmodal.build.output import Tail
from openmodal.build.reference import HUB, parse
from openmodal.errors import EngineError, ImageBuildError, InvalidError, UnsupportedError, disk_full

if TYPE_CHECKING:
    from openmodal.build.steps import Builder

SUITES = {"3.11": "bookworm", "3.13": "trixie"}
"""Which Debian has which Python."""

_NUMBERS = {"bookworm": "12", "trixie": "13"}
_NEWEST = "trixie"

APT_CACHE = "/var/cache/openmodal/apt"
"""apt's cache in build steps: a folder of our own, because official images have hooks that empty the usual one."""
APT_LISTS = "/var/lib/apt/lists"

ENV = (
    ("PATH", PATH),
    ("LANG", "C.UTF-8"),
    # Debian keeps pip and uv from touching its Python; in a sandbox there is nothing to protect,
    # and official images allow it.
    ("PIP_BREAK_SYSTEM_PACKAGES", "1"),
    ("UV_BREAK_SYSTEM_PACKAGES", "1"),
    ("PIP_ROOT_USER_ACTION", "ignore"),
)

_LOOKING = ("less", "procps")  # to see what goes on in there: ps, top, less
_PACKAGES = ("ca-certificates", "python-is-python3", "python3", "python3-pip", "python3-venv", *_LOOKING)

# As Debian's own slim images: nobody reads manuals in a sandbox. The licences stay.
_WITHOUT = ("doc", "groff", "info", "lintian", "locale", "man")
_DPKG = (
    "force-unsafe-io",  # a layer is synced as a whole, so dpkg need not do it for each file
    *(f"path-exclude=/usr/share/{name}/*" for name in _WITHOUT),
    "path-include=/usr/share/doc/*/copyright",
)

_APT_SETTINGS = """\
// Written by OpenModal. As in Debian's official images: small layers.
APT::Install-Recommends "false";
APT::Keep-Downloaded-Packages "false";
Acquire::Languages "none";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""

# What packages' scripts see of the caller: how the internet is reached, and nothing that could
# change the image.
_KEPT = re.compile(r"PATH|HOME|TMPDIR|APT_CONFIG|SSL_CERT_(FILE|DIR)|\w+_proxy", re.IGNORECASE)
# No device nodes: a sandbox has its own /dev. No /sys: it shows the machine's network, so a plain
# user may not mount it. The others keep downloaded packages until our hook has taken them.
_SKIPPED = "output/dev,chroot/mount/sys,essential/unlink,download/empty"

# Packages wait in our cache instead of the mirror's; links where that is possible, because they
# cost nothing.
_TAKE_DEBS = (
    'mkdir -p "$1/var/cache/apt/archives"; '
    'for deb in "$OPENMODAL_APT"/archives/*.deb; do [ ! -f "$deb" ] || cp -l "$deb" "$1/var/cache/apt/archives/" 2>/dev/null '
    '|| cp "$deb" "$1/var/cache/apt/archives/"; done'
)
# mmdebstrap would filter the first packages in Python if it were told what to leave out; removing
# it afterwards takes a third of the time. The other packages are filtered by dpkg itself.
_SLIM = (
    'printf "%s\\n" "$OPENMODAL_DPKG" > "$1/etc/dpkg/dpkg.cfg.d/99openmodal"; '
    'find "$1/usr/share/doc" ! -type d ! -name copyright -delete; '
    'for name in groff info lintian locale man; do [ ! -d "$1/usr/share/$name" ] '
    '|| find "$1/usr/share/$name" -mindepth 1 -delete; done; '
    # update-alternatives puts links there, and where it cannot, packages (Java's) are not
    # installed.
    'for section in 1 2 3 4 5 6 7 8; do mkdir -p "$1/usr/share/man/man$section"; done'
)
_KEEP_DEBS = (
    'mkdir -p "$OPENMODAL_APT/archives"; '
    'for deb in "$1"/var/cache/apt/archives/*.deb; do cp -ln "$deb" "$OPENMODAL_APT/archives/" 2>/dev/null || true; done; '
    'find "$1/var/lib/apt/lists" -maxdepth 1 -type f ! -name lock -exec cp -p {} "$OPENMODAL_LISTS/" \\;'
)


def version_of(reference: str) -> str:
    """The Python of the Debian that can stand for an image of Docker Hub, "" if none can."""
    try:
        wanted = parse(reference)
    except InvalidError:
        return ""
    for python, suite in SUITES.items():
        called = (suite, _NUMBERS[suite], *(("stable", "latest") if suite == _NEWEST else ()))
        tags = {
            "library/python": (python, f"{python}-{suite}", f"{python}-slim", f"{python}-slim-{suite}"),
            "library/debian": (*called, *(f"{name}-slim" for name in called)),
        }
        if wanted.host == HUB and wanted.target in tags.get(wanted.repository, ()):
            return python
    return ""


def make(builder: Builder, version: str, *, again: bool = False) -> Layered:
    """The base image with that Python. `again`: the step was announced already."""
    suite = SUITES.get(version)
    if suite is None:
        raise UnsupportedError(unsupported(version))
    key = digest("debian", FORMAT, architecture(), suite, _PACKAGES, _DPKG, _APT_SETTINGS, _sources(builder, suite))

    def write(upper: Path) -> None:
        _bootstrap(builder, suite, upper)

    text = f"FROM Debian packages ({suite}, Python {version})"
    root = builder.layer(Layered(""), key, text, write, weight=0 if again else 1)
    return Layered(key=key, layers=root.layers, env=ENV, cmd=("python3",))


def unsupported(version: str) -> str:
    """Why not, and what instead."""
    have = " and ".join(f"{python} ({suite})" for python, suite in SUITES.items())
    return (
        f"Debian's packages have Python {have}, not {version}; use python_version='3.13', or Image.from_registry('python:{version}-slim') "
        "and OPENMODAL_BASE=registry where a registry can be reached"
    )


def attempt() -> None:
    """Do what comes first when packages are made into an image.

    Raises:
        EngineError: that cannot be done here.
    """
    with ids.start((_program(), "--version")) as process:
        assert process.stdout is not None
        said = process.stdout.read().decode("utf-8", "replace").strip()
    if process.returncode != 0:
        raise EngineError(f"mmdebstrap cannot be started in namespaces of its own: {said}")


def _program() -> str:
    if program := shutil.which("mmdebstrap"):
        return program
    raise EngineError(
        "Debian images are made by mmdebstrap, which is missing here; as root: apt-get install mmdebstrap"
    )


def _sources(builder: Builder, suite: str) -> tuple[str, ...]:
    return dict(builder.options.suites).get(suite, ())


def _bootstrap(builder: Builder, suite: str, root: Path) -> None:
    program = _program()
    from openmodal.build.steps import cache_name

    with (
        builder.store.cache(cache_name(APT_CACHE), exclusive=True) as cache,
        builder.store.cache(cache_name(APT_LISTS), exclusive=True) as lists,
    ):
        own = {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)}
        env = {**own, "LC_ALL": "C", "OPENMODAL_APT": str(cache), "OPENMODAL_LISTS": str(lists)}
        env["OPENMODAL_DPKG"] = "\n".join(_DPKG)
        tail = Tail(builder.prints)
        code = _stream(_command(program, suite, root, _sources(builder, suite)), env, tail)
    if code != 0:
        raise failure(builder.store.path, code, suite, tail)
    _finish(root)


def _command(program: str, suite: str, root: Path, sources: tuple[str, ...]) -> list[str]:
    return [
        program,
        "--variant=minbase",
        "--format=directory",
        "--mode=root",  # of a plain user's own ids: so he owns what is root's in a sandbox, and it can reach his folders
        f"--include={','.join(_PACKAGES)}",
        "--dpkgopt=force-unsafe-io",
        '--aptopt=Acquire::Languages "none"',
        '--aptopt=Acquire::Retries "3"',
        f"--skip={_SKIPPED}",
        f"--setup-hook={_TAKE_DEBS}",
        f"--essential-hook={_SLIM}",
        f"--customize-hook={_KEEP_DEBS}",
        suite,
        os.fspath(root),
        *sources,
    ]


def _stream(argv: list[str], env: dict[str, str], tail: Tail) -> int:
    with ids.start(argv, env) as process:
        try:
            assert process.stdout is not None
            while data := os.read(process.stdout.fileno(), 65536):
                tail.write(data)
        except BaseException:
            process.kill()
            raise
    tail.close()
    return process.returncode


def failure(store: Path, code: int, suite: str, tail: Tail) -> Exception:
    """Why mmdebstrap has failed: the first cause of those that it printed."""
    if "No space left on device" in tail.text:
        return disk_full(store)
    errors = [line for line in tail.text.splitlines() if line.startswith("E:")]
    reason = errors[0].removeprefix("E:").strip() if errors else tail.last
    text = f"Debian {suite} could not be made from its packages (mmdebstrap's exit code {code}): {reason}"
    if "Failed to fetch" in reason:
        text += "; `openmodal doctor --network` tells what this machine reaches"
    return ImageBuildError(text, step=f"mmdebstrap {suite}", output=tail.text)


def _finish(root: Path) -> None:
    """Settings for later steps, and nothing of this machine."""
    (root / "etc/apt/apt.conf.d/99openmodal").write_text(_APT_SETTINGS, encoding="utf-8")
    # Empty, not missing: something to mount the sandbox's own over.
    for name in ("etc/resolv.conf", "etc/hostname"):
        (root / name).unlink(missing_ok=True)
        (root / name).touch()
    for name in (
        "var/log/alternatives.log",
        "var/log/bootstrap.log",
        "var/log/dpkg.log",
        "var/cache/ldconfig/aux-cache",
    ):
        with suppress(FileNotFoundError):
            (root / name).unlink()
    # A sandbox has its own /dev.
    remove_tree(root / "dev")
    make_folder(root / "dev")
    root.chmod(0o755)
