"""A workspace of the OpenHands SDK that is a sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("openhands.sdk", reason="frameworks have environments of their own: make test-integrations")

from openhands.sdk.git.exceptions import GitCommandError

from openmodal.integrations.openhands import APP, OpenModalWorkspace
from openmodal.sandbox import Sandbox
from tests.integrations.conftest import printed_by_page

pytestmark = pytest.mark.embedded

REPOSITORY = """\
git init -q . && git config user.email a@b && git config user.name a &&
printf 'one\\n' > kept && printf 'old\\n' > changed && printf 'x\\n' > gone && git add . && git commit -qm first &&
printf 'new\\n' > changed && rm gone && mkdir -p below && printf 'y\\n' > below/added
"""


def test_the_pages_program_prints_its_result(tmp_path: Path) -> None:
    said = printed_by_page("openhands", tmp_path)
    assert said.split()[-1] == "42"
    assert not Sandbox.list(app=APP, engine="embedded")


def test_commands_files_and_git(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:3.13-slim\nRUN apt-get update && apt-get install -y git\n")
    options = {"engine": "embedded", "timeout": 900}
    with OpenModalWorkspace(working_dir="/srv/work", image=str(tmp_path / "Dockerfile"), options=options) as workspace:
        done = workspace.execute_command("pwd; echo err >&2; exit 3")
        assert (done.stdout, done.stderr, done.exit_code) == ("/srv/work\n", "err\n", 3)
        late = workspace.execute_command("echo begun; sleep 60", timeout=1)
        assert (late.stdout, late.exit_code, late.timeout_occurred) == ("begun\n", -1, True)

        (tmp_path / "in").write_text("local")
        assert workspace.file_upload(tmp_path / "in", "in").success
        assert workspace.file_download("in", tmp_path / "deep/out").file_size == 5
        assert (tmp_path / "deep/out").read_text() == "local"
        missing = workspace.file_download("none", tmp_path / "none")
        assert not missing.success
        assert missing.error
        assert "No such file" in missing.error

        with pytest.raises(GitCommandError):
            workspace.git_changes(".")
        assert workspace.execute_command("rm in; " + REPOSITORY).exit_code == 0
        changes = {str(each.path): each.status.value for each in workspace.git_changes(".")}
        assert changes == {"below/added": "ADDED", "changed": "UPDATED", "gone": "DELETED"}
        diff = workspace.git_diff("changed")
        assert (diff.original, diff.modified) == ("old\n", "new\n")
