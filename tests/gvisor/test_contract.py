"""The embedded engine keeps the contract with gVisor, too."""

from __future__ import annotations

import pytest

from openmodal.testing import *  # noqa: F403
from tests.reuse import reused, sandbox, shared_options  # noqa: F401

# Of the sandbox that tests share: gVisor's kernel starts processes without a name to run commands
# in, and ends them when it likes.
pytestmark = pytest.mark.may_leave("* exe")
