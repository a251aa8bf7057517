"""NeMo Gym's own sandbox API, on our provider."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("nemo_gym", reason="frameworks have environments of their own: make test-integrations")

from nemo_gym.sandbox import AsyncSandbox, SandboxSpec
from nemo_gym.sandbox.providers.base import SandboxStatus
from nemo_gym.sandbox.providers.registry import register_provider

from openmodal.integrations.nemo_gym import OpenModalProvider
from tests.integrations.conftest import printed_by_page

pytestmark = [pytest.mark.anyio, pytest.mark.embedded]


def test_the_pages_program_finds_the_provider_and_prints_its_result(tmp_path: Path) -> None:
    said = printed_by_page("nemo_gym", tmp_path)
    assert said.split()[-1] == "42"


async def test_commands_files_and_status(tmp_path: Path) -> None:
    register_provider("openmodal", OpenModalProvider)
    spec = SandboxSpec(env={"A": "variable"}, resources={"memory_mib": 300}, provider_options={"block_network": True})
    sandbox = AsyncSandbox({"openmodal": {"engine": "embedded"}}, spec)
    await sandbox.start()
    try:
        assert await sandbox.status() == SandboxStatus.RUNNING
        done = await sandbox.exec("echo $A; whoami >&2; ls /sys/class/net; exit 3", user="nobody")
        assert (done.stdout, done.stderr, done.return_code) == ("variable\nlo\n", "nobody\n", 3)
        late = await sandbox.exec("echo begun; sleep 60", timeout_s=1)
        assert (late.stdout, late.return_code, late.error_type) == ("begun\n", 124, "timeout")
        (tmp_path / "in").write_text("local")
        await sandbox.upload(tmp_path / "in", "/srv/in")
        await sandbox.download("/srv/in", tmp_path / "out")
        assert (tmp_path / "out").read_text() == "local"
    finally:
        await sandbox.stop()
    assert await sandbox.status() == SandboxStatus.STOPPED
