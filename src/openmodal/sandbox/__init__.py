"""Sandbox: an isolated container to run commands in.

A file for each theme of its methods: `commands`, `leases`, `ports`, `state`, and `sandbox` for how
it is made, found and ended. `handle` is what they share.
"""

from openmodal._options import ExecOptions, SpawnOptions
from openmodal.sandbox.sandbox import DEFAULT_TIMEOUT, Sandbox
from openmodal.sandbox.state import Checkpoint

__all__ = ["DEFAULT_TIMEOUT", "Checkpoint", "ExecOptions", "Sandbox", "SpawnOptions"]
