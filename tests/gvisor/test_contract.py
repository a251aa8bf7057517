"""The embedded engine keeps the contract with gVisor, too."""

from __future__ import annotations

from openmodal.testing import *  # noqa: F403
