"""The Kubernetes engine keeps the contract."""

from __future__ import annotations

from openmodal.testing import *  # noqa: F403
