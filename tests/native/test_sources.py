"""The native program's sources: unit tests under the sanitizers, the analyzer, the fuzzer. `make native-test` does the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.native.conftest import NATIVE


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("program")  # it has made what they share
@pytest.mark.parametrize("target", ["test", "analyze", "fuzz"])
def test_the_sources_pass(target: str) -> None:
    make = ["make", "--no-print-directory", "-C", str(NATIVE), target, f"PYTHON={sys.executable}"]
    done = subprocess.run(make, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
