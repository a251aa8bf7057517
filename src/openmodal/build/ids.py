"""Programs that run as root over the ids of the user who builds (_idmap.py).

A plain user is root of a user namespace: root is the user's own id, and a range of /etc/subuid and
/etc/subgid follows. The user's sandboxes have the same ids. So what such a program writes belongs,
on disk, to the ids that a sandbox sees as root and as its other users.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from openmodal import _idmap
from openmodal.errors import EngineError

REMEDY = (
    "as root: apt-get install uidmap && usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name} "
    "(another range if others have this one)"
)

# The first dies with its parent; the second is process 1 of its own namespace, and dies with the
# first.
_TIED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# A line says that the user namespace is there, an answer that its maps are written: the program
# that is executed then is root with all rights in it. PDEATHSIG is set only after that, because the
# kernel clears it when a process gains rights.
_MAPPED = ("unshare", "--user", "sh", "-c", 'echo; read -r mapped && exec "$@" < /dev/null', "sh")


def start(argv: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a program as root of the ids, with all its output in one pipe.

    It and all its descendants and mounts end with this process, even if that is killed.

    Raises:
        EngineError: this user has his own id only, or may make no user namespace.
    """
    if os.geteuid() == 0:
        return _start((*_TIED, *argv), subprocess.DEVNULL, env)
    found = _idmap.maps()
    if found is None:
        raise EngineError(
            f"files of more than one owner need more ids than your own; {REMEDY.format(name=_idmap.user_name(os.getuid()))}"
        )
    process = _start((*_MAPPED, *_TIED, *argv), subprocess.PIPE, env)
    try:
        _map(process, found)
    except BaseException:
        with process:
            process.kill()
        raise
    return process


def _start(argv: Sequence[str], stdin: int, env: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    """Nothing of the caller's folder and umask gets into what the program makes."""
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdin=stdin, stdout=pipe, stderr=subprocess.STDOUT, env=env, cwd="/", umask=0o022)


def _map(process: subprocess.Popen[bytes], found: _idmap.Maps) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    if (said := os.read(process.stdout.fileno(), 1)) != b"\n":
        text = (said + process.stdout.read()).decode("utf-8", "replace").strip()
        raise EngineError(f"this user may make no user namespace: {text}; `openmodal doctor` tells what to change")
    for helper, lines in zip(_idmap.HELPERS, found, strict=True):
        words = " ".join(lines).split()
        done = subprocess.run([helper, str(process.pid), *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EngineError(
                f"{helper} refuses the ids of this user: {done.stderr.strip()}; correct /etc/subuid and /etc/subgid"
            )
    process.stdin.write(b"\n")
    process.stdin.close()
