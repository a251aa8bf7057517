"""A. Who it is, what it holds, what it sees of itself."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from openmodal.engines.embedded import Embedded
from openmodal.errors import InvalidError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually, python
from tests.security import attack, posture
from tests.security.attack import sh, works
from tests.security.conftest import Weaken

Create = Callable[..., Sandbox]


def with_commands(sandbox: Sandbox) -> Sandbox:
    """Commands of every kind: of root and a user, with a terminal, in the background of a finished one."""
    sandbox.spawn("sleep", "54321")
    sandbox.spawn("sleep", "54321", pty=True)
    sandbox.exec("sh", "-c", "sleep 54321 >/dev/null 2>&1 &")
    return sandbox


def test_every_task_is_as_the_golden_file_says(engine: Embedded, create: Create) -> None:
    """A0: seen from outside; each thread of each process."""
    sandbox = with_commands(create())
    eventually(lambda: sh(sandbox, "ps").count("sleep 54321") == 3)
    assert posture.of(engine, sandbox) == posture.golden()


@pytest.mark.parametrize(
    ("controls", "fact"),
    [
        (("seccomp",), "seccomp"),
        (("caps",), "capabilities"),
        (("nnp", "seccomp"), "no_new_privs"),  # whoever may gain rights may install no filter
        (("ids",), "ids of the machine"),
    ],
)
def test_the_golden_file_notices_a_sandbox_without(
    weaken: Weaken, engine: Embedded, controls: tuple[str, ...], fact: str
) -> None:
    """A0: the control."""
    golden = posture.golden()["every task"]
    found = posture.of(engine, with_commands(weaken(*controls)))["every task"]
    assert isinstance(found, dict)
    assert fact in {key for key in golden if golden[key] != found[key]}


def test_no_namespace_is_the_machines(inside: Sandbox, bare: Sandbox, weaken: Weaken) -> None:
    """A1: also seen from inside."""

    def shared(sandbox: Sandbox) -> set[str]:
        links = [sh(sandbox, f"readlink /proc/self/ns/{name}").strip() for name in posture.NAMESPACES]
        return {link.split(":")[0] for link in links} & {
            name
            for name, link in zip(posture.NAMESPACES, links, strict=True)
            if link == os.readlink(f"/proc/self/ns/{name}")
        }

    assert shared(inside) == set()
    assert shared(bare) == {"user"}
    assert shared(weaken(net=[("net", "host")])) == {"net"}


def test_its_root_is_nobody_and_no_two_sandboxes_share_an_id(inside: Sandbox, bare: Sandbox, create: Create) -> None:
    """A2: seen from inside, and checked on this machine."""
    ranges = [
        tuple(map(int, sh(sandbox, "cat /proc/self/uid_map").split())) for sandbox in (inside, create(), create())
    ]
    first = [outside for _, outside, _ in ranges]
    assert all(within == 0 and outside >= 100_000 and count == 65_536 for within, outside, count in ranges)
    assert len({outside // 65_536 for outside in first}) == 3
    assert sh(bare, "cat /proc/self/uid_map").split() == ["0", "0", str((1 << 32) - 1)], "the control"


def test_no_mount_leads_to_the_machine(inside: Sandbox, weaken: Weaken, tmp_path: Path) -> None:
    """A4: no folder of the machine, and nothing that is mounted later comes in."""
    golden = set(posture.golden()["mounts"])

    def foreign(sandbox: Sandbox) -> set[str]:
        return set(posture.mounts(sh(sandbox, "cat /proc/self/mountinfo"))) - golden

    assert foreign(inside) == set()
    assert "shared:" not in sh(inside, "cat /proc/self/mountinfo")
    assert "master:" not in sh(inside, "cat /proc/self/mountinfo")
    found = foreign(weaken(binds=[(str(tmp_path), "/mnt/host")]))
    assert any(line.startswith("/mnt/host ") for line in found), "the control"


def test_commands_hold_three_descriptors_and_none_of_the_makers(create: Create, tmp_path: Path) -> None:
    """A5: of a command, of one with a terminal, of the main command."""
    with open(tmp_path / "secret", "w") as file:
        os.set_inheritable(file.fileno(), True)
        plain = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, check=True
        )
        assert str(tmp_path / "secret") in plain.stdout, "the control"
        script = "for n in /proc/self/fd/*; do readlink $n; done"
        main = create("sh", "-c", script)
        listings = [main.stdout.read(), create().exec("sh", "-c", script).stdout.read()]
        listings.append(create().exec("sh", "-c", script, pty=True).stdout.read())
    for listing in listings:
        kinds = {line.strip().split(":")[0].split("/")[-1] for line in listing.splitlines()}
        assert kinds <= {"pipe", "null", "fd", "0", "1", "", "socket"} - {"socket"}, listing
    assert works_not(create(), "ls /proc/1/fd")


def works_not(sandbox: Sandbox, script: str) -> bool:
    return not attack.works(sandbox, script)


def test_secrets_are_in_no_command_line(create: Create) -> None:
    """A7: of the machine; inside, the user's own command may hold them."""
    canary, word = secrets.token_hex(16), secrets.token_hex(16)
    sandbox = create(env={"TOKEN": canary})
    sandbox.spawn("sh", "-c", f"sleep 54321; : {word}")

    def lines() -> bytes:
        found = b""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                found += path.read_bytes()
        return found

    eventually(lambda: word.encode() in lines())  # the control
    assert canary.encode() not in lines()


