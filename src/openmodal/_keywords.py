"""Keywords of other tools, and what says the same here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from openmodal.errors import InvalidError

_LIVE = "spawn(), which waits for nothing: its process gives output while it runs"
_ELSEWHERE = {
    **dict.fromkeys(("cwd", "working_dir", "work_dir", "directory"), "workdir="),
    **dict.fromkeys(("environment", "environ", "envs", "env_vars"), "env="),
    **dict.fromkeys(("labels", "label", "metadata"), "tags="),
    **dict.fromkeys(("template", "docker_image", "dockerfile"), "image="),
    **dict.fromkeys(("gpus", "gpu_count"), "gpu="),
    **dict.fromkeys(("cpus", "cpu_count", "nano_cpus"), "cpu="),
    **dict.fromkeys(("mem", "mem_limit", "memory_mb"), "memory=, in MiB"),
    **dict.fromkeys(("disk_size", "storage"), "disk=, in MiB"),
    **dict.fromkeys(("mounts", "mount", "binds", "volume", "cloud_bucket_mounts"), "volumes="),
    **dict.fromkeys(("publish", "port", "exposed_ports"), "ports="),
    **dict.fromkeys(("network_mode", "internet", "allow_internet_access"), "block_network="),
    **dict.fromkeys(("networks", "net"), "network="),
    **dict.fromkeys(("network_aliases", "aliases", "hostname"), "network_alias="),
    **dict.fromkeys(("cidr_allowlist", "allow_out"), "outbound_cidr_allowlist="),
    **dict.fromkeys(("ttl", "timeout_ms", "max_lifetime"), "timeout=, in seconds"),
    **dict.fromkeys(("lifetime", "auto_stop_interval"), "timeout= or idle_timeout=, in seconds"),
    **dict.fromkeys(("input", "data"), "stdin="),
    **dict.fromkeys(("command", "cmd", "args", "argv", "entrypoint"), "the call's first arguments, word by word"),
    **dict.fromkeys(("shell", "executable"), 'a shell as the command: "sh", "-c", "the line"'),
    "capture_output": "not needed, the finished process has .stdout.read() and .stderr.read()",
    **dict.fromkeys(("universal_newlines", "encoding", "errors"), "text="),
    **dict.fromkeys(("tty", "pty_info"), "pty="),
    **dict.fromkeys(("region", "cloud", "zone", "i6pn"), "engine=: sandboxes are on the machines that engine has"),
    **dict.fromkeys(("detach", "background", "wait", "stream", "demux", "on_stdout", "on_stderr"), _LIVE),
    **dict.fromkeys(("remove", "auto_remove", "rm"), "not needed, nothing of a sandbox is left after its end"),
    **dict.fromkeys(("restart_policy", "restart"), "create() once more: a sandbox that has ended stays so"),
    **dict.fromkeys(("privileged", "cap_add", "security_opt", "devices"), "refused: a sandbox gets no more rights"),
    **dict.fromkeys(("request_timeout", "timeout_seconds"), "timeout=, in seconds"),
    **dict.fromkeys(("snapshot", "snapshot_id", "from_snapshot"), "image=, which sandbox.snapshot_filesystem() gives"),
    "user": "exec(user=), or USER in the image",
    "stdin": "spawn(), whose process has .stdin.write()",
}
"""Keywords of other tools → what says that here."""


def unknown(function: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse keywords that do not exist, with the one that does what is meant."""
    import difflib

    known = tuple(known)
    for key in given:
        if key not in known:
            ours = _ELSEWHERE.get(key, "")
            word = ours.partition("=")[0] if re.match(r"\w+=", ours) else ""
            near = difflib.get_close_matches(key, known, 1, 0.75)
            if ours and (not word or word in known):
                hint = f"here it is {ours}"
            elif near:
                hint = f"did you mean {near[0]}?"
            else:
                hint = f"help(openmodal.{function if '.' in function else f'Sandbox.{function}'}) tells which there are"
            raise InvalidError(f"{function}() has no argument {key!r}; {hint}")
