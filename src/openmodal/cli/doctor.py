"""`openmodal doctor`: what this machine can do, what is missing, and the command that adds it."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click

from openmodal import __version__
from openmodal.cli import _output
from openmodal.cli._errors import sentence
from openmodal.cli._session import Session, engine_options, json_option, pass_session

if TYPE_CHECKING:
    from openmodal import Sandbox
    from openmodal._spec import Info
    from openmodal.engines.check import Check


_ALL_IDS = 2**32 - 1  # a sandbox without a user namespace of its own


@click.command()
@click.option(
    "--network", is_flag=True, help="Also try to reach registries, and whether a cluster keeps its policies (two pods)."
)
@json_option
@engine_options
@pass_session
def doctor(session: Session, network: bool, as_json: bool) -> int:
    """Tell what this machine can do, what is missing, and the command that adds it.

    Exit code 1 if sandboxes cannot run on this machine (the embedded engine; Docker is reported, too).
    """
    from openmodal.engines.docker.doctor import examine as examine_docker
    from openmodal.engines.embedded.doctor import Machine, examine

    checks = [*examine(Machine.here(), network=network), *examine_docker()]
    if all(check.ok for check in checks if check.required):
        checks += _sandbox()
    works = all(check.ok for check in checks if check.required)
    checks += _cluster(session, network=network)
    if as_json:
        _output.emit({"version": __version__, "works": works, "checks": [_described(check) for check in checks]})
    else:
        for check in checks:
            _show(check)
        click.echo("Sandboxes can run on this machine." if works else "Sandboxes cannot run on this machine yet.")
    return 0 if works else 1


def _cluster(session: Session, *, network: bool) -> list[Check]:
    """The cluster, if sandboxes are to run on one."""
    from openmodal import _config
    from openmodal.engines.check import Check

    if (session.engine_name or _config.engine()) != "kubernetes":
        return []
    from openmodal.engines.kubernetes.doctor import examine

    return [Check(found.name, found.ok, found.text, found.remedy) for found in examine(network=network)]


def _sandbox() -> list[Check]:
    """The proof: a sandbox without files, but with everything else, and what the kernel says that holds it."""
    from openmodal import App, Image, Sandbox
    from openmodal.engines.check import Check
    from openmodal.errors import Error

    begin = time.monotonic()
    try:
        with Sandbox.create(app=App("doctor"), image=Image.from_scratch(), engine="embedded", timeout=30) as sandbox:
            sandbox.filesystem.exists("/")
            info = sandbox.info()
            elapsed = time.monotonic() - begin
            names = [_names(sandbox)] if info.network == "outbound" else []
    except Error as error:
        return [Check("sandbox", False, sentence(error), required=True)]
    text = f"created and asked in {elapsed * 1000:.0f} ms"
    return [Check("sandbox", True, text, required=True), _isolation(info), *names]


def _names(sandbox: Sandbox) -> Check:
    """Whether names resolve in it: asked by the native program itself, for there is nothing else in it."""
    from openmodal import _binary, _config
    from openmodal.engines.check import Check

    program = os.path.realpath(_binary.find(_config.state()))  # some installers make links, which no copy follows
    sandbox.filesystem.copy_from_local(program, "/openmodal-agent")
    if sandbox.exec("/openmodal-agent", "ask", "example.com").wait() == 0:
        return Check("names", True, "a sandbox's name server answers")
    remedy = "name a server in /etc/resolv.conf that answers from elsewhere than this machine's loopback; for a firewall, let it be asked"
    if _binary.run([program, "ask", "example.com"]).returncode:
        return Check("names", False, "no name server answers, neither a sandbox nor this machine", remedy)
    if os.geteuid() != 0:
        return Check("names", False, "no name server answers a sandbox, although one answers this machine", remedy)
    text = "what sandboxes send is dropped: no name server answers one, although one answers this machine"
    remedy = (
        "let this machine's firewall forward what comes from openmodal0: see `nft list ruleset` and `iptables-save`"
    )
    return Check("names", False, text, remedy, required=True)


def _isolation(info: Info) -> Check:
    """The controls in force."""
    from openmodal.engines.check import Check

    held = [
        _ids(info),
        f"{len(info.capabilities)} capabilities",
        *(["no new privileges"] if info.no_new_privileges else []),
        *(["system calls filtered"] if info.seccomp else []),
        f"limits: {info.memory or 'no'} MiB, {info.cpu or 'no'} CPUs, {info.pids or 'no'} processes",
    ]
    text = f"{info.runtime}: {'; '.join(held)}"
    lacks = f" (lacks {', '.join(info.degraded)}, as OPENMODAL_ALLOW_DEGRADED allows)" if info.degraded else ""
    return Check("isolation", not info.degraded, text + lacks, "see the lines above that are not ok")


def _ids(info: Info) -> str:
    if info.ids == 1:
        return "one id, the user's own"
    if info.ids == _ALL_IDS:
        return "the machine's ids: root is root outside"
    return f"{info.ids} ids of its own, root is {info.root} outside"


def _described(check: Check) -> dict[str, object]:
    return {
        "name": check.name,
        "ok": check.ok,
        "required": check.required,
        "text": check.text,
        "remedy": check.remedy or None,
    }


def _show(check: Check) -> None:
    mark = "ok" if check.ok else "MISSING" if check.required else "note"
    if sys.stdout.isatty():
        mark = click.style(mark, fg="green" if check.ok else "red" if check.required else "yellow")
    click.echo(f"{mark}\t{check.name}: {_output.printable(check.text)}")
    if check.remedy and not check.ok:
        click.echo(f"\t  -> {check.remedy}")
