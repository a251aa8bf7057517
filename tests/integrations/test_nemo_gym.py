"""NeMo Gym's own sandbox API, on our provider."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nemo_gym", reason="frameworks have environments of their own: make test-integrations")

from nemo_gym.sandbox import AsyncSandbox, SandboxSpec
from nemo_gym.sandbox.providers.base import SandboxStatus
from nemo_gym.sandbox.providers.registry import register_provider

from openmodal.integrations.nemo_gym import OpenModalProvider

pytestmark = [pytest.mark.anyio, pytest.mark.embedded]

PAGE = Path(__file__).resolve().parents[2] / "docs/integrations/nemo_gym.md"


def test_the_pages_program_finds_the_provider_and_prints_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENMODAL_ENGINE", "embedded")
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (tmp_path / "rollout.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "rollout.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[-1] == "42"


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
