"""What a sandbox without `disk=` may have on the store's disk."""

from __future__ import annotations

import pytest

from openmodal.errors import SandboxNotRunningError
from openmodal.testing.fixtures import Create, eventually

FILL = "dd if=/dev/zero of=/file bs=1M count=96 2>/dev/null; sync; sleep 60"


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openmodal.engines.embedded.engine.MOST_ON_DISK", 64 << 20)


def test_who_fills_the_disk_is_ended_and_told_why(create: Create) -> None:
    sandbox, other = create(), create()
    with pytest.raises(SandboxNotRunningError, match=r"disk of the sandboxes.*disk="):
        sandbox.exec("sh", "-c", FILL)
    eventually(lambda: sandbox.poll() == 137)
    assert other.exec("echo", "alive").stdout.read() == "alive\n"


@pytest.mark.root
def test_a_disk_of_ones_own_is_not_guarded(create: Create) -> None:
    sandbox = create(disk=128)
    assert sandbox.exec("sh", "-c", FILL.replace("sleep 60", "sleep 3")).returncode == 0
    assert sandbox.poll() is None
