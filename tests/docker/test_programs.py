"""Real packages on the Docker engine."""

from __future__ import annotations

from tests.programs import *  # noqa: F403
