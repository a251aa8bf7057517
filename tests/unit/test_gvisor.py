"""What gVisor's runsc is told: values made from a box, and dates read from its own words."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from msgspec.structs import replace

from openmodal import _args
from openmodal.engines import asked
from openmodal.engines.embedded import cgroup, gvisor, plan
from openmodal.errors import InvalidError

BOX = plan.Box(
    id="app-0123abcd",
    folder=Path("/state/sandboxes/app-0123abcd"),
    lowers=("/layers/a",),
    upper="/u/upper",
    work="/u/work",
    ids=[("ids", "range")],
    net=[("net", "none")],
    servers="",
    timeout=60,
    limits=asked.Limits(memory=1 << 30, cpu=1.0, pids=77),
    groups=cgroup.Plan((), ()),
    env=(("LANG", "C.UTF-8"),),
)


def lines(box: plan.Box) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in plan.encode(box).decode().split("\0")[:-1]:
        key, _, value = entry.partition("=")
        found.setdefault(key, []).append(value)
    return found


def test_the_box_stays_and_the_plan_gets_three_kinds_of_lines() -> None:
    before, after = lines(BOX), lines(gvisor.inside(BOX, "/usr/bin/runsc"))
    assert {key for key in before if after[key] != before[key]} == {"rlimit"}
    assert set(after) - set(before) == {"runtime", "runtime_arg", "runtime_config"}
    assert after["runtime"] == ["/usr/bin/runsc"]
    assert json.loads(after["runtime_config"][0]) == gvisor.config(BOX)


def test_a_box_without_gvisor_has_none_of_them() -> None:
    assert not any(key.startswith("runtime") for key in lines(BOX))


def test_no_option_opens_the_machine_to_the_sandbox() -> None:
    words = lines(gvisor.inside(BOX, "/usr/bin/runsc"))["runtime_arg"]
    options = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--"))
    wanted = {"network": "sandbox", "host-uds": "none", "host-fifo": "none", "directfs": "false", "net-raw": "false"}
    assert {key: options[key] for key in wanted} == wanted
    assert not {"rootless", "allow-packet-socket-write", "network=host"} & set(options)
    assert not any("TESTONLY" in word or "unsafe" in word for word in words)


def test_the_agent_is_process_1_and_gets_what_the_plan_says() -> None:
    box = replace(BOX, idle=1.5, user="agent", workdir="/srv", argv=("sleep", "--", "1"))
    assert gvisor.config(box)["process"]["args"] == [
        *("openmodal-agent", "init", "--control-fd", "3", "--idle-ms", "1500", "--user", "agent"),
        *("--workdir", "/srv", "--pids", "77", "--main-flags", "2", "--", "sleep", "--", "1"),
    ]


def test_the_capabilities_are_those_of_the_native_box() -> None:
    """KEPT_CAPS in native/cage.c; the numbers are those of capabilities(7)."""
    numbers = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7}
    numbers |= {"NET_BIND_SERVICE": 10, "SYS_CHROOT": 18, "SETFCAP": 31}
    capabilities = gvisor.config(BOX)["process"]["capabilities"]
    for kind in ("bounding", "effective", "permitted"):
        assert sum(1 << numbers[name.removeprefix("CAP_")] for name in capabilities[kind]) == 0x800404FB
    assert set(capabilities) == {"bounding", "effective", "permitted"}


def test_limits_of_processes_are_those_of_the_plan() -> None:
    limits = {limit["type"]: (limit["soft"], limit["hard"]) for limit in gvisor.config(BOX)["process"]["rlimits"]}
    assert limits["RLIMIT_NPROC"] == (77, 77)
    assert limits["RLIMIT_NOFILE"] == (4096, 65536)
    assert len(limits) == len(lines(BOX)["rlimit"])


def test_groups_have_room_for_runsc_itself() -> None:
    outer = asked.around_gvisor(BOX.limits)
    assert outer.memory - BOX.limits.memory == 48 << 20
    assert outer.pids == 2 * 77 + 128
    assert outer.cpu == BOX.limits.cpu
    nproc = next(line for line in lines(gvisor.inside(BOX, "/usr/bin/runsc"))["rlimit"] if line.endswith(" 282 282"))
    assert nproc, "or the machine's kernel would count runsc's tasks against the sandbox's limit"


def test_home_is_left_to_the_agent_unless_somebody_set_it() -> None:
    assert gvisor.config(BOX)["process"]["env"] == ["HOME=", "LANG=C.UTF-8"]
    assert "HOME=/srv" in gvisor.config(replace(BOX, env=(("HOME", "/srv"),)))["process"]["env"]


def test_what_json_cannot_hold_is_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidError, match="UTF-8"):
        gvisor.inside(replace(BOX, argv=("echo", "\udcff")), "/usr/bin/runsc")


@pytest.mark.parametrize(
    ("said", "released"),
    [
        ("runsc version release-20260817.0\nspec: 1.1.0", date(2026, 8, 17)),
        ("runsc version 0.0~20240729.0\nspec: 1.0.2-dev", date(2024, 7, 29)),
        ("runsc version VERSION_MISSING", None),
        ("runsc version release-20269999.0", None),
        ("", None),
    ],
)
def test_the_date_of_a_release_is_in_its_version(said: str, released: date | None) -> None:
    assert gvisor.released(said) == released


@pytest.mark.parametrize(
    ("given", "meant"), [(None, "native"), ("default", "native"), ("native", "native"), ("gvisor", "gvisor")]
)
def test_names_of_runtimes(given: str | None, meant: str) -> None:
    assert _args.runtime(given) == meant


@pytest.mark.parametrize("given", ["runsc", "", 1, True, ["gvisor"]])
def test_an_unknown_runtime_is_refused_by_name(given: object) -> None:
    with pytest.raises(InvalidError, match="gvisor"):
        _args.runtime(given)
