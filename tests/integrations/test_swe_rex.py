"""SWE-ReX's own Modal deployment, unmodified, behind a door: its server runs in the sandbox, and is
reached by a tunnel over TLS."""

from __future__ import annotations

import pytest

from tests.integrations.conftest import behind_a_door

pytest.importorskip("swerex", reason="frameworks have environments of their own: make test-integrations")

pytestmark = pytest.mark.embedded

PROGRAM = """
import asyncio, modal
from swerex.deployment.modal import ModalDeployment
from swerex.runtime.abstract import BashAction, Command, CreateBashSessionRequest, ReadFileRequest, WriteFileRequest

async def main():
    image = modal.Image.debian_slim(python_version="3.13").pip_install("swe-rex")
    # Unsaid, the version would be that of this Python.
    # Its time for the start counts the build of the image.
    deployment = ModalDeployment(image=image, install_pipx=False, startup_timeout=1200)
    await deployment.start()
    sandbox, runtime = deployment.sandbox, deployment.runtime
    print((await runtime.execute(Command(command=["echo", "hello"]))).stdout)
    await runtime.create_session(CreateBashSessionRequest())
    await runtime.run_in_session(BashAction(command="cd /tmp && export A=kept"))
    print((await runtime.run_in_session(BashAction(command="pwd; echo $A"))).output)
    await runtime.write_file(WriteFileRequest(path="/tmp/x", content="content"))
    print((await runtime.read_file(ReadFileRequest(path="/tmp/x"))).content)
    await deployment.stop()
    await sandbox.terminate.aio()

asyncio.run(main())
"""


def test_its_modal_deployment_runs_commands_sessions_and_files() -> None:
    said = behind_a_door(PROGRAM).split()
    assert [word for word in said if word in ("hello", "/tmp", "kept", "content")] == [
        "hello",
        "/tmp",
        "kept",
        "content",
    ]
