"""Where the native program is: what is told where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from openmodal import _binary
from openmodal.engines.kubernetes import agent
from openmodal.engines.kubernetes.settings import Settings
from openmodal.errors import EngineError


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENMODAL_AGENT", raising=False)


def test_another_cpus_comes_with_a_release_and_this_ones_with_a_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=r"no native program for riscv64 .*release wheel"):
        _binary.find(tmp_path, "riscv64")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "here", "6.1", "", "riscv64")))
    with pytest.raises(EngineError, match=r"no native program for riscv64 .*gcc"):
        _binary.find(tmp_path, "riscv64")


def test_of_a_clusters_nodes_it_is_told_which_setting_names_their_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_binary, "_machine", lambda cpu: f"no-{cpu}")
    with pytest.raises(EngineError, match=r"release wheel.*kubernetes\.architecture"):
        agent.binary(Settings(architecture="arm64"))


def test_one_that_is_chosen_and_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENMODAL_AGENT", str(tmp_path / "missing"))
    for use in (lambda: _binary.find(tmp_path), lambda: _binary.content("amd64")):
        with pytest.raises(EngineError, match="OPENMODAL_AGENT"):
            use()
    (tmp_path / "missing").write_bytes(b"program")
    assert _binary.content("amd64") == b"program"
