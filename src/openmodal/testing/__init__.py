"""The contract suite: what every engine promises, as tests. Any engine is held to it, also one of yours.

A file of three statements runs it::

    import pytest
    from openmodal.testing import *  # the tests and their fixtures

    @pytest.fixture(scope="session")
    def engine():
        return my_package.MyEngine()

Every test runs in both faces: it is written in the blocking spelling, and the `async` face makes `await f.aio(…)` of each call
`f(…)`, `async for` of each `for`, `async with` of each `with` (`faces.py`). Promises that `engine.lacks` names are skipped by name
(`PROMISES` is the list). Tests marked `slow` take more than a few seconds: register the marker, and leave them out with `-m "not slow"`.

Needs pytest, and a static busybox on PATH for the image that nearly all tests use; or a fixture `image` of your own that has a busybox
shell and tools. Other fixtures to override: `outbound` (a host and port of the internet that can be reached from here).
Budget: both faces in three minutes on two cores, when a sandbox costs milliseconds.
"""

from __future__ import annotations

import pytest

_MODULES = (
    "apps",
    "basics",
    "connections",
    "copying",
    "egress",
    "exec",
    "faces",
    "files",
    "fixtures",
    "housekeeping",
    "ids",
    "images",
    "leases",
    "interpreters",
    "lifetime",
    "limits",
    "live",
    "mistakes",
    "neighbours",
    "output",
    "ports",
    "shells",
    "spawn",
    "state",
    "timeline",
    "volumes",
)

pytest.register_assert_rewrite(*(f"openmodal.testing.{name}" for name in _MODULES))

from openmodal.testing.apps import TestApp  # noqa: E402
from openmodal.testing.basics import TestFinding, TestMainCommand, TestNames, TestSandbox  # noqa: E402
from openmodal.testing.connections import TestConnections  # noqa: E402
from openmodal.testing.copying import TestCopying  # noqa: E402
from openmodal.testing.egress import TestAllowLists  # noqa: E402
from openmodal.testing.exec import TestExec, TestExecInput, TestExecOutput, TestExecTimeout, TestLostLinks  # noqa: E402
from openmodal.testing.faces import Face  # noqa: E402
from openmodal.testing.files import TestFileErrors, TestFiles  # noqa: E402
from openmodal.testing.fixtures import (  # noqa: E402
    PROMISES,
    Create,
    Flaky,
    SandboxClass,
    afterwards,
    app,
    busybox,
    create,
    engine_name,
    face,
    image,
    outbound,
    promise,
    promise_is_kept,
    sandbox,
    sandboxes,
)
from openmodal.testing.handles import TestAttached, TestInterrupted, TestOtherProcesses  # noqa: E402
from openmodal.testing.housekeeping import TestHousekeeping  # noqa: E402
from openmodal.testing.ids import TestIds, id  # noqa: E402
from openmodal.testing.images import TestImages  # noqa: E402
from openmodal.testing.interpreters import TestInterpreter  # noqa: E402
from openmodal.testing.leases import TestLease, TestOwner  # noqa: E402
from openmodal.testing.lifetime import TestEnd, TestLifetime, TestTermination  # noqa: E402
from openmodal.testing.limits import TestIsolation, TestLimits, TestNetwork  # noqa: E402
from openmodal.testing.live import (  # noqa: E402
    TestDeadline,
    TestDiff,
    TestIdlePause,
    TestNetworkChange,
    TestPause,
    TestUsage,
    TestWatch,
)
from openmodal.testing.mistakes import TestMistakes  # noqa: E402
from openmodal.testing.neighbours import TestNeighbourMistakes, TestNeighbours  # noqa: E402
from openmodal.testing.output import TestOutputLimits  # noqa: E402
from openmodal.testing.owners import TestOwners  # noqa: E402
from openmodal.testing.ports import TestForward, TestPorts, TestReadiness  # noqa: E402
from openmodal.testing.programs import TestPrograms  # noqa: E402
from openmodal.testing.shells import TestShell  # noqa: E402
from openmodal.testing.spawn import TestFlow, TestSpawn, TestStdin, TestTerminal  # noqa: E402
from openmodal.testing.state import (  # noqa: E402
    TestForks,
    TestKeptAtTheEnd,
    TestMountedImages,
    TestPublished,
    TestResets,
    TestSnapshots,
)
from openmodal.testing.timeline import TestTimeline  # noqa: E402
from openmodal.testing.volumes import (  # noqa: E402
    TestHostDirectories,
    TestVolumeFiles,
    TestVolumeMistakes,
    TestVolumes,
    volume,
)

__all__ = [
    "PROMISES",
    "Create",
    "Face",
    "Flaky",
    "SandboxClass",
    "TestAllowLists",
    "TestApp",
    "TestAttached",
    "TestConnections",
    "TestCopying",
    "TestDeadline",
    "TestDiff",
    "TestEnd",
    "TestExec",
    "TestExecInput",
    "TestExecOutput",
    "TestExecTimeout",
    "TestFileErrors",
    "TestFiles",
    "TestFinding",
    "TestFlow",
    "TestForks",
    "TestForward",
    "TestHostDirectories",
    "TestHousekeeping",
    "TestIdlePause",
    "TestIds",
    "TestImages",
    "TestInterpreter",
    "TestInterrupted",
    "TestIsolation",
    "TestKeptAtTheEnd",
    "TestLease",
    "TestLifetime",
    "TestLimits",
    "TestLostLinks",
    "TestMainCommand",
    "TestMistakes",
    "TestMountedImages",
    "TestNames",
    "TestNeighbourMistakes",
    "TestNeighbours",
    "TestNetwork",
    "TestNetworkChange",
    "TestOtherProcesses",
    "TestOutputLimits",
    "TestOwner",
    "TestOwners",
    "TestPause",
    "TestPorts",
    "TestPrograms",
    "TestPublished",
    "TestReadiness",
    "TestResets",
    "TestSandbox",
    "TestShell",
    "TestSnapshots",
    "TestSpawn",
    "TestStdin",
    "TestTerminal",
    "TestTermination",
    "TestTimeline",
    "TestUsage",
    "TestVolumeFiles",
    "TestVolumeMistakes",
    "TestVolumes",
    "TestWatch",
    "afterwards",
    "app",
    "busybox",
    "create",
    "engine_name",
    "face",
    "id",
    "image",
    "outbound",
    "promise",
    "promise_is_kept",
    "sandbox",
    "sandboxes",
    "volume",
]