def test_limits_per_process_are_finite(inside: Sandbox) -> None:
    """A8: hard ones, so that nobody inside raises them."""

    def fine(limits: str) -> bool:
        names = {**posture.LIMITS, "Max open files": "nofile"}
        hard = {short: limits.split(long)[1].split()[1] for long, short in names.items()}
        bounds = {"core": 1, "memlock": 65_536, "nofile": 65_536, "nproc": 512, "sigpending": 4096, "msgqueue": 819_200}
        return all(hard[name] != "unlimited" and int(hard[name]) <= most for name, most in bounds.items())

    assert fine(sh(inside, "cat /proc/self/limits"))
    assert not fine(Path("/proc/self/limits").read_text()), "the control"


def test_control_groups_show_the_sandboxs_own_only_and_can_be_changed_by_nobody(
    inside: Sandbox, engine: Embedded, create: Create
) -> None:
    """A10: the group is the root of what it sees."""
    paths = {line.split(":")[2] for line in sh(inside, "cat /proc/self/cgroup").splitlines()}
    assert paths <= {"/"}
    create()
    processes = set(sh(inside, "sort -un $(find /sys/fs/cgroup -name cgroup.procs)").split())
    assert "1" in processes, "the control: it looks at something"
    assert "0" not in processes, "a process of another namespace"
    assert (
        sh(inside, "find /sys/fs/cgroup -mindepth 1 -type d -name 'attack-*' -o -name openmodal -o -name release_agent")
        == ""
    )
    writable = sh(inside, "find /sys/fs/cgroup -type f -exec sh -c 'for f; do (: >> $f) 2>&1 && echo $f; done' sh {} +")
    said = set(re.findall(r": ([^:\n]+)$", writable, re.MULTILINE))
    assert said and said <= {"Permission denied", "Read-only file system"}, writable
    assert not re.search("^/", writable, re.MULTILINE), "one can be written to"
    assert not works(
        inside, "mkdir /sys/fs/cgroup/om || for d in /sys/fs/cgroup/*/; do mkdir $d/om && exit; done; exit 1"
    )
    init = attack.members(engine, inside)[0]
    assert "/openmodal/" in Path(f"/proc/{init}/cgroup").read_text(), "the control: that is where it is"


def test_no_group_of_the_caller_comes_along(engine_name: str, armed: Image) -> None:
    """A11: the caller has groups, as a user of a desktop has."""
    said = python(
        """
        os.setgroups([4, 20, 24, 27, 999])
        assert os.getgroups() == [4, 20, 24, 27, 999]
        with openmodal.Sandbox.create(app=openmodal.App("attack"), image=image, engine=argv[0], timeout=60) as sandbox:
            print(sandbox.exec("grep", "Groups", "/proc/self/status").stdout.read().split())
            print(sandbox.exec("id", "-G", user="agent").stdout.read().split())
        """,
        engine_name,
        image=armed,
    )
    assert said.splitlines() == ["['Groups:']", "['1000', '50']"]


WHERE: dict[str, Callable[[Create, Image, int], object]] = {
    "of a command": lambda create, image, n: create().exec("ls", ".", workdir=f"/proc/self/fd/{n}"),
    "of a command, by a link": lambda create, image, n: linked(create()).exec("ls", ".", workdir=f"/tmp/l{n}"),
    "of a sandbox": lambda create, image, n: create(workdir=f"/proc/self/fd/{n}").exec("ls", "."),
    "of an image": lambda create, image, n: create(image=image.workdir(f"/proc/self/fd/{n}")).exec("ls", "."),
}


def linked(sandbox: Sandbox) -> Sandbox:
    sh(
        sandbox,
        "for n in $(seq 3 30); do ln -s /proc/self/fd/$n /tmp/l$n; done; mkdir /tmp/fine; ln -s fine /tmp/lfine",
    )
    assert sandbox.exec("pwd", workdir="/tmp/lfine").stdout.read() == "/tmp/fine\n", "the control"
    return sandbox


@pytest.mark.parametrize("where", WHERE)
def test_no_working_directory_is_reached_through_a_descriptor(create: Create, armed: Image, where: str) -> None:
    """A13: as CVE-2024-21626 did, with the numbers that a descriptor could have."""
    for number in (3, 4, 5, 6, 7, 8, 9, 12, 30):
        with pytest.raises(InvalidError, match="workdir"):
            WHERE[where](create, armed, number)


def test_only_its_own_processes_are_there(inside: Sandbox) -> None:
    """A14: and process 1 is the agent."""
    word = secrets.token_hex(8)
    with subprocess.Popen(["sh", "-c", f"read x; : {word}"], stdin=subprocess.PIPE) as canary:
        eventually(lambda: word.encode() in Path(f"/proc/{canary.pid}/cmdline").read_bytes())  # the control
        lines = sh(inside, "ps -o pid,args").splitlines()
        canary.communicate(b"\n")
    assert len(lines) <= 8
    assert "agent" in lines[1]
    assert lines[1].split()[0] == "1"
    assert word not in "".join(lines)
