"""Build hook: the native program becomes package data. How it is compiled: native/build.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeHook(BuildHookInterface[Any]):
    """Compiles for this machine's CPU; keeps what is there already (a prebuilt file, the other CPU's) as it is."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":  # an sdist carries the sources, and prebuilt files if there are any
            return
        spec = importlib.util.spec_from_file_location("openmodal_native_build", Path(self.root, "native", "build.py"))
        assert spec is not None
        assert spec.loader is not None
        native = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(native)
        native.build()
