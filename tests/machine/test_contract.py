"""The embedded engine keeps the contract there: the tests of it that meet the kernel (conftest.py names them)."""

from __future__ import annotations

from openmodal.testing import *  # noqa: F403
