"""What the agent promises in docs/protocol.md about commands and links, held against the real program."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.native.conftest import Agent, Start
from tests.native.frames import (
    ATTACHED,
    EXIT,
    PEEK,
    PTY,
    STDERR,
    STDERR_NULL,
    STDERR_TO_STDOUT,
    STDIN,
    STDOUT,
    STDOUT_NULL,
    WITH_STDIN,
    Closed,
    Link,
    Refused,
    frame,
    io_frame,
    many,
    start_frame,
    text,
)

KEPT = 8 << 20
OK, LOOK = 0x23, 0x1B


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def eventually(true: Callable[[], object], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.01)
    return False


def read_pids(path: Path, count: int) -> list[int]:
    assert eventually(lambda: path.exists() and len(path.read_text().split()) >= count)
    return [int(pid) for pid in path.read_text().split()]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


# ---- exits ----


def test_connections_come_over_the_control_socket_where_there_is_no_listening_one(program: Path) -> None:
    """As in gVisor, whose sandboxes have no sockets of the machine."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [str(program), "init", "--control-fd", str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as agent, ours:
        theirs.close()
        ours.settimeout(20)
        assert ours.recv(100) == b"ready"
        for word in (b"one", b"two"):
            here, there = socket.socketpair()
            socket.send_fds(ours, [b"n"], [there.fileno()])
            there.close()
            link = Link(here)
            assert link.run("echo", word.decode()).stdout == word + b"\n"
            link.close()
        ours.send(b"a message without a connection")
        here, there = socket.socketpair()
        socket.send_fds(ours, [b"n"], [there.fileno()])
        there.close()
        Link(here).close()
        ours.close()
        assert agent.wait(300) == 0, "it ends with its supervisor"


def test_the_output_and_the_exit_come_back(link: Link) -> None:
    result = link.run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
    assert (result.exit.killed, result.exit.code, result.exit.timed_out, result.exit.oom) == (0, 3, 0, 0)
    assert 0 < result.exit.started_us <= result.exit.ended_us
    assert abs(result.exit.ended_us / 1e6 - time.time()) < 60 and result.exit.rss_kib > 0


@pytest.mark.parametrize("code", [0, 1, 127, 137, 255])
def test_exit_codes_are_the_kernels(link: Link, code: int) -> None:
    ended = link.run("sh", "-c", f"exit {code}").exit
    assert (ended.killed, ended.code) == (0, code)


@pytest.mark.parametrize("number", [1, 2, 9, 11, 15, 34, 64])
def test_a_signal_is_not_a_code(link: Link, number: int) -> None:
    ended = link.run("sh", "-c", f"kill -{number} $$; sleep 5").exit
    assert (ended.killed, ended.code) == (1, number)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("no-such-program", 127, b"no-such-program: not found"),
        ("/no/such/program", 127, b"/no/such/program: not found"),
        ("/etc/passwd/x", 127, b"not found"),
        ("/etc/passwd", 126, b"/etc/passwd: "),
        ("/etc", 126, b"/etc: "),
        ("", 127, b"not found"),
    ],
)
def test_what_cannot_be_run_is_a_result(link: Link, name: str, code: int, words: bytes) -> None:
    result = link.run(name)
    assert (result.exit.killed, result.exit.code, result.stdout) == (0, code, b"")
    assert result.stderr.startswith(b"openmodal: ") and words in result.stderr and result.stderr.count(b"\n") == 1


