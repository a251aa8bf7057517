"""Credentials for registries, from Docker's config.json (plain entries and credential helpers) or
from a secret."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openmodal._hidden import Hidden
from openmodal.build.reference import HUB
from openmodal.errors import InvalidError, RegistryError, reason

_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", HUB)
_HELPER = re.compile(r"[A-Za-z0-9_.-]+")
# The user name in a helper's answer if the secret is an identity token.
_TOKEN_USER = "<token>"


class Login:
    """A user's name and password, or an identity token. Shown nowhere."""

    def __init__(self, user: str, password: str, token: str = "") -> None:
        self.user = user
        self.password = password
        self.token = token

    def __repr__(self) -> str:
        return "<Login>"


USER, PASSWORD = "REGISTRY_USERNAME", "REGISTRY_PASSWORD"
_KEY = "SERVICE_ACCOUNT_JSON"
_KEY_USER = "_json_key"
"""What Google's registries call the user whose password is a service account's key."""


def checked(variables: Mapping[str, str]) -> Hidden:
    """The variables of a secret with credentials for a registry.

    Raises:
        InvalidError: there are none in it that a registry takes; the text tells which it does.
    """
    taken = {name: value for name, value in variables.items() if name in (USER, PASSWORD, _KEY)}
    if taken.keys() in ({USER, PASSWORD}, {_KEY}):
        return Hidden(taken)
    if any(name.startswith("AWS_") for name in variables):
        raise InvalidError(
            f"a registry takes no AWS_… variables; put {USER}=AWS and, as {PASSWORD}, what "
            "`aws ecr get-login-password` prints into the secret"
        )
    raise InvalidError(f"the secret of a registry has either {USER} and {PASSWORD}, or {_KEY} (Google's); add them")


def of(login: Hidden) -> Login | None:
    """The credentials of `checked`; None if there are none."""
    values = login.variables
    if _KEY in values:
        return Login(_KEY_USER, values[_KEY])
    return Login(values[USER], values[PASSWORD]) if login else None


def find(host: str, folder: str = "") -> Login | None:
    """The credentials for a registry, None if there are none.

    Raises:
        RegistryError: the configuration cannot be read, or its helper failed.
    """
    file = Path(folder or os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RegistryError(
            f"Docker's configuration {file} cannot be read: {reason(error)}; mend or remove it"
        ) from error
    keys = _HUB_KEYS if host == HUB else (host, f"https://{host}", f"https://{host}/")
    for key in keys:
        if helper := config.get("credHelpers", {}).get(key):
            return _ask(helper, key)
    for key in keys:
        if (entry := config.get("auths", {}).get(key)) and (login := _plain(entry, file)):
            return login
    return _ask(config["credsStore"], keys[0]) if config.get("credsStore") else None


def _plain(entry: dict[str, Any], file: Path) -> Login | None:
    if entry.get("identitytoken"):
        return Login("", "", str(entry["identitytoken"]))
    if entry.get("username"):
        return Login(str(entry["username"]), str(entry.get("password", "")))
    if not entry.get("auth"):
        return None
    try:
        user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise RegistryError(f"the credentials in {file} are not base64; log in again") from error
    return Login(user, password.rstrip("\0"))


def _ask(helper: str, key: str) -> Login | None:
    if not _HELPER.fullmatch(helper):
        raise RegistryError(f"the credential helper {helper!r} in Docker's configuration has no proper name")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, "get"], input=key.encode(), capture_output=True, timeout=60, check=False)
    except FileNotFoundError as error:
        raise RegistryError(f"{program}, named in Docker's configuration, is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise RegistryError(f"{program} did not answer within a minute") from error
    if done.returncode != 0:
        if b"not found" in done.stdout + done.stderr:
            return None
        raise RegistryError(f"{program} failed: {done.stdout.decode(errors='replace').strip()[:200]}")
    answer = json.loads(done.stdout)
    user, secret = str(answer.get("Username", "")), str(answer.get("Secret", ""))
    return Login("", "", secret) if user == _TOKEN_USER else Login(user, secret)
