"""The embedded engine: sandboxes on this machine with nothing running in between. See engine.py."""

from openmodal.engines.embedded.engine import Embedded as Embedded

__all__ = ["Embedded"]