def test_a_script_without_its_interpreter_is_127(link: Link, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert link.run(str(script)).exit.code == 127


def test_what_is_no_program_is_126(link: Link, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("just text")
    file.chmod(0o755)
    assert link.run(str(file)).exit.code == 126


def test_cpu_time_of_children_counts(link: Link) -> None:
    ended = link.run("sh", "-c", "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; true").exit
    assert ended.cpu_us > 20_000


# ---- what a command starts with ----


def test_only_three_descriptors_are_open(link: Link) -> None:
    shown = link.run("ls", "/proc/self/fd").stdout.split()
    assert shown == [b"0", b"1", b"2", b"3"]  # 3 is the folder that ls lists


def test_signals_umask_and_session_are_fresh(link: Link) -> None:
    status = link.run(
        "sh", "-c", "umask; grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ps -o sid= -p $$; echo $$"
    ).stdout.split()
    assert status[0] == b"0022"
    assert status[2] == status[4] == b"0" * 16
    assert status[-1] == status[-2]


def test_the_environment_has_defaults_and_start_wins(start: Start) -> None:
    link = start(env={"BASE": "1", "BOTH": "base", "PATH": "/usr/bin:/bin"}).link()
    env = dict(
        line.split("=", 1)
        for line in link.run("env", env=["BOTH=start", "NEW=2", "EMPTY="]).stdout.decode().splitlines()
    )
    assert env == {
        "BASE": "1",
        "BOTH": "start",
        "NEW": "2",
        "EMPTY": "",
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": env["HOME"],
        "USER": env["USER"],
    }


def test_the_path_is_the_commands_own(link: Link, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("#!/bin/sh\necho mine\n")
    own.chmod(0o755)
    assert link.run("own", env=[f"PATH=/nowhere:{tmp_path}"]).stdout == b"mine\n"


def test_workdirs(link: Link, tmp_path: Path) -> None:
    assert link.run("pwd").stdout == b"/\n"
    assert link.run("pwd", workdir=str(tmp_path)).stdout.decode().strip() == str(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "trick").symlink_to("/proc/self")
    for wrong in (
        "relative",
        "/no/such/folder",
        str(tmp_path / "file"),
        "/proc/self/fd/3",
        "/proc",
        str(tmp_path / "trick"),
    ):
        with pytest.raises(Refused) as caught:
            link.start("true", workdir=wrong)
        assert caught.value.code == 3 and wrong in caught.value.sentence
    link.ping()


@pytest.mark.root
def test_users(link: Link) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    assert link.run("id", "-u", user="0").stdout == b"0\n"
    assert link.run("sh", "-c", "id -u; id -g; echo $HOME", user="4242:77", env=[]).stdout.split()[:2] == [
        b"4242",
        b"77",
    ]
    assert b"uid=65534(nobody)" in link.run("id", user="nobody").stdout
    for wrong in ("no-such-user", "nobody:no-such-group", "4294967295", " root", "0x0"):
        with pytest.raises(Refused) as caught:
            link.start("true", user=wrong)
        assert caught.value.code == 3 and wrong[:20] in caught.value.sentence


# ---- output ----


def test_a_hundred_megabytes_on_both_streams(link: Link) -> None:
    script = "head -c 100000000 /dev/zero & head -c 100000000 /dev/zero | tr '\\0' A >&2; wait"
    id = link.start("sh", "-c", script)
    got = {1: 0, 2: 0}
    while True:
        answer = link.io(id, STDOUT | STDERR | EXIT, out=got[1], err=got[2])
        for stream, data in answer.data.items():
            assert answer.offset[stream] == got[stream]
            assert data.strip(b"\0A"[stream - 1 : stream]) == b""
            got[stream] += len(data)
        if answer.exit:
            break
    assert got == {1: 100_000_000, 2: 100_000_000}


def test_an_unfinished_line_is_output(link: Link) -> None:
    assert link.run("printf", "no newline").stdout == b"no newline"


def test_reading_goes_on_after_a_lost_link(agent: Agent) -> None:
    first = agent.link()
    id = first.start("sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.02; done")
    head = first.io(id, STDOUT).data[1]
    first.close()
    second = agent.link()
    assert head + second.finish(id, out=len(head)).stdout == b"1\n2\n3\n4\n5\n6\n7\n8\n9\n"


def test_what_was_not_received_comes_again(link: Link) -> None:
    id = link.start("echo", "hello")
    link.io(id, EXIT)
    assert link.io(id, STDOUT).data == link.io(id, STDOUT).data == {1: b"hello\n"}
    answer = link.io(id, STDOUT, out=3)
    assert answer.data == {1: b"lo\n"} and answer.offset == {1: 3}
    assert link.io(id, STDOUT).offset == {1: 3}, "what was received is forgotten"


def test_with_a_reader_a_full_buffer_blocks(link: Link) -> None:
    id = link.start("sh", "-c", "head -c 30000000 /dev/zero; echo written >&2")
    assert not link.io(id, STDERR, wait=300).data
    assert len(link.finish(id).stdout) == 30_000_000


def test_without_a_reader_the_newest_is_kept(link: Link) -> None:
    id = link.start("sh", "-c", "head -c 20000000 /dev/zero; echo end", flags=0, keep=0)
    answer = link.io(id, EXIT)
    assert answer.exit and answer.exit.code == 0
    answer = link.io(id, STDOUT)
    assert answer.offset[1] == 20_000_004 - KEPT
    rest = link.finish(id, out=20_000_000)
    assert rest.stdout == b"end\n"


def test_without_a_reader_the_oldest_is_kept_too_and_the_offsets_tell_the_gap(link: Link) -> None:
    id = link.start("sh", "-c", "seq 10000000 12499999", flags=0, keep=3_000_000)
    assert link.io(id, EXIT).exit
    whole = b"".join(b"%d\n" % number for number in range(10_000_000, 12_500_000))
    got, at = bytearray(), 0
    jumps = []
    while data := (answer := link.io(id, STDOUT, out=at)).data.get(1, b""):
        if answer.offset[1] != at:
            jumps.append((at, answer.offset[1]))
        at = answer.offset[1] + len(data)
        assert data == whole[answer.offset[1] : at]
        got += data
    assert jumps == [(3_000_000, len(whole) - KEPT)]
    assert len(got) == 3_000_000 + KEPT


@pytest.mark.parametrize(
    ("head", "tail"), [(0, 0), (0, 1_000), (1_000, 0), (500, 700), (9_000_000, 0), (0, KEPT), (9_000_000, KEPT)]
)
@pytest.mark.parametrize("flags", [0, ATTACHED], ids=["unread", "read"])
def test_of_a_limited_stream_the_beginning_and_the_end_are_given(link: Link, head: int, tail: int, flags: int) -> None:
    """It never waits for a reader beyond its limit, and what is left out is told by the offsets, also where nothing follows."""
    id = link.start("seq", "10000000", "11199999", flags=flags, keep=head, tail=tail)
    whole = b"".join(b"%d\n" % number for number in range(10_000_000, 11_200_000))
    got, at, jumps = bytearray(), 0, []
    ended = False
    while not ended:
        answer = link.io(id, STDOUT | EXIT, out=at)
        ended = bool(answer.exit)
        if 1 in answer.data:
            offset, data = answer.offset[1], answer.data[1]
            jumps += [(at, offset)] if offset != at else []
            at = offset + len(data)
            assert data == whole[offset:at]
            got += data
    left_out = [] if head + tail >= len(whole) else [(head, len(whole) - tail)]
    assert jumps == left_out
    assert at == len(whole)
    assert len(got) == min(head + tail, len(whole))


def test_what_is_below_the_limit_is_whole(link: Link) -> None:
    id = link.start("sh", "-c", "echo out; echo err >&2", keep=3, tail=3)
    result = link.finish(id)
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


def test_the_tail_is_given_when_it_is_complete(link: Link) -> None:
    """What was given before could have been followed by something else than what came behind it."""
    id = link.start("sh", "-c", "printf 12345678; read go; printf 9", flags=ATTACHED | WITH_STDIN, keep=2, tail=4)
    assert link.io(id, STDOUT).data == {1: b"12"}
    assert not link.io(id, STDOUT, out=2, wait=200).data
    link.io(id, STDIN, data=b"go\n", ends=True)
    answer = link.io(id, STDOUT | EXIT, out=2)
    assert (answer.offset[1], answer.data[1]) == (5, b"6789")


def test_who_only_peeks_may_read_again_until_he_says_what_was_received(agent: Agent) -> None:
    """A client behind a client reads less than was sent to him when a connection breaks: he asks again, from further back."""
    link = agent.link()
    id = link.start("sh", "-c", "seq 10000000 12499999", flags=0)
    assert link.io(id, EXIT).exit
    got, acknowledged, cuts = bytearray(), 0, 0
    while data := link.io(id, STDOUT | PEEK, out=len(got)).data.get(1, b""):
        got += data
        if len(got) - acknowledged > 3 << 20:
            acknowledged = len(got) - (2 << 20)
            link.io(id, STDOUT, out=acknowledged, most=0, wait=0)
        if len(got) >> 22 > cuts:
            cuts += 1
            link.close()
            link, got = agent.link(), got[:acknowledged]
    assert cuts >= 3
    assert got == b"".join(b"%d\n" % number for number in range(10_000_000, 12_500_000))
    assert link.io(id, STDOUT, out=0).offset[1] == acknowledged, "what was received is forgotten"


def numbers(count: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(10_000_000, 10_000_000 + count))


def all_of(link: Link, id: bytes, want: int = STDOUT, out: int = 0) -> tuple[bytes, list[int]]:
    """What is there of stdout from an offset on, and at which of its bytes something is missing."""
    got, at, jumps = bytearray(), out, []
    while data := (answer := link.io(id, want, out=at)).data.get(1, b""):
        if answer.offset[1] != at:
            jumps.append(len(got))
        got += data
        at = answer.offset[1] + len(data)
    return bytes(got), jumps


def test_what_was_peeked_at_waits_on_the_disk_and_holds_nothing_up(link: Link) -> None:
    """A client behind a client says late, and in large steps, what it has received."""
    id = link.start("seq", "10000000", "14999999", flags=ATTACHED)
    for _ in range(2):
        assert all_of(link, id, STDOUT | PEEK) == (numbers(5_000_000), [])


def test_what_was_peeked_at_is_dropped_where_the_disk_has_no_room_for_it(link: Link) -> None:
    id = link.start("seq", "10000000", "12499999", flags=ATTACHED, keep=3_000_000)
    whole = numbers(2_500_000)
    assert all_of(link, id, STDOUT | PEEK) == (whole, [])
    got, jumps = all_of(link, id, STDOUT | PEEK)
    assert jumps == [3_000_000]
    assert (got[:3_000_000], got[3_000_000:]) == (whole[:3_000_000], whole[-(len(got) - 3_000_000) :])


def test_room_on_the_disk_is_used_again_for_what_was_peeked_at(link: Link) -> None:
    id = link.start("seq", "10000000", "17499999", flags=ATTACHED, keep=12 << 20)
    whole, at, received = numbers(7_500_000), 0, 0
    while data := link.io(id, STDOUT | PEEK, out=at).data.get(1, b""):
        at += len(data)
        if at - received >= 16 << 20:
            again = link.io(id, STDOUT | PEEK, out=received)
            assert again.offset[1] == received
            assert again.data[1] == whole[received : received + len(again.data[1])]
            received = at - (12 << 20)
            link.io(id, STDOUT, out=received, most=0, wait=0)
    assert at == len(whole)


def test_who_takes_loses_nothing_to_who_peeks(agent: Agent) -> None:
    taking, peeking = agent.link(), agent.link()
    id = taking.start("seq", "10000000", "12499999", flags=ATTACHED, keep=1_000_000)
    first = taking.io(id, STDOUT, most=1000).data[1]
    ahead = len(first)
    while data := peeking.io(id, STDOUT | PEEK, out=ahead, wait=1000).data.get(1, b""):
        ahead += len(data)
    rest, jumps = all_of(taking, id, out=len(first))
    assert (first + rest, jumps) == (numbers(2_500_000), [])


def test_a_background_child_does_not_hold_up_the_end(link: Link, tmp_path: Path) -> None:
    child = f"trap '' PIPE; until [ -e {tmp_path}/go ]; do sleep 0.01; done; echo late; echo $? > {tmp_path}/late"
    id = link.start("sh", "-c", f"({child}) & echo hi")
    assert link.finish(id).stdout == b"hi\n"
    (tmp_path / "go").touch()
    assert eventually(lambda: (tmp_path / "late").exists() and (tmp_path / "late").read_text() == "0\n")
    assert link.finish(id, out=3).stdout == b"", "what came after the end is not output"


def test_a_background_child_that_writes_a_lot_is_not_blocked(link: Link, tmp_path: Path) -> None:
    id = link.start("sh", "-c", f"(sleep 0.1; head -c 5000000 /dev/zero; touch {tmp_path}/done) & true")
    assert link.finish(id).exit.code == 0
    assert eventually((tmp_path / "done").exists)


def test_streams_can_be_left_out_or_joined(link: Link) -> None:
    both = ("sh", "-c", "echo out; echo err >&2")
    assert link.run(*both, flags=ATTACHED | STDOUT_NULL).stdout == b""
    assert link.run(*both, flags=ATTACHED | STDERR_NULL).stderr == b""
    joined = link.run(*both, flags=ATTACHED | STDERR_TO_STDOUT)
    assert (joined.stdout, joined.stderr) == (b"out\nerr\n", b"")


def test_an_offset_behind_the_output_is_refused(link: Link) -> None:
    id = link.start("echo", "hello")
    link.io(id, EXIT)
    with pytest.raises(Refused) as caught:
        link.io(id, STDOUT, out=7)
    assert caught.value.code == 3


def test_waiting_ends_after_the_wait(link: Link) -> None:
    id = link.start("sleep", "60")
    began = time.monotonic()
    answer = link.io(id, STDOUT | EXIT, wait=100)
    assert 0.09 < time.monotonic() - began < 30 and not answer.data and answer.state & ~8 == 0
    link.kill(id, 9)


# ---- stdin ----


def feed(link: Link, id: bytes, data: bytes, ends: bool = True) -> tuple[bytes, object]:
    """Writes and reads at once, as the SDK does."""
    sent, got, ended = 0, bytearray(), None
    while ended is None:
        piece = data[sent : sent + 300_000]
        last = sent + len(piece) == len(data)
        want = STDOUT | EXIT | (STDIN if piece or (ends and sent == len(data)) else 0)
        answer = link.io(id, want, out=len(got), stdin=sent, data=piece, ends=ends and last, wait=100)
        got += answer.data.get(1, b"")
        sent = max(sent, answer.accepted)
        ended = answer.exit
    return bytes(got), ended


def test_stdin_bigger_than_every_buffer_comes_back_from_cat(link: Link) -> None:
    data = os.urandom(1 << 20) * 12
    id = link.start("cat", flags=ATTACHED | WITH_STDIN)
    got, _ = feed(link, id, data)
    assert got == data


def test_without_stdin_it_is_empty(link: Link) -> None:
    assert link.run("cat").stdout == b""


def test_a_repeated_write_writes_nothing_twice(link: Link) -> None:
    id = link.start("cat", flags=ATTACHED | WITH_STDIN)
    for _ in range(3):
        assert link.io(id, STDIN, data=b"once ").accepted == 5
    assert link.io(id, STDIN, stdin=2, data=b"ce more", ends=True).accepted == 9
    assert link.finish(id).stdout == b"once more"


def test_a_gap_in_stdin_is_refused(link: Link) -> None:
    id = link.start("cat", flags=ATTACHED | WITH_STDIN)
    with pytest.raises(Refused):
        link.io(id, STDIN, stdin=1, data=b"x")
    link.kill(id, 9)


def test_a_command_that_does_not_read_blocks_only_its_stdin(link: Link) -> None:
    id = link.start("sleep", "60", flags=ATTACHED | WITH_STDIN)
    sent = 0
    while (answer := link.io(id, STDIN, stdin=sent, data=bytes(1 << 20), wait=200)).accepted > sent:
        sent = answer.accepted
    assert 1 << 20 <= sent < 4 << 20
    assert link.run("echo", "still here").stdout == b"still here\n"
    link.kill(id, 9)


def test_a_closed_stdin_is_told(link: Link) -> None:
    id = link.start("sh", "-c", "exec <&-; sleep 60", flags=ATTACHED | WITH_STDIN)
    assert link.io(id, STDIN, data=b"").state & STDIN
    link.kill(id, 9)
    id = link.start("true", flags=ATTACHED | WITH_STDIN)
    link.io(id, EXIT)
    assert link.io(id, STDIN, data=b"too late").state & STDIN


# ---- starting ----


def test_start_is_idempotent(link: Link, tmp_path: Path) -> None:
    id = os.urandom(16)
    once = start_frame(id, "sh", "-c", f"echo x >> {tmp_path}/count; sleep 0.2")
    link.send(once, once, once)
    answers = [link.started() for _ in range(3)]
    assert [known for _, known in answers] == [False, True, True] and len({pid for pid, _ in answers}) == 1
    link.finish(id)
    link.send(once)
    assert link.started()[1]
    assert (tmp_path / "count").read_text() == "x\n"


def test_a_released_command_is_unknown(link: Link) -> None:
    id = link.start("true")
    link.finish(id)
    link.send(frame(0x14, id))
    with pytest.raises(Refused) as caught:
        link.io(id, EXIT)
    assert caught.value.code == 2


def test_release_of_a_running_command_waits_for_its_end(link: Link) -> None:
    id = link.start("sleep", "0.2")
    link.send(frame(0x14, id))
    assert link.io(id, 0, wait=0).exit is None

    def forgotten() -> bool:
        try:
            link.io(id, 0, wait=0)
        except Refused as error:
            return error.code == 2
        return False

    assert eventually(forgotten)


def test_the_oldest_finished_are_forgotten_at_the_limit(link: Link) -> None:
    first = link.start("true", flags=STDOUT_NULL | STDERR_NULL)
    link.io(first, EXIT)
    ids = [struct.pack("<QQ", 1, number) for number in range(4096)]
    for at in range(0, 4096, 64):
        for id in ids[at : at + 64]:
            link.send(start_frame(id, "/nonexistent", flags=STDOUT_NULL | STDERR_NULL), io_frame(id, EXIT))
        for _ in ids[at : at + 64]:
            link.started()
            assert link.progress().exit
    with pytest.raises(Refused):
        link.io(first, EXIT)
    assert link.io(ids[-1], EXIT).exit


def test_an_empty_argv_is_refused(link: Link) -> None:
    with pytest.raises(Refused) as caught:
        link.start()
    assert caught.value.code == 3


# ---- killing ----

TREE = """
echo $$ >> {0}
setsid sh -c 'echo $$ >> {0}; (sleep 300 & echo $! >> {0}; wait) & sleep 300 & echo $! >> {0}; wait' &
sleep 300 & echo $! >> {0}
(setsid sh -c 'sleep 300 & echo $! >> {0}' &)
wait
"""


def test_a_timeout_kills_the_whole_tree(link: Link, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    id = link.start("sh", "-c", TREE.format(pids), timeout=700)
    result = link.finish(id)
    assert (result.exit.killed, result.exit.code, result.exit.timed_out) == (1, 9, 1)
    assert 0.6 < (result.exit.ended_us - result.exit.started_us) / 1e6 < 3
    seen = read_pids(pids, 6)
    assert eventually(lambda: not any(map(alive, seen)), 2)


def test_kill_tree_leaves_none_when_it_answers(link: Link, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    id = link.start("sh", "-c", TREE.format(pids))
    seen = read_pids(pids, 6)
    assert all(map(alive, seen))
    link.kill(id, 9, tree=True)
    assert not any(map(alive, seen))
    assert link.finish(id).exit.code == 9


def test_kill_tree_reaches_what_a_finished_command_left(link: Link, tmp_path: Path) -> None:
    id = link.start("sh", "-c", f"setsid sleep 300 & echo $! > {tmp_path}/pid")
    link.finish(id)
    (pid,) = read_pids(tmp_path / "pid", 1)
    assert alive(pid)
    link.kill(id, 9, tree=True)
    assert not alive(pid)


@pytest.mark.root
def test_kill_tree_ends_a_fork_bomb(link: Link) -> None:
    """The bomb starts only below a limit of processes, which does not bind root: without one it would take the machine."""
    bomb = "ulimit -u 200 && { b() { b | b & }; b; sleep 30; }"
    id = link.start("bash", "-c", bomb, user="54321", flags=STDOUT_NULL | STDERR_NULL, timeout=10_000)
    time.sleep(0.3)
    began = time.monotonic()
    link.kill(id, 9, tree=True)
    assert time.monotonic() - began < 5
    ended = link.io(id, EXIT).exit
    assert ended and (ended.code, ended.timed_out) == (9, 0)


def test_kill_without_tree_spares_the_children(link: Link, tmp_path: Path) -> None:
    id = link.start("sh", "-c", f"sleep 300 & echo $! > {tmp_path}/pid; wait")
    (pid,) = read_pids(tmp_path / "pid", 1)
    link.kill(id, 15)
    ended = link.finish(id).exit
    assert (ended.killed, ended.code) == (1, 15) and alive(pid)
    link.kill(id, 9, tree=True)
    assert not alive(pid)


def test_another_signal_reaches_the_whole_tree(link: Link, tmp_path: Path) -> None:
    id = link.start("sh", "-c", f"setsid sleep 300 & echo $! > {tmp_path}/pid; sleep 300")
    (pid,) = read_pids(tmp_path / "pid", 1)
    link.kill(id, 15, tree=True)
    assert link.finish(id).exit.code == 15
    assert eventually(lambda: not alive(pid))


def test_signal_zero_asks_whether_it_lives(link: Link) -> None:
    id = link.start("sleep", "60")
    link.kill(id, 0)
    link.kill(id, 9)
    link.io(id, EXIT)
    with pytest.raises(Refused) as caught:
        link.kill(id, 0)
    assert caught.value.code == 2
    with pytest.raises(Refused):
        link.kill(os.urandom(16), 0)


def test_a_command_that_kills_its_monitor_is_killed_too(link: Link, tmp_path: Path) -> None:
    id = link.start("sh", "-c", f"sleep 300 & echo $$ $! > {tmp_path}/pids; sleep 0.2; kill -9 $PPID; sleep 300")
    ended = link.finish(id).exit
    assert (ended.killed, ended.code) == (1, 9)
    seen = read_pids(tmp_path / "pids", 2)
    assert eventually(lambda: not any(map(alive, seen)))
    assert link.run("echo", "alive").stdout == b"alive\n"


def test_a_monitor_that_is_stopped_cannot_save_its_tree(link: Link, tmp_path: Path) -> None:
    id = link.start("sh", "-c", f"echo $$ > {tmp_path}/pid; kill -STOP $PPID; sleep 300")
    (pid,) = read_pids(tmp_path / "pid", 1)
    link.kill(id, 9, tree=True)
    assert not alive(pid)


def test_a_monitor_that_is_stopped_goes_on(link: Link) -> None:
    assert link.run("sh", "-c", "kill -STOP $PPID; exit 3").exit.code == 3


def test_monitors_ignore_every_signal_that_can_be(link: Link) -> None:
    script = (
        "for s in 1 2 3 6 10 12 13 14 15 32 33 34 64; do kill -$s $PPID; done; sleep 0.1; kill -0 $PPID && echo there"
    )
    assert link.run("bash", "-c", script).stdout == b"there\n"


def test_monitors_show_nothing(link: Link) -> None:
    if os.geteuid() == 0:
        pytest.skip("root with all capabilities may look into everything; sandboxes have fewer")
    assert b"denied" in link.run("sh", "-c", "cat /proc/$PPID/environ; ls /proc/$PPID/fd").stderr


# ---- terminals ----


def test_a_terminal_has_a_size_and_an_end(link: Link) -> None:
    id = link.start(
        "sh",
        "-c",
        "stty size; tty; echo $TERM; read x; stty size; cat",
        flags=ATTACHED | PTY | WITH_STDIN,
        rows=11,
        columns=77,
        env=["TERM=dumb"],
    )
    got = bytearray()
    while b"dumb" not in got:
        got += link.io(id, STDOUT, out=len(got)).data[1]
    assert got.startswith(b"11 77\r\n/dev/pts/")
    link.send(frame(0x13, id + struct.pack("<HH", 33, 99)))
    link.ok()
    link.io(id, STDIN, data=b"\n")
    while b"33 99" not in got:
        got += link.io(id, STDOUT, out=len(got)).data[1]
    link.io(id, STDIN, stdin=1, data=b"typed", ends=True)
    result = link.finish(id, out=len(got))
    assert b"typed" in result.stdout and result.exit.code == 0


def test_the_last_words_on_a_terminal_are_read(link: Link) -> None:
    for _ in range(20):
        id = link.start("sh", "-c", "head -c 20000 /dev/zero | tr '\\0' x; echo bye; exit 4", flags=ATTACHED | PTY)
        result = link.finish(id)
        assert len(result.stdout) == 20005 and result.stdout.endswith(b"bye\r\n") and result.exit.code == 4


def test_control_c_on_a_terminal(link: Link) -> None:
    id = link.start("sleep", "60", flags=ATTACHED | PTY | WITH_STDIN)
    time.sleep(0.1)
    link.io(id, STDIN, data=b"\x03")
    ended = link.finish(id).exit
    assert (ended.killed, ended.code) == (1, 2)


def test_resize_needs_a_terminal(link: Link) -> None:
    id = link.start("sleep", "60")
    link.send(frame(0x13, id + struct.pack("<HH", 33, 99)))
    with pytest.raises(Refused):
        link.ok()
    link.kill(id, 9)


# ---- links ----


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x00\x00\x00",
        struct.pack("<I", (2 << 20) + (64 << 10) + 1),
        frame(0x77),
        frame(0x20, b"12345"),
        frame(0x15, b"x"),
        frame(0x12, b"short"),
        frame(0x11, io_frame(b"0" * 16, 1)[5:-1]),
        frame(0x10, b"0" * 16 + b"\xff" * 50),
        frame(0x11, io_frame(b"0" * 16, 1)[5:] + b"x"),
        frame(0x30, b"\x01"),
        frame(
            0x10, struct.pack("<16sIQ", b"1" * 16, 0, 0) + text("") + text("") + bytes(4) + many(["a\0b"]) + many([])
        ),
    ],
    ids=["empty", "huge", "unknown", "answer", "extra", "short", "cut", "counts", "io", "file", "nul"],
)
def test_what_is_no_frame_closes_only_its_link(agent: Agent, raw: bytes) -> None:
    good, bad = agent.link(), agent.link(timeout=5)
    bad.send(raw)
    with pytest.raises(Refused) as caught:
        bad.expect(0x23)
    assert caught.value.code == 1
    with pytest.raises(Closed):
        bad.receive()
    good.ping()


def test_requests_are_answered_in_order(link: Link) -> None:
    id = os.urandom(16)
    link.send(frame(0x15), start_frame(id, "echo", "hi"), io_frame(id, STDOUT | STDERR | EXIT), frame(0x15))
    link.ok()
    link.started()
    got = b""
    answer = link.progress()
    got += answer.data.get(1, b"")
    link.ok()
    assert got in (b"hi\n", b"")


def test_links_do_not_wait_for_each_other(agent: Agent) -> None:
    slow, quick = agent.link(), agent.link()
    id = slow.start("sleep", "60")
    slow.send(io_frame(id, EXIT))
    half = agent.link()
    half.send(frame(0x15)[:3])
    began = time.monotonic()
    assert quick.run("echo", "quick").stdout == b"quick\n" and time.monotonic() - began < 30
    half.send(frame(0x15)[3:])
    half.ok()
    quick.kill(id, 9)
    assert slow.progress().exit


def test_a_client_that_never_reads_costs_little(agent: Agent) -> None:
    lazy, quick = agent.link(), agent.link()
    id = lazy.start("head", "-c", "4000000", "/dev/zero", flags=0)
    lazy.io(id, EXIT)
    lazy.socket.setblocking(False)
    try:
        for _ in range(10000):
            lazy.send(*[io_frame(id, STDOUT)] * 20)
    except BlockingIOError:
        pass
    assert quick.run("echo", "quick").stdout == b"quick\n"
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) < 20_000


def test_a_waiting_client_that_goes_is_noticed(agent: Agent) -> None:
    link = agent.link()
    id = link.start("sleep", "60")
    link.send(io_frame(id, EXIT))
    before = len(os.listdir(f"/proc/{agent.process.pid}/fd"))
    link.close()
    assert eventually(lambda: len(os.listdir(f"/proc/{agent.process.pid}/fd")) < before)
    agent.link().kill(id, 9, tree=True)


def test_nothing_is_left_open_after_many_commands(agent: Agent, link: Link) -> None:
    link.ping()
    count = len(os.listdir(f"/proc/{agent.process.pid}/fd"))
    for flags in (ATTACHED, ATTACHED | WITH_STDIN, ATTACHED | PTY, STDOUT_NULL | STDERR_NULL):
        for _ in range(10):
            link.run("echo", "x", flags=flags)
    assert eventually(lambda: len(os.listdir(f"/proc/{agent.process.pid}/fd")) == count)


def test_the_token_comes_first(start: Start) -> None:
    agent = start("--token-env", "TOKEN", env={"TOKEN": "secret", "PATH": "/usr/bin:/bin"})
    for first in (frame(0x15), frame(0x02, text("wrong")), frame(0x02, text("")), frame(0x02, text("secretsecret"))):
        link = agent.link()
        link.send(first)
        with pytest.raises(Refused) as caught:
            link.ok()
        assert caught.value.code == 6
        with pytest.raises(Closed):
            link.receive()
    link = agent.link()
    link.send(frame(0x02, text("secret")))
    link.ok()
    assert b"TOKEN" not in link.run("env").stdout
    assert b"secret" not in Path(f"/proc/{agent.process.pid}/environ").read_bytes()


# ---- the end ----


def test_shutdown_ends_the_agent_and_every_command(agent: Agent, link: Link, tmp_path: Path) -> None:
    link.start("sh", "-c", f"setsid sleep 300 & echo $! > {tmp_path}/pid; sleep 300")
    (pid,) = read_pids(tmp_path / "pid", 1)
    link.send(frame(0x16))
    link.ok()
    assert agent.process.wait(300) == 0
    assert not alive(pid)


def test_the_agents_own_deadline(start: Start) -> None:
    agent = start("--timeout-ms", "300")
    agent.link().start("sleep", "60")
    assert agent.process.wait(300) == 124


def test_idle_is_when_nothing_runs_and_nobody_asks(start: Start) -> None:
    agent = start("--idle-ms", "400")
    link = agent.link()
    link.start("sleep", "0.8")
    time.sleep(0.7)
    assert agent.process.poll() is None
    assert agent.process.wait(300) == 124


def test_to_look_is_no_use(start: Start) -> None:
    agent = start("--idle-ms", "600", "--lease-ms", "300000", "--", "sleep", "1000")
    using, looking, reading = agent.link(), agent.link(), agent.link()
    for link in (looking, reading):
        link.send(frame(LOOK))
        link.expect(OK)
    for _ in range(10):
        time.sleep(0.1)
        using.ping()
    assert agent.process.poll() is None
    reading.send(io_frame(bytes(16), STDOUT | PEEK))
    with suppress(Closed, OSError):
        while agent.process.poll() is None:
            looking.ping()
            time.sleep(0.05)
    assert agent.process.wait(300) == 124


def test_the_main_command_ends_the_agent(start: Start) -> None:
    agent = start("--", "sh", "-c", "echo out; echo err >&2; exit 7")
    out, err = agent.process.communicate(timeout=300)
    assert (agent.process.returncode, out, err) == (7, b"out\n", b"err\n")


def test_the_main_commands_readers_get_everything(start: Start) -> None:
    agent = start("--main-flags", str(WITH_STDIN), "--", "sh", "-c", "read x; head -c 3000000 /dev/zero; exit 5")
    link, id = agent.link(), bytes(16)
    link.io(id, STDOUT, wait=0)
    link.io(id, STDIN, data=b"\n")
    result = link.finish(id)
    assert (len(result.stdout), result.exit.code) == (3_000_000, 5)
    agent.process.communicate(timeout=300)
    assert agent.process.returncode == 5


def test_sigterm_ends_it(agent: Agent, link: Link) -> None:
    link.ping()
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(300) == 0


@pytest.mark.parametrize(
    "options",
    [("--what",), ("--timeout-ms", "x"), ("--timeout-ms",), ("--listen-fd", "3"), ("--token-env", "NOT_SET_AT_ALL")],
)
def test_a_wrong_command_line_is_one_sentence(start: Start, options: tuple[str, ...]) -> None:
    agent = start(*options)
    _, err = agent.process.communicate(timeout=300)
    assert agent.process.returncode == 2 and err.count(b"\n") == 1 and err.startswith(b"openmodal-agent init: ")
