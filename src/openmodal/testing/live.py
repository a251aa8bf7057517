"""What changes while a sandbox runs, and how that is seen."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from openmodal.engines import Engine
from openmodal.errors import (
    InvalidError,
    SandboxFileNotFoundError,
    SandboxPermissionError,
    SandboxTerminatedError,
    SandboxTimeoutError,
    UnsupportedError,
)
from openmodal.sandbox import Sandbox
from openmodal.testing.egress import reaches
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import Create, Flaky, eventually, promise, running
from openmodal.watch import FileEvent, Watch

PATIENCE = 60.0


def until(watch: Watch, last: str) -> list[FileEvent]:
    """The events up to the first of that path."""
    seen: list[FileEvent] = []
    for event in watch:
        seen.append(event)
        if last in (event.path, event.new_path):
            return seen
    raise AssertionError(f"{last} is not among {seen}")


def told(events: list[FileEvent]) -> list[tuple[str, ...]]:
    return [(event.kind, event.path, *filter(None, [event.new_path])) for event in events]


class TestDeadline:
    @promise("deadline")
    def test_it_ends_sooner(self, create: Create) -> None:
        sandbox = create(timeout=1000)
        sandbox.set_timeout(1)
        assert sandbox.status().expires < time.time() + 500
        with pytest.raises(SandboxTimeoutError):
            sandbox.wait(timeout=PATIENCE)

    @promise("deadline")
    def test_it_ends_later(self, create: Create) -> None:
        sandbox = create(timeout=3)
        sandbox.set_timeout(1000)
        assert sandbox.status().expires > time.time() + 500
        assert sandbox.exec("sleep", "3.5").returncode == 0

    @promise("deadline")
    def test_one_that_has_ended_says_so(self, sandbox: Sandbox) -> None:
        with pytest.raises(InvalidError, match="timeout"):
            sandbox.set_timeout(0)
        sandbox.terminate()
        with pytest.raises(SandboxTerminatedError):
            sandbox.set_timeout(10)


class TestPause:
    @promise("pause")
    def test_nothing_runs_until_it_is_used(self, sandbox: Sandbox) -> None:
        sandbox.spawn("sh", "-c", "while :; do :; done")
        eventually(lambda: (sandbox.usage().cpu or 0) > 0.05)
        sandbox.pause()
        sandbox.pause()
        assert sandbox.status().paused
        before = sandbox.usage().cpu
        time.sleep(0.5)
        assert (sandbox.usage().cpu or 0) - (before or 0) < 0.1, "the kernel may add up a little later"
        assert sandbox.exec("echo", "again").stdout.read() == "again\n"
        assert not sandbox.status().paused
        eventually(lambda: (sandbox.usage().cpu or 0) > (before or 0) + 0.05)

    @promise("pause")
    def test_everything_goes_on_where_it_was(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "read line; echo got $line; sleep 54321")
        sandbox.pause()
        sandbox.resume()
        sandbox.resume()
        sandbox.pause()
        process.stdin.write("it\n")
        process.stdin.drain()
        assert process.stdout.readline() == "got it\n"
        sandbox.pause()
        assert sandbox.filesystem.exists("/srv")

    @promise("pause")
    def test_its_lifetime_goes_on(self, create: Create) -> None:
        sandbox = create(timeout=2)
        sandbox.pause()
        eventually(lambda: sandbox.poll() is not None)
        assert sandbox.returncode == 124

    @promise("pause")
    def test_it_is_not_idle_time(self, create: Create) -> None:
        sandbox = create(idle_timeout=1.5)
        sandbox.pause()
        time.sleep(4)
        assert sandbox.exec("true").returncode == 0

    @promise("pause")
    def test_it_is_terminated(self, sandbox: Sandbox) -> None:
        sandbox.spawn("sleep", "54321")
        sandbox.pause()
        sandbox.terminate()
        assert sandbox.poll() == 137
        for call in (sandbox.pause, sandbox.resume):
            with pytest.raises(SandboxTerminatedError):
                call()


@promise("idle_pause")
class TestIdlePause:
    def test_it_is_paused_and_goes_on_with_any_call(self, create: Create) -> None:
        sandbox = create(idle_timeout=0.5, on_idle="pause")
        sandbox.exec("sh", "-c", "echo in memory > /dev/shm/x")
        uses: list[Callable[[], object]] = [
            lambda: sandbox.exec("cat", "/dev/shm/x"),
            lambda: sandbox.filesystem.read_text("/dev/shm/x"),
            sandbox.resume,
        ]
        for use in uses:
            eventually(lambda: sandbox.status().paused, seconds=PATIENCE)
            use()
            assert sandbox.poll() is None
        eventually(lambda: sandbox.status().paused, seconds=PATIENCE)

    @promise("ports")
    def test_a_connection_to_a_port_lets_it_go_on(self, create: Create) -> None:
        sandbox = create("nc", "-ll", "-p", "8000", "-e", "cat", idle_timeout=0.5, on_idle="pause", ports=[8000])
        host, port = sandbox.tunnels()[8000].tcp_socket
        for _ in range(2):
            eventually(lambda: sandbox.status().paused, seconds=PATIENCE)
            with socket.create_connection((host, port), PATIENCE) as connection:
                connection.sendall(b"hello")
                assert connection.recv(5) == b"hello"

    @promise("deadline")
    def test_its_timeout_ends_it_all_the_same(self, create: Create) -> None:
        sandbox = create(idle_timeout=0.3, on_idle="pause")
        eventually(lambda: sandbox.status().paused, seconds=PATIENCE)
        sandbox.set_timeout(2.5)
        eventually(lambda: sandbox.status().paused or sandbox.poll() is not None, seconds=PATIENCE)
        with pytest.raises(SandboxTimeoutError):
            sandbox.wait(timeout=PATIENCE)

    def test_who_comes_in_the_instant_of_the_pause_is_served(self, create: Create) -> None:
        """A call must not reach an agent that is stopped a moment later, and wait for ever."""
        sandbox = create(idle_timeout=0.03, on_idle="pause")
        for number in range(60):
            time.sleep(0.024 + number % 12 / 1000)
            assert sandbox.exec("true", timeout=PATIENCE).returncode == 0


class TestNetworkChange:
    @promise("network_change")
    @promise("network_outbound")
    def test_it_is_cut_off_and_connected_again(self, sandbox: Sandbox, outbound: tuple[str, int]) -> None:
        """G13: and what is connected is not any more."""
        host, port = outbound
        assert reaches(sandbox, host, port)
        held = sandbox.spawn("nc", host, str(port))
        eventually(lambda: len(running(sandbox, f"nc {host}")) == 1)
        sandbox.set_network(block_network=True)
        sandbox.set_network(block_network=True)
        assert not reaches(sandbox, host, port)
        assert held.wait() is not None, "what was connected is not any more"
        sandbox.set_network()
        assert reaches(sandbox, host, port)

    @promise("network_change")
    @promise("network_allowlists")
    def test_an_allow_list_is_replaced(self, create: Create, outbound: tuple[str, int]) -> None:
        host, port = outbound
        sandbox = create(outbound_domain_allowlist=["example.com"])
        assert not reaches(sandbox, host, port)
        sandbox.set_network(outbound_domain_allowlist=[host])
        assert reaches(sandbox, host, port)
        sandbox.set_network(block_network=True)
        assert not reaches(sandbox, host, port)
        with pytest.raises(UnsupportedError, match="whole network"):
            sandbox.set_network()

    @promise("network_change")
    def test_one_without_a_list_gets_none(self, sandbox: Sandbox) -> None:
        with pytest.raises(UnsupportedError, match="allow list"):
            sandbox.set_network(outbound_domain_allowlist=["example.com"])
        with pytest.raises(InvalidError, match="block_network"):
            sandbox.set_network(block_network=True, outbound_domain_allowlist=["example.com"])


class TestUsage:
    @promise("usage")
    def test_it_tells_what_was_used(self, create: Create) -> None:
        sandbox = create(memory=256)
        script = "head -c 40000000 /dev/zero > /dev/shm/x; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
        assert sandbox.exec("sh", "-c", script).returncode == 0
        sandbox.spawn("sleep", "54321")
        usage = sandbox.usage()
        assert 0.01 < (usage.cpu or 0) < 500
        assert 38 < (usage.memory or 0) <= (usage.memory_peak or 1000) <= 350
        assert 1 < (usage.processes or 0) < 100

    @promise("usage")
    def test_it_tells_what_was_written(self, sandbox: Sandbox) -> None:
        before = sandbox.usage().written
        sandbox.exec("sh", "-c", "head -c 9000000 /dev/urandom > /srv/file; sync")
        after = sandbox.usage().written
        assert before is None or (after or 0) - before > 8_000_000


class TestDiff:
    @promise("diff")
    def test_what_differs_is_told(self, sandbox: Sandbox) -> None:
        script = """
            echo new > /srv/new; mkdir -p /srv/folder/deep; echo x > /srv/folder/deep/file; ln -s new /srv/link
            echo more >> /etc/passwd; chmod 700 /root; rm /etc/group; rm -r /home/agent; touch /bin/busybox
            rm -r /var/tmp; mkdir /var/tmp; echo x > /srv/gone; rm /srv/gone
        """
        assert sandbox.exec("sh", "-c", script).returncode == 0
        found = {change.path: (change.kind, change.type, change.size) for change in sandbox.diff()}
        assert found == {
            "/etc/group": ("deleted", "file", 0),
            "/etc/passwd": ("changed", "file", sandbox.filesystem.stat("/etc/passwd").size),
            "/home/agent": ("deleted", "directory", 0),
            "/root": ("changed", "directory", 0),
            "/srv/folder": ("added", "directory", 0),
            "/srv/folder/deep": ("added", "directory", 0),
            "/srv/folder/deep/file": ("added", "file", 2),
            "/srv/link": ("added", "symlink", 0),
            "/srv/new": ("added", "file", 4),
        }

    @promise("diff")
    def test_a_fresh_one_is_as_its_image(self, sandbox: Sandbox) -> None:
        assert sandbox.diff() == []

    @promise("diff")
    def test_a_folder_that_was_replaced_hides_what_was_in_it(self, sandbox: Sandbox) -> None:
        sandbox.exec("sh", "-c", "rm -r /home; mkdir /home; echo x > /home/new; rm -r /srv; echo x > /srv")
        found = {(change.path, change.kind, change.type) for change in sandbox.diff()}
        assert found == {
            ("/home/agent", "deleted", "directory"),
            ("/home/new", "added", "file"),
            ("/srv", "changed", "file"),
        }

    @promise("diff")
    def test_hostile_names_and_links_lead_nowhere(self, sandbox: Sandbox) -> None:
        script = "cd /srv; ln -s / root; ln -s /etc/shadow secret; touch 'a b' \"$(printf 'x\\ny')\"; mkfifo pipe; ln -s loop loop"
        assert sandbox.exec("sh", "-c", script).returncode == 0
        assert [change.path for change in sandbox.diff()] == [
            "/srv/a b", "/srv/loop", "/srv/pipe", "/srv/root", "/srv/secret", "/srv/x\ny"
        ]  # fmt: skip

    @promise("diff")
    def test_folders_may_be_deeper_than_a_path_is_long(self, sandbox: Sandbox) -> None:
        name = "d" * 50
        script = f"""
            chain() {{ i=0; while [ $i -lt 60 ]; do mkdir {name}; cd {name}; i=$((i+1)); done; }}
            mkdir one two; cd one; chain; : > end; cd /srv/two; chain; mv /srv/one/* .
        """
        assert sandbox.exec("sh", "-c", script, workdir="/srv").returncode == 0
        assert sandbox.diff()[-1].path == "/srv/two" + f"/{name}" * 120 + "/end"


class TestWatch:
    def test_what_happens_in_a_folder_is_told_in_order(self, sandbox: Sandbox) -> None:
        with sandbox.filesystem.watch("/srv", timeout=PATIENCE) as watch:
            script = "cd /srv; touch a; echo x > a; mv a b; mkdir c; touch c/unseen; rm b; mv c /tmp; touch last"
            assert sandbox.exec("sh", "-c", script).returncode == 0
            seen = until(watch, "/srv/last")
        assert [entry for entry in told(seen) if entry[0] != "modified"] == [
            ("created", "/srv/a"),
            ("moved", "/srv/a", "/srv/b"),
            ("created", "/srv/c"),
            ("deleted", "/srv/b"),
            ("deleted", "/srv/c"),
            ("created", "/srv/last"),
        ]
        assert ("modified", "/srv/a") in told(seen)
        assert {event.path for event in seen if event.is_dir} == {"/srv/c"}

    def test_folders_in_it_are_watched_too_if_asked(self, sandbox: Sandbox) -> None:
        files = sandbox.filesystem
        files.make_directory("/srv/old/deep")
        with files.watch("/srv", recursive=True, timeout=PATIENCE) as watch:
            script = "mkdir -p new/deeper; touch new/deeper/a; mv old older; echo x > older/deep/b; touch last"
            assert sandbox.exec("sh", "-c", script, workdir="/srv").returncode == 0
            seen = told(until(watch, "/srv/last"))
        for expected in (
            ("created", "/srv/new/deeper/a"),
            ("moved", "/srv/old", "/srv/older"),
            ("created", "/srv/older/deep/b"),
        ):
            assert expected in seen

    def test_a_file_is_watched_until_it_is_gone(self, sandbox: Sandbox) -> None:
        sandbox.filesystem.write_text("/srv/file", "x")
        with sandbox.filesystem.watch("/srv/file", timeout=PATIENCE) as watch:
            sandbox.exec("sh", "-c", "echo more >> /srv/file; echo x > /srv/other; rm /srv/file")
            seen = told(list(watch))
        assert seen[0] == ("modified", "/srv/file")
        assert seen[-1] == ("deleted", "/srv/file")
        assert {path for _, path in seen} == {"/srv/file"}

    def test_it_ends_when_nothing_happens_for_its_timeout(self, sandbox: Sandbox) -> None:
        sandbox.filesystem.make_directory("/srv/quiet")
        watch = sandbox.filesystem.watch("/srv/quiet", timeout=0.2)
        assert list(watch) == []
        assert list(watch) == [], "and stays at its end"

    def test_a_change_right_after_the_call_is_not_missed(self, sandbox: Sandbox) -> None:
        for number in range(5):
            with sandbox.filesystem.watch("/srv", timeout=PATIENCE) as watch:
                sandbox.filesystem.make_directory(f"/srv/{number}")
                assert told(until(watch, f"/srv/{number}")) == [("created", f"/srv/{number}")]

    def test_who_does_not_read_loses_nothing_unseen(self, sandbox: Sandbox) -> None:
        """100,000 changes: the kernel's queue has not so many, gVisor's has."""
        script = "i=0; while [ $i -lt 50000 ]; do echo > /dev/shm/x; echo > /dev/shm/y; i=$((i+1)); done"
        with sandbox.filesystem.watch("/dev/shm", timeout=PATIENCE) as watch:
            assert sandbox.exec("sh", "-c", f"{script}; touch /dev/shm/last", timeout=300).returncode == 0
            seen = Counter(event.kind for event in _up_to(watch, "overflow", "/dev/shm/last"))
            assert seen["overflow"] or seen["modified"] >= 100_000
            sandbox.exec("touch", "/dev/shm/later")
            assert until(watch, "/dev/shm/later"), "it goes on afterwards"

    def test_a_link_that_breaks_is_an_overflow(self, sandbox: Sandbox, engine: Engine, face: Face) -> None:
        flaky = Flaky(engine, [("receive", 38)])
        with face(Sandbox(sandbox.id, cast("Engine", flaky))).filesystem.watch("/srv", timeout=PATIENCE) as watch:
            sandbox.filesystem.make_directory("/srv/one")
            assert next(iter(watch)).kind == "overflow"
            sandbox.filesystem.make_directory("/srv/two")
            assert told(until(watch, "/srv/two"))[-1] == ("created", "/srv/two")

    def test_it_leaves_nothing_behind(self, sandbox: Sandbox) -> None:
        def count() -> int:
            """Without links, which may be processes, too, and are kept for the next call."""
            return len([line for line in running(sandbox, "") if " dial " not in line])

        before = count()
        watches = [sandbox.filesystem.watch("/srv", timeout=PATIENCE) for _ in range(3)]
        assert count() == before + 3, "the control: each is a process"
        for watch in watches:
            watch.close()
        eventually(lambda: count() == before)
        assert list(watches[0]) == []

    def test_what_is_wrong_is_told(self, sandbox: Sandbox, create: Create) -> None:
        files = sandbox.filesystem
        with pytest.raises(SandboxFileNotFoundError, match="/srv/missing"):
            files.watch("/srv/missing")
        with pytest.raises(InvalidError, match="timeout"):
            files.watch("/srv", timeout=-1)
        files.make_directory("/srv/closed", mode=0o700)
        with pytest.raises(SandboxPermissionError):
            files.as_user("agent").watch("/srv/closed")

    def test_it_ends_with_its_sandbox(self, sandbox: Sandbox, face: Face) -> None:
        watch = sandbox.filesystem.watch("/srv")
        sandbox.terminate()
        with pytest.raises(SandboxTerminatedError):
            next(_events(watch))


def _up_to(watch: Watch, kind: str, path: str) -> Iterator[FileEvent]:
    for event in watch:
        yield event
        if event.kind == kind or event.path == path:
            return


def _events(watch: Any) -> Iterator[FileEvent]:
    return iter(watch)


__all__ = ["TestDeadline", "TestDiff", "TestIdlePause", "TestNetworkChange", "TestPause", "TestUsage", "TestWatch"]
