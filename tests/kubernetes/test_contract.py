"""The Kubernetes engine keeps the contract."""

from __future__ import annotations

from openmodal.testing import *  # noqa: F403
from tests.reuse import reused, sandbox, shared_options  # noqa: F401
