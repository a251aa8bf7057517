"""A whole run of smolagents with a scripted model: the program of the documentation's page."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("smolagents", reason="frameworks have environments of their own: make test-integrations")

from smolagents.utils import AgentError

from openmodal.image import Image
from openmodal.integrations.smolagents import APP, OpenModalExecutor
from openmodal.sandbox import Sandbox
from tests.integrations.conftest import printed_by_page

pytestmark = pytest.mark.embedded


def test_the_pages_agent_comes_to_its_answer(tmp_path: Path) -> None:
    said = printed_by_page("smolagents", tmp_path)
    assert said.splitlines()[-1] == "42"
    assert not Sandbox.list(app=APP, engine="embedded")


def test_what_code_does_wrong_is_told_to_the_agent() -> None:
    executor = OpenModalExecutor(image=Image.debian_slim(), timeout=1, engine="embedded")
    try:
        assert executor("x = 20\nprint('said')\nx").output == "20"
        with pytest.raises(AgentError, match="ZeroDivisionError"):
            executor("1 / 0")
        with pytest.raises(AgentError, match=r"begun\s+.*timeout of 1 s"):
            executor("print('begun')\nimport time\ntime.sleep(60)")
        executor.send_variables({"y": [1, 2]})
        assert executor("sum(y) + x").output == "23"
    finally:
        executor.cleanup()
