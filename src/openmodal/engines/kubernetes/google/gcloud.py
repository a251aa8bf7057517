"""The program gcloud: asking it, having it change things, and its errors in one sentence. Blocking."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping

import msgspec

from openmodal.engines.kubernetes.google import gcp
from openmodal.engines.kubernetes.google.gcp import Argv, Cluster, Step, Wish
from openmodal.errors import EngineError

_QUIET = {"CLOUDSDK_CORE_DISABLE_PROMPTS": "1", "CLOUDSDK_CORE_SHOULD_PROMPT_TO_ENABLE_API": "false"}
"""It asks nothing: a question to a program that is not looked at would wait for ever, or be answered by its default."""

_MISSING = {
    "gcloud": "install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install), then run `gcloud auth login`",
    "gke-gcloud-auth-plugin": "run `gcloud components install gke-gcloud-auth-plugin`, "
    "or install the package google-cloud-cli-gke-gcloud-auth-plugin",
}
_LOGIN = "gcloud is not logged in, or its login has expired; run `gcloud auth login`, then try again"
_LOGGED_OUT = ("gcloud auth login", "Reauthentication", "refreshing your current auth tokens", "invalid_grant")
_DENIED = re.compile(r"PERMISSION_DENIED|[Pp]ermission|forbidden|\b403\b")
_OFF = re.compile(r"SERVICE_DISABLED|has not been used in project|API .*is not enabled")
_LINE = re.compile(r"^ERROR: (?:\(gcloud\.\S+\) )?(.*)", re.MULTILINE)


class ApiOff(EngineError):
    """The project has not enabled what was asked for."""


def check() -> None:
    """Raise EngineError unless the programs are there that a cluster of GKE is spoken to with."""
    for program, remedy in _MISSING.items():
        if shutil.which(program) is None:
            raise EngineError(f"the program {program} is not on PATH; {remedy}")


class Account(msgspec.Struct, frozen=True):
    """Who is logged in, and what gcloud's configuration chooses; "" where it chooses nothing."""

    name: str
    project: str
    region: str


def account() -> Account:
    """Who is logged in.

    Raises:
        EngineError: nobody.
    """
    chosen = msgspec.json.decode(_ask(("config", "list", "--format=json"), "tell its configuration"))
    core, compute = chosen.get("core", {}), chosen.get("compute", {})
    if not core.get("account"):
        raise EngineError(_LOGIN)
    _ask(("auth", "print-access-token"), "log in")  # the only way to learn that a login has expired
    region = compute.get("region") or str(compute.get("zone", "")).rpartition("-")[0]
    return Account(str(core["account"]), str(core.get("project", "")), str(region))


def token() -> str:
    """An access token, of gcloud's login or, where there is no gcloud, of the machine's or the
    environment's account.

    Raises:
        EngineError: there is none.
    """
    if shutil.which("gcloud"):
        return _text(("auth", "print-access-token"), "log in")
    from openmodal.engines.kubernetes.google.googleauth import token

    return token()


def cluster(wish: Wish) -> Cluster:
    """The cluster that is there.

    Raises:
        EngineError: sandboxes must not run there.
    """
    what = "look at the cluster"
    found = gcp.found(wish, msgspec.json.decode(_ask(gcp.describe(wish), what)))
    if found.account != gcp.DEFAULT:
        return found
    number = _text(gcp.number(wish), what)
    return msgspec.structs.replace(found, account=f"{number}-compute@developer.gserviceaccount.com")


def is_done(step: Step) -> bool:
    """Whether there is nothing to do. Of an API that is not enabled there is nothing yet."""
    try:
        return bool(step.look) and set(step.wants) <= set(_text(step.look, step.what).splitlines())
    except ApiOff:
        return False


def do(step: Step, tell: Callable[[str], None]) -> None:
    """Do it, which may take many minutes; `tell` takes what gcloud says meanwhile.

    Raises:
        EngineError: it cannot be done; what was done before stays, and is not done again the next
            time.
    """
    said: list[str] = []
    with _started(step.do, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        for line in process.stdout:
            said.append(line.decode(errors="replace"))
            tell(said[-1])
    if process.returncode:
        raise _refusal("".join(said), step.what)


def _text(argv: Argv, what: str) -> str:
    return _ask(argv, what).decode().strip()


def _ask(argv: Argv, what: str) -> bytes:
    with _started(argv, stderr=subprocess.PIPE) as process:
        out, errors = process.communicate()
    if process.returncode:
        raise _refusal(errors.decode(errors="replace"), what)
    return out


def _started(argv: Argv, stderr: int) -> subprocess.Popen[bytes]:
    environment: Mapping[str, str] = os.environ | _QUIET
    return subprocess.Popen(
        ["gcloud", *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=environment
    )


def _refusal(said: str, what: str) -> EngineError:
    """The error for what gcloud says: who may not do what, and what to do about it."""
    cause = found[1].strip() if (found := _LINE.search(said)) else " ".join(said.split())[-300:]
    if any(word in said for word in _LOGGED_OUT):
        return EngineError(_LOGIN)
    if _OFF.search(said):
        return ApiOff(
            f"gcloud cannot {what}, because an API is not enabled, or not yet: {cause}; try again in some minutes"
        )
    if _DENIED.search(said):
        return EngineError(
            f"you may not {what} in this project ({cause.rstrip('.')}); ask its owner to do it, or for the roles that docs/gcp.md lists"
        )
    return EngineError(f"gcloud could not {what}: {cause or 'it does not say why'}")
