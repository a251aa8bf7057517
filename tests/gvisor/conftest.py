"""The embedded engine with gVisor, as every test here uses it.

`make test` has two and a half minutes for it, and a sandbox costs a fifth of a second here. So the
contract suite runs in one face (both share all but their driver), and without what gVisor has no
part in. OPENMODAL_GVISOR=all runs all of it, in a quarter of an hour.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from openmodal.engines.embedded import network
from openmodal.testing import *  # noqa: F403  (the suite's fixtures)
from tests.gvisor.engine import Gvisor
from tests.selection import leave_out

ALL = os.environ.get("OPENMODAL_GVISOR") == "all"

LEFT_OUT = (
    "[async",
    # The SDK's arguments, names, lists and links, and the image builder, which runs its steps
    # without gVisor.
    *("::TestApp::", "::TestFinding::", "::TestImages::", "::TestLostLinks::", "::TestMistakes::", "::TestNames::"),
    # The agent's part, in many boxes.
    *("::TestVolumeFiles::", "::TestVolumeMistakes::"),
    # Seconds each, and more where the machine is busy.
    *("test_there_are_at_most_512_processes", "test_the_timeout_ends_it_soon", "test_hundred_commands_live_at_once"),
    *("test_a_folder_of_thousands_is_listed_whole", "test_a_stream_that_nobody_reads_does_not_block"),
    # On a busy machine a command that kill() has stopped may die of the hang-up that gVisor sends
    # it first: 129 and not 137.
    "test_kill_reaches_the_command_and_all_its_descendants",
    # No pipe that is made in gVisor reaches this kernel's files.
    "TestDiff::test_hostile_names_and_links_lead_nowhere",
    # gVisor of 2024 opens no /dev/tty, sends Ctrl-C to the shell alone, and does not tell which group
    # has the terminal.
    "TestShell::test_the_end_of_an_answer_cannot_be_forged_or_moved",
    "TestShell::test_a_command_can_be_interrupted",
    *("as_before[blocking-deaf]", "test_what_ignores_ctrl_c_is_ended_and_the_shell_stays"),
    # The memory of the SDK.
    "test_200_megabytes_of_output_do_not_become_memory",
    *(
        "test_exec_gives_64_megabytes",
        "test_nobody_reads_and_the_gap_is_told",
        "test_a_warning_that_is_an_exception_loses",
    ),
    "test_as_much_as_was_asked_for_waits_for_a_late_reader",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not ALL:
        leave_out(config, items, _is_left_out)


def _is_left_out(item: pytest.Item) -> bool:
    return item.path.parent == Path(__file__).parent and any(name in item.nodeid for name in LEFT_OUT)


@pytest.fixture(scope="session")
def engine() -> Gvisor:
    if not network.tool("runsc"):
        pytest.skip("needs runsc; Debian's package is runsc, for Debian 12 from bookworm-backports")
    return Gvisor()
