"""The C floor: the least that the kernel takes for the same steps, compiled from floor.c and run next to ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("floor.c")


class Floor:
    """The compiled floor; without a compiler, or root, it measures nothing and says why once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._program = root.parent / "floor"
        self._works = self._compile()

    def _compile(self) -> bool:
        compiler = shutil.which("cc")
        if not compiler or not SOURCE.exists():
            print("no C floor: there is no compiler (or no floor.c); install gcc", file=sys.stderr)
            return False
        command = [compiler, "-O2", "-static", "-o", str(self._program), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"no C floor: it does not compile: {done.stderr.strip()[-500:]}", file=sys.stderr)
        return done.returncode == 0

    def measure(self, rounds: int = 1) -> dict[str, list[float]]:
        """Run it; return the figures by step, in milliseconds (or MB/s)."""
        if not self._works:
            return {}
        command = [str(self._program), str(self._root), str(rounds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            print(f"no C floor: it failed: {done.stderr.strip()[-500:]}", file=sys.stderr)
            self._works = False
            return {}
        found: dict[str, list[float]] = json.loads(done.stdout)
        return found
