"""Where sandboxes are kept on other kernels, and a kernel that refuses users namespaces: `openmodal doctor` says what then happens."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import openmodal
from openmodal import _binary

pytestmark = pytest.mark.machine

USER_NAMESPACES = Path("/proc/sys/kernel/unprivileged_userns_clone")


def doctor(*become: str, **variables: str) -> dict[str, dict[str, Any]]:
    """What doctor says, by name."""
    command = [*become, sys.executable, "-m", "openmodal.cli", "doctor", "--json"]
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=600, check=False
    )
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.root
def test_memory_is_a_store_from_linux_6_3_on_and_doctor_says_so(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, it has no idmapped mounts."""
    monkeypatch.setenv("OPENMODAL_HOME", str(memory / "home"))
    release = tuple(map(int, platform.release().split(".")[:2]))
    told = doctor()
    assert (told["store"]["ok"], told["sandbox"]["ok"]) == (release >= (6, 3),) * 2, told
    assert list(memory.iterdir()) == []
    if release < (6, 3):
        with pytest.raises(openmodal.EngineError, match="set OPENMODAL_HOME to a folder on ext4, xfs or btrfs"):
            openmodal.Sandbox.create(image=openmodal.Image.from_scratch(), engine="embedded")


@contextmanager
def setting(file: Path, value: str) -> Iterator[None]:
    before = file.read_text()
    file.write_text(value)
    try:
        yield
    finally:
        file.write_text(before)


AS_USER = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
"""A plain user outside of its own user manager, as after `su`: no control group is delegated there."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables with a state folder of that user's."""
    monkeypatch.delenv("OPENMODAL_ALLOW_DEGRADED", raising=False)
    os.chown(tmp_path, 1000, 1000)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    return {"OPENMODAL_HOME": str(tmp_path / "home"), "OPENMODAL_BASE": "packages"}


@pytest.mark.root
@pytest.mark.skipif(not USER_NAMESPACES.exists(), reason="a setting of Debian's kernels")
def test_doctor_names_the_setting_that_keeps_users_from_namespaces(home: dict[str, str]) -> None:
    with setting(USER_NAMESPACES, "0"):
        told = doctor(*AS_USER, **home)
    assert [told[name]["ok"] for name in ("user namespaces", "base image", "sandbox")] == [False] * 3
    assert "sysctl -w kernel.unprivileged_userns_clone=1" in told["user namespaces"]["remedy"]
    told = doctor(*AS_USER, **home)
    assert [told[name]["ok"] for name in ("user namespaces", "base image", "store")] == [True] * 3


# As kernel.apparmor_restrict_unprivileged_userns of Ubuntu: namespaces of users have no rights.
PROFILE = """
profile openmodal_test {program} flags=(attach_disconnected, mediate_deleted) {{
  deny capability,
  file,
  /usr/bin/newuidmap Ux,
  /usr/bin/newgidmap Ux,
  network, unix, dbus, signal, ptrace, mount, umount, pivot_root,
}}
"""


@contextmanager
def confined(program: str) -> Iterator[None]:
    def parser(verb: str) -> None:
        profile = PROFILE.format(program=program)
        subprocess.run(["apparmor_parser", verb], input=profile, text=True, check=True)

    parser("--replace")
    try:
        yield
    finally:
        parser("--remove")


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("apparmor_parser"), reason="needs AppArmor")
def test_it_is_told_where_apparmor_keeps_rights_from_namespaces(home: dict[str, str]) -> None:
    """The error named doctor, which named nothing."""
    with confined(str(_binary.find(Path(home["OPENMODAL_HOME"])))):
        told = doctor(*AS_USER, **home)
    assert [told[name]["ok"] for name in ("user namespaces", "sandbox")] == [False] * 2
    assert "give the native program a profile with userns" in told["user namespaces"]["text"]
    assert "apparmor_restrict_unprivileged_userns=0" in told["user namespaces"]["text"]


@pytest.mark.root
def test_doctor_tells_a_user_without_delegated_groups_everything_to_the_end(home: dict[str, str]) -> None:
    """It ended before its last line, which is the proof of the others."""
    told = doctor(*AS_USER, **home)
    assert (told["limits"]["ok"], told["sandbox"]["ok"]) == (False, False)
    assert "limits: none; lacks limits" in told["isolation"]["text"]
    assert [told[name]["ok"] for name in ("store", "user ids", "base image")] == [True] * 3
