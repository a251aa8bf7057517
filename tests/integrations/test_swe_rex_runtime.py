"""SWE-ReX's runtime on a sandbox, without its server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("swerex", reason="frameworks have environments of their own: make test-integrations")

from swerex import exceptions
from swerex.runtime.abstract import (
    BashAction,
    BashInterruptAction,
    CloseBashSessionRequest,
    Command,
    CreateBashSessionRequest,
    ReadFileRequest,
    UploadRequest,
    WriteFileRequest,
)

from openmodal.integrations.swe_rex import APP, OpenModalDeployment, OpenModalRuntime
from openmodal.sandbox import Sandbox
from tests.integrations.conftest import printed_by_page

pytestmark = [pytest.mark.anyio, pytest.mark.embedded]


@pytest.fixture
async def runtime() -> AsyncIterator[OpenModalRuntime]:
    deployment = OpenModalDeployment(engine="embedded", timeout=900)
    with pytest.raises(exceptions.DeploymentNotStartedError):
        await deployment.is_alive()
    await deployment.start()
    assert (await deployment.is_alive()).is_alive
    yield deployment.runtime
    await deployment.stop()


def test_the_pages_program_prints_its_result(tmp_path: Path) -> None:
    said = printed_by_page("swe_rex", tmp_path)
    assert "42 in /tmp" in said.splitlines()
    assert not Sandbox.list(app=APP, engine="embedded")


async def test_commands_and_files(runtime: OpenModalRuntime, tmp_path: Path) -> None:
    done = await runtime.execute(Command(command=["sh", "-c", "echo out; echo err >&2; exit 3"]))
    assert (done.stdout, done.stderr, done.exit_code) == ("out\n", "err\n", 3)
    done = await runtime.execute(
        Command(command="echo $A; pwd; echo err >&2", shell=True, env={"A": "x"}, cwd="/tmp", merge_output_streams=True)
    )
    assert (done.stdout, done.exit_code) == ("x\n/tmp\nerr\n", 0)
    with pytest.raises(exceptions.NonZeroExitCodeError, match="told"):
        await runtime.execute(Command(command="false", check=True, error_msg="told"))
    with pytest.raises(exceptions.CommandTimeoutError):
        await runtime.execute(Command(command=["sleep", "60"], timeout=0.5))
    await runtime.write_file(WriteFileRequest(path="/srv/deep/x", content="content"))
    assert (await runtime.read_file(ReadFileRequest(path="/srv/deep/x"))).content == "content"
    with pytest.raises(FileNotFoundError):
        await runtime.read_file(ReadFileRequest(path="/none"))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_text("a")
    await runtime.upload(UploadRequest(source_path=str(tmp_path / "tree"), target_path="/srv/tree"))
    assert (await runtime.read_file(ReadFileRequest(path="/srv/tree/a"))).content == "a"


async def test_sessions(runtime: OpenModalRuntime) -> None:
    await runtime.create_session(CreateBashSessionRequest())
    with pytest.raises(exceptions.SessionExistsError):
        await runtime.create_session(CreateBashSessionRequest())
    run = runtime.run_in_session
    await run(BashAction(command="cd /srv; f() { echo said $1; }"))
    done = await run(BashAction(command="f it; pwd"))
    assert (done.output, done.exit_code) == ("said it\n/srv\n", 0)
    with pytest.raises(exceptions.NonZeroExitCodeError, match="told"):
        await run(BashAction(command="false", error_msg="told"))
    assert (await run(BashAction(command="false", check="silent"))).exit_code == 1
    assert (await run(BashAction(command="false", check="ignore"))).exit_code is None
    with pytest.raises(exceptions.BashIncorrectSyntaxError):
        await run(BashAction(command="if then"))
    with pytest.raises(exceptions.CommandTimeoutError):
        await run(BashAction(command="sleep 60", timeout=0.5))
    await run(BashInterruptAction())
    # bash answers an interruption with an empty line.
    assert (await run(BashAction(command="pwd"))).output.split() == ["/srv"]

    begun = await run(BashAction(command="python3 -i", expect=[">>> "], is_interactive_command=True, timeout=60))
    assert begun.expect_string == ">>> "
    said = await run(BashAction(command="print(6 * 7)", expect=[">>> "], is_interactive_command=True, timeout=60))
    assert "42" in said.output
    await run(BashAction(command="exit()", is_interactive_quit=True, timeout=60))
    assert (await run(BashAction(command="echo back"))).output == "back\n"

    await runtime.close_session(CloseBashSessionRequest())
    with pytest.raises(exceptions.SessionDoesNotExistError):
        await run(BashAction(command="true"))
