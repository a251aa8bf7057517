"""What is told of a step's output when it fails."""

from __future__ import annotations

import pytest

from openmodal.build.output import Tail

PIP = """\
WARNING: Retrying (Retry(total=0)) after connection broken by 'NameResolutionError("Failed to resolve 'pypi.example'")': /simple/six/
ERROR: Could not find a version that satisfies the requirement six (from versions: none)
ERROR: No matching distribution found for six

[notice] A new release of pip is available: 25.0 -> 25.1
"""
MAKE = """\
main.c:3:10: fatal error: nothing.h: No such file or directory
compilation terminated.
make: *** [Makefile:2: all] Error 1
"""
APT = """\
Err:1 http://deb.example bookworm InRelease
  Temporary failure resolving 'deb.example'
E: Unable to locate package git
"""


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("", ""),
        (" \n\n", ""),
        ("building\nbad news\n\n", "it last printed: bad news"),
        (
            PIP,
            f"it printed: {PIP.splitlines()[0]}, and at the end: ERROR: No matching distribution found for six",
        ),
        (MAKE, "it printed: main.c:3:10: fatal error: nothing.h: No such file or directory"),
        (
            APT,
            "it printed: Temporary failure resolving 'deb.example', and at the end: E: Unable to locate package git",
        ),
        ("Traceback:\n  File x\nValueError: bad\n", "it last printed: ValueError: bad"),
        (
            "curl: (6) Could not resolve host: a.example\n",
            "it last printed: curl: (6) Could not resolve host: a.example",
        ),
        ("x" * 1000, "it last printed: " + "x" * 300),
    ],
)
def test_the_lines_that_tell_the_cause_are_told(output: str, why: str) -> None:
    tail = Tail(lambda text: None)
    tail.write(output.encode())
    tail.close()
    assert tail.why == why
