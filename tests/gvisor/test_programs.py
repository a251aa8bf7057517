"""Real packages on the embedded engine with gVisor."""

from __future__ import annotations

from tests.programs import *  # noqa: F403
