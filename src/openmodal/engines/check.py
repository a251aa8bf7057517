"""What `openmodal doctor` says, line by line."""

from __future__ import annotations

import msgspec


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at. `required`: without it no sandbox runs; `remedy`: what to do if it is not `ok`."""

    name: str
    ok: bool
    text: str
    remedy: str = ""
    required: bool = False

    @property
    def line(self) -> str:
        """All of it."""
        return f"{self.name}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")
