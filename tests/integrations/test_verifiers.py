"""verifiers' own runtimes, unmodified: Modal's behind a door, and why Docker's does not start."""

from __future__ import annotations

import re
import subprocess

import pytest

pytest.importorskip("verifiers", reason="frameworks have environments of their own: make test-integrations")

from verifiers.v1.errors import SandboxError
from verifiers.v1.runtimes.docker import DockerConfig, DockerRuntime

from tests.integrations.conftest import ROOT, behind_a_door

pytestmark = [pytest.mark.anyio, pytest.mark.embedded]


def test_the_pages_rollout_runs_behind_a_door() -> None:
    page = (ROOT / "docs/integrations/verifiers.md").read_text("utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    *_, ran, kept, ended, scheme = behind_a_door(program).splitlines()
    assert (ran, kept, scheme) == ("3 ['5050', 'variable']", "b'kept\\n'", "https:")
    assert int(ended) in (-15, 143)


async def test_its_docker_runtime_is_told_why_it_does_not_start(docker: str) -> None:
    runtime = DockerRuntime(DockerConfig(image="python:3.13-slim"))
    try:
        with pytest.raises(SandboxError, match="no two sandboxes share an address"):
            await runtime.start()
    finally:
        await runtime.stop()
    assert subprocess.run([docker, "ps", "-q"], check=True, capture_output=True).stdout == b""
