"""The embedded engine on a machine as users have them: an older kernel, systemd, control groups of
version 2, AppArmor, a plain user.

`make test-machines` boots such machines and runs these tests there, as root and as a plain user
(`.ci/in-machine`). They may change what is the whole machine's (its firewall, its mounts), so they
run only where OPENMODAL_TEST_MACHINE says that nobody needs the machine afterwards.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from openmodal.engines import load
from openmodal.engines.embedded import Embedded
from openmodal.testing import *  # noqa: F403  (the suite's fixtures)
from tests.selection import leave_out

THROWAWAY = "OPENMODAL_TEST_MACHINE" in os.environ

CHOSEN = (
    # Commands, their users, terminals and ends.
    "test_process_tells_its_arguments_pid_and_record",
    "test_commands_run_as_the_user_asked_for[blocking-agent:staff",
    "test_commands_run_as_the_user_asked_for[blocking-1000:50",
    "test_timeout_kills_all_descendants_also_daemons",
    "test_a_terminal_is_24_by_80_and_one_stream",
    "test_a_tree_goes_in_and_out_unchanged",
    "test_a_file_goes_in_and_out_unchanged[blocking-1048577]",
    # Each limit, with what tells of it.
    "test_what_exceeds_the_memory_limit_is_killed_and_the_record_tells",
    "test_files_in_memory_count",
    "test_a_main_command_that_exceeds_the_memory_limit_ends_the_sandbox_so",
    "test_meminfo_tells_the_memory_limit[blocking-64]",
    "test_nproc_tells_the_cpu_limit[blocking-1-1]",
    "test_commands_get_no_more_cpu_time_than_the_limit",
    "test_info_tells_the_limits_and_that_nothing_is_lacking",
    "test_info_tells_the_limit_of_processes",
    "test_writing_beyond_the_disk_limit_fails",
    # What it sees and reaches.
    "::TestNetwork::",
    "test_a_listed_name_is_reached_and_no_other",
    "test_a_listed_network_is_reached_and_no_other",
    "test_the_log_tells_what_was_allowed_and_what_was_denied",
    "test_sandboxes_do_not_see_each_others_processes",
    "test_processes_of_a_sandbox_cannot_end_it_from_within",
    "test_kernel_settings_cannot_be_changed",
    "test_file_systems_cannot_be_mounted",
    # Its end, and its maker's.
    "test_the_timeout_ends_everything_in_it",
    "test_it_ends_when_nothing_happens_in_it",
    "test_it_lives_on_when_the_process_that_made_it_dies",
    "test_terminate_ends_commands_that_resist",
    "test_another_process_terminates_while_a_command_runs",
    # Steps of images.
    "test_steps_run_in_order_on_top_of_each_other",
    "test_a_folder_replaced_in_a_later_step_shows_nothing_old",
)
"""The tests of the contract that meet the kernel; the others are the SDK's own, and the same everywhere."""

NEED_ROOT = ("test_writing_beyond_the_disk_limit_fails",)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_out(config, items, _is_left_out)


def _is_left_out(item: pytest.Item) -> bool:
    if item.path.parent != Path(__file__).parent:
        return False
    other = "user" if os.geteuid() == 0 else "root"
    if not THROWAWAY or item.get_closest_marker(other) or "[async" in item.nodeid:
        return True
    return item.path.name == "test_contract.py" and not _is_chosen(item.nodeid)


def _is_chosen(nodeid: str) -> bool:
    able = os.geteuid() == 0 or not any(name in nodeid for name in NEED_ROOT)
    return able and any(name in nodeid for name in CHOSEN)


@pytest.fixture(scope="session")
def engine() -> Embedded:
    found = load("embedded")
    assert isinstance(found, Embedded)
    return found
