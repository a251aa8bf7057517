"""What the native program and the SDK both say as numbers: the sources of both are compared."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path

import pytest

from openmodal import _options, _wire
from openmodal.engines.embedded import gvisor, uppers
from openmodal.engines.posture import CAPABILITIES, KEPT

NATIVE = Path(__file__).resolve().parents[2] / "native"


def enums(header: str) -> dict[str, dict[str, int]]:
    """The values of a header's enums by name; those without a name of their own are ""."""
    found: dict[str, dict[str, int]] = {}
    for tag, body in re.findall(r"enum (\w*) ?\{([^}]*)\}", (NATIVE / header).read_text(encoding="utf-8")):
        value = -1
        for entry in filter(None, (part.strip() for part in body.split(","))):
            name, _, number = entry.partition("=")
            value = number_of(number) if number else value + 1
            found.setdefault(tag, {})[name.strip()] = value
    return found


def number_of(text: str) -> int:
    """A constant such as 0x2f, 8 << 20, or (2 << 20) + (64 << 10)."""
    assert re.fullmatch(r"[0-9a-fx()<+ ]+", text), text
    return int(eval(text))


FRAME = enums("frame.h")


@pytest.mark.parametrize(
    ("tag", "prefix", "ours"),
    [
        ("frame_type", "FRAME_", _wire.Kind),
        ("error_code", "ERROR_", _wire.Code),
        ("start_flag", "START_", _wire.Flag),
        ("want", "WANT_", _wire.Want),
        ("progress", "AT_|HAS_", _wire.State),
        ("file_operation", "FILE_", _wire.FileOp),
        ("file_event", "EVENT_", _wire.Change),
    ],
)
def test_the_words_of_the_wire_have_the_same_numbers(tag: str, prefix: str, ours: type[IntEnum]) -> None:
    theirs = {re.sub(f"^({prefix})", "", name): value for name, value in FRAME[tag].items()}
    theirs.pop("ALL_FLAGS", None)
    assert theirs == {name: int(member) for name, member in ours.__members__.items()}


def test_all_flags_of_the_agent_are_ours() -> None:
    assert FRAME["start_flag"]["START_ALL_FLAGS"] == sum(_wire.Flag)
    assert FRAME["file_flag"]["FILE_AS_USER"] == _wire._AS_USER


def test_sizes_are_the_same() -> None:
    theirs = FRAME[""]
    assert (theirs["MAX_DATA"], theirs["MAX_FRAME"]) == (_wire.MAX_DATA, _wire.MAX_FRAME)
    assert (theirs["ID_SIZE"], theirs["FRAME_HEADER"]) == (len(_wire.MAIN), _wire._HEAD.size)
    assert theirs["KEEP_UNSAID"] == _options.MAX_OUTPUT


def test_root_has_the_same_capabilities_whoever_takes_the_others_away() -> None:
    cage = (NATIVE / "cage.c").read_text(encoding="utf-8")
    kept = re.search(r"#define KEPT_CAPS (0x[0-9a-f]+)ULL", cage)
    assert kept
    assert int(kept[1], 16) == sum(1 << CAPABILITIES.index(name.lower()) for name in KEPT)


def test_gvisors_descriptors_are_those_that_the_box_gives() -> None:
    theirs = enums("runtime.h")[""]
    assert list(theirs.values()) == [gvisor._LINK, gvisor._AGENT, gvisor._LOG]


def test_both_number_as_many_folders_that_wait_for_a_sandbox() -> None:
    assert enums("upper.h")[""]["MOST_UNUSED"] == uppers.MOST_UNUSED
    assert max(uppers._TRIED) < uppers.MOST_UNUSED
