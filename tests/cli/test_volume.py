"""`openmodal volume …`, on a real volume."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import CommandLine

pytestmark = pytest.mark.embedded

LOCAL = ("--engine", "embedded", "volume")


def test_a_volume_is_made_filled_read_and_deleted(openmodal: CommandLine) -> None:
    (openmodal.folder / "file").write_text("one")
    (openmodal.folder / "folder").mkdir()
    (openmodal.folder / "folder" / "inner").write_text("two")
    openmodal(*LOCAL, "create", "cli-data")
    assert "cli-data" in [volume["name"] for volume in json.loads(openmodal(*LOCAL, "list", "--json"))]
    openmodal(*LOCAL, "put", "cli-data", "file", "in/")
    openmodal(*LOCAL, "put", "cli-data", "folder", "in/copy")
    openmodal(*LOCAL, "cp", "cli-data", "in/file", "second")
    listed = json.loads(openmodal(*LOCAL, "ls", "cli-data", "-r", "--json"))
    assert [entry["path"] for entry in listed] == ["in", "in/copy", "in/copy/inner", "in/file", "second"]
    openmodal(*LOCAL, "get", "cli-data", "in/copy", "got")
    assert (openmodal.folder / "got" / "inner").read_text() == "two"
    assert "--force" in openmodal.error(*LOCAL, "get", "cli-data", "second", "file", code=2)
    openmodal(*LOCAL, "rm", "cli-data", "in", "-r")
    openmodal(*LOCAL, "rename", "cli-data", "cli-other")
    assert openmodal(*LOCAL, "ls", "cli-other").splitlines()[1].split("\t")[:3] == ["second", "file", "3 B"]
    openmodal(*LOCAL, "delete", "cli-other", "--yes")
    assert "cli-other" in openmodal.error(*LOCAL, "ls", "cli-other")
