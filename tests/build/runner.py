"""A runner of build steps for tests: mount, chroot, and nothing of what an engine adds. Needs root."""

from __future__ import annotations

import os
import shlex
import subprocess

from openmodal.build import RunRequest
from openmodal.build.base import TRUST_VARIABLES

# The real engine lends this machine's certificate authorities as a layer on top; here a bind does.
_BUNDLE = "/tmp/.ca.crt"


def chroot_runner(request: RunRequest) -> int:
    """Run the command in its own mount and process namespace, with the machine's network."""
    merged = request.work + ".merged"
    os.mkdir(merged)
    bundle = os.environ.get("SSL_CERT_FILE")
    env = (
        dict(request.env)
        | dict(request.secrets.variables)
        | (dict.fromkeys(TRUST_VARIABLES, _BUNDLE) if bundle else {})
    )
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-ec"]
    process = subprocess.Popen(
        [*argv, _script(request, merged, bundle, env)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with process:
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), 65536):
            request.output(data)
    os.rmdir(merged)
    return process.returncode


def _script(request: RunRequest, merged: str, bundle: str | None, env: dict[str, str]) -> str:
    options = f"lowerdir={':'.join(request.layers)},upperdir={request.upper},workdir={request.work}"
    q = shlex.quote
    lines = [f"mount -t overlay overlay -o {q(options)} {q(merged)}", f"cd {q(merged)}"]
    lines += ["mkdir -p proc dev tmp etc", "mount -t proc proc proc", "mount --bind /dev dev", "mount -t tmpfs tmp tmp"]
    lines += ["touch etc/resolv.conf", "mount --bind /etc/resolv.conf etc/resolv.conf"]
    if bundle:
        lines += ["touch tmp/.ca.crt", f"mount --bind {q(bundle)} tmp/.ca.crt"]
    for source, target in request.binds:
        lines += [f"mkdir -p .{q(target)}", f"mount --bind {q(source)} .{q(target)}"]
    variables = " ".join(f"{name}={q(value)}" for name, value in env.items())
    user = f"--userspec={q(request.user)}" if request.user else ""
    enter = f'mkdir -p {q(request.workdir)}; cd {q(request.workdir)}; exec "$@"' if request.workdir != "/" else ""
    command = shlex.join(("/bin/sh", "-c", enter, "sh", *request.argv) if enter else request.argv)
    lines.append(f"exec env -i {variables} chroot {user} . {command}")
    return "\n".join(lines)
