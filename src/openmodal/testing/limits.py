"""What a sandbox may use, and what it can see and reach."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from openmodal.engines.posture import TUNNELS
from openmodal.errors import ExecError
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, eventually, promise, running

BANNER = b"reached by a sandbox\n"


class TestLimits:
    @promise("memory_offender")
    def test_what_exceeds_the_memory_limit_is_killed_and_the_record_tells(self, create: Create) -> None:
        sandbox = create(memory=64)
        process = sandbox.exec("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
        assert process.returncode == 137
        assert process.out_of_memory
        assert not process.timed_out
        assert sandbox.exec("echo", "alive").stdout.read() == "alive\n"

    @promise("memory")
    def test_what_stays_below_the_memory_limit_is_not_killed(self, create: Create) -> None:
        process = create(memory=300).exec("dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1")
        assert process.returncode == 0
        assert not process.out_of_memory

    @promise("memory")
    def test_a_signal_of_the_command_itself_is_not_called_out_of_memory(self, create: Create) -> None:
        process = create(memory=64).exec("sh", "-c", "kill -9 $$")
        assert process.returncode == 137
        assert not process.out_of_memory

    @promise("memory_offender")
    @pytest.mark.parametrize("others", [False, True], ids=["alone", "beside others"])
    def test_a_command_whose_child_was_killed_is_told_although_it_exits_well(
        self, create: Create, others: bool
    ) -> None:
        """It was not, and an agent took the result of a half done build for whole."""
        sandbox = create(*(("sleep", "99") if others else ()), memory=64)
        process = sandbox.exec("sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1; true")
        assert process.returncode == 0
        assert process.out_of_memory
        assert not sandbox.exec("true").out_of_memory, "that was before it"

    @promise("memory_offender")
    def test_a_command_that_only_ran_meanwhile_is_not_called_out_of_memory(self, create: Create) -> None:
        sandbox = create(memory=64)
        bystander = sandbox.spawn("sh", "-c", "read x; echo $x")
        assert sandbox.exec("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1").out_of_memory
        bystander.stdin.write("x\n")
        assert bystander.wait() == 0
        assert not bystander.out_of_memory

    @promise("memory_offender")
    def test_files_in_memory_count(self, create: Create) -> None:
        sandbox = create(memory=64)
        if sandbox.exec("test", "-d", "/dev/shm").returncode == 0:
            assert sandbox.exec("dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=200").returncode != 0

    @promise("memory")
    def test_a_main_command_that_exceeds_the_memory_limit_ends_the_sandbox_so(self, create: Create) -> None:
        sandbox = create("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1", memory=64)
        assert sandbox.wait() == 137
        status = sandbox.status()
        assert status.ended
        assert status.ended.reason == "oom"

    @promise("meminfo")
    @pytest.mark.parametrize("mebibytes", [64, 777])
    def test_meminfo_tells_the_memory_limit(self, create: Create, mebibytes: int) -> None:
        lines = create(memory=mebibytes).exec("cat", "/proc/meminfo").stdout.read().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        assert sizes["MemTotal"] == mebibytes * 1024
        assert 0 < sizes["MemAvailable"] <= sizes["MemTotal"]

    @promise("nproc")
    @pytest.mark.parametrize(("cpu", "expected"), [(0.5, 1), (1, 1), (2, 2)])
    def test_nproc_tells_the_cpu_limit(self, create: Create, cpu: float, expected: int) -> None:
        expected = min(expected, len(os.sched_getaffinity(0)))
        assert create(cpu=cpu).exec("nproc").stdout.read().strip() == str(expected)

    @promise("memory_left")
    def test_meminfo_tells_how_much_is_left(self, create: Create) -> None:
        sandbox = create(memory=300)

        def left() -> int:
            lines = sandbox.exec("cat", "/proc/meminfo").stdout.read().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) >> 10

        assert left() > 250
        hog = sandbox.spawn("sh", "-c", "dd if=/dev/zero bs=150M count=1 | sleep 54321")
        eventually(lambda: left() < 200)
        hog.kill()
        eventually(lambda: left() > 250)

    @promise("nproc")
    def test_cpuinfo_tells_the_cpu_limit(self, create: Create) -> None:
        assert create(cpu=0.5).exec("grep", "-c", "^processor", "/proc/cpuinfo").stdout.read() == "1\n"

    @promise("nproc")
    def test_no_more_cpus_are_listed_than_the_limit(self, create: Create) -> None:
        """`pytest -n auto` counts cores in these folders, by psutil; `nproc --all` reads the list."""
        script = "cd /sys/devices/system/cpu; cat possible || echo 0; ls -d cpu[0-9]*/topology"
        possible, *folders = create(cpu=1).exec("sh", "-c", script).stdout.read().split()
        assert possible in ("0", "0-0")
        assert folders in ([], ["cpu0/topology"])

    @promise("cgroup")
    def test_the_control_group_tells_the_limits_to_anybody(self, create: Create) -> None:
        sandbox = create(memory=300, cpu=0.5)
        script = "cat /sys/fs/cgroup/memory.max || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
        assert sandbox.exec("sh", "-c", script, user="agent").stdout.read() == f"{300 << 20}\n"
        script = "cat /sys/fs/cgroup/cpu.max || (cd /sys/fs/cgroup/cpu*/; cat cpu.cfs_quota_us cpu.cfs_period_us)"
        assert sandbox.exec("sh", "-c", script, user="agent").stdout.read().split() == ["50000", "100000"]
        script = "for f in $(find /sys/fs/cgroup -name 'memory.*max' -o -name 'memory.*limit_in_bytes'); do echo 0 > $f && echo $f; done"
        assert sandbox.exec("sh", "-c", script).stdout.read() == ""

    @promise("cpu")
    @promise("cpu_time")
    def test_commands_get_no_more_cpu_time_than_the_limit(self, create: Create) -> None:
        process = create(cpu=0.3).exec("timeout", "2", "sh", "-c", "while :; do :; done")
        assert process.record
        took = process.record.ended - process.record.started
        assert process.record.cpu < 0.5 * took

    @promise("pids")
    def test_there_are_at_most_512_processes(self, sandbox: Sandbox) -> None:
        script = "i=0; while [ $i -lt 700 ]; do sleep 54321 & i=$((i+1)); done; wait"
        process = sandbox.spawn("sh", "-c", script)
        eventually(lambda: _processes(sandbox) > 400)
        process.kill()
        process.wait()
        assert running(sandbox, "54321") == []

    @promise("pids")
    def test_a_fork_bomb_is_contained_and_can_be_ended(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "bomb() { bomb | bomb & }; bomb; sleep 54321")
        with contextlib.suppress(ExecError):  # there may be no process left to run this
            sandbox.exec("true")
        process.kill()
        sandbox.terminate()
        assert sandbox.poll() == 137

    @promise("info")
    def test_info_tells_the_limits_and_that_nothing_is_lacking(self, create: Create) -> None:
        info = create(memory=256, cpu=0.5, block_network=False).info()
        assert (info.memory, info.cpu, info.network, info.degraded) == (256, 0.5, "outbound", ())

    @promise("info")
    @promise("pids")
    def test_info_tells_the_limit_of_processes(self, create: Create) -> None:
        assert create().info().pids == 512

    @promise("info")
    @promise("network_block")
    def test_info_tells_that_the_network_is_blocked(self, create: Create) -> None:
        assert create(block_network=True).info().network == "none"

    @promise("disk")
    def test_writing_beyond_the_disk_limit_fails(self, create: Create) -> None:
        sandbox = create(disk=32)
        process = sandbox.exec("dd", "if=/dev/zero", "of=/srv/big", "bs=1M", "count=64")
        assert process.returncode != 0
        assert "space" in process.stderr.read().lower()
        sandbox.filesystem.remove("/srv/big")
        assert sandbox.exec("dd", "if=/dev/zero", "of=/srv/small", "bs=1M", "count=8").returncode == 0


def _processes(sandbox: Sandbox) -> int:
    """How many processes there are; as many as may be, if there is none left to count them."""
    try:
        count = int(sandbox.exec("sh", "-c", "set -- /proc/[0-9]*; echo $#").stdout.read())
    except ExecError:
        return 512
    assert count <= 520
    return count


class TestIsolation:
    def test_sandboxes_do_not_see_each_others_files(self, create: Create) -> None:
        first, second = create(), create()
        first.exec("sh", "-c", "echo first > /tmp/file; echo changed > /etc/passwd; rm -r /var")
        assert not second.filesystem.exists("/tmp/file")
        assert "root" in second.filesystem.read_text("/etc/passwd")
        assert second.filesystem.exists("/var")
        third = create()
        assert not third.filesystem.exists("/tmp/file")
        assert third.filesystem.exists("/var"), "the image is as it was"

    def test_sandboxes_do_not_see_each_others_processes(self, create: Create) -> None:
        first, second = create(), create()
        first.spawn("sleep", "54321")
        eventually(lambda: running(first, "sleep 54321"))
        assert running(second, "54321") == []
        assert second.exec("sh", "-c", "kill -9 -1; echo survived").returncode in (0, 137)
        assert running(first, "sleep 54321")

    def test_a_sandbox_does_not_see_this_machines_processes(self, sandbox: Sandbox) -> None:
        assert len(sandbox.exec("ps", "-o", "pid").stdout.read().split()) < 10

    @promise("init")
    def test_processes_of_a_sandbox_cannot_end_it_from_within(self, sandbox: Sandbox) -> None:
        sandbox.exec("sh", "-c", "kill -9 1; kill -TERM 1; kill -INT 1")
        assert sandbox.exec("echo", "alive").stdout.read() == "alive\n"

    def test_kernel_settings_cannot_be_changed(self, sandbox: Sandbox) -> None:
        for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper"):
            assert sandbox.exec("sh", "-c", f"echo x > {path}").returncode != 0, path

    def test_file_systems_cannot_be_mounted(self, sandbox: Sandbox) -> None:
        sandbox.exec("mkdir", "-p", "/tmp/proc")
        assert sandbox.exec("mount", "-t", "proc", "proc", "/tmp/proc").returncode != 0

    def test_sandboxes_have_their_own_loopback(self, create: Create) -> None:
        first, second = create(), create()
        first.spawn("httpd", "-f", "-p", "127.0.0.1:7777", "-h", "/etc")
        eventually(lambda: connects(first, "127.0.0.1", 7777))
        assert not connects(second, "127.0.0.1", 7777)


class TestNetwork:
    @promise("network_interfaces")
    def test_block_network_leaves_no_interface_but_loopback(self, create: Create) -> None:
        assert interfaces(create(block_network=True)) == {"lo"}

    @promise("network_block")
    def test_block_network_leaves_loopback(self, create: Create) -> None:
        sandbox = create(block_network=True)
        sandbox.spawn("httpd", "-f", "-p", "127.0.0.1:7777", "-h", "/etc")
        eventually(lambda: connects(sandbox, "127.0.0.1", 7777))

    @promise("network_block")
    def test_block_network_reaches_nothing(self, create: Create, outbound: tuple[str, int]) -> None:
        sandbox = create(block_network=True)
        address = socket.gethostbyname(outbound[0])
        for host in (*outbound[:1], address):
            assert not connects(sandbox, host, outbound[1])
        with server() as port:
            assert not any(connects(sandbox, host, port) for host in own_addresses())

    @promise("network_outbound")
    def test_the_internet_can_be_reached_by_name(self, sandbox: Sandbox, outbound: tuple[str, int]) -> None:
        assert connects(sandbox, *outbound, seconds=20)

    @promise("network_isolation")
    def test_services_of_this_machine_cannot_be_reached(self, sandbox: Sandbox) -> None:
        with server() as port:
            for host in {"127.0.0.1", "localhost", *own_addresses(), *_gateways(sandbox)}:
                assert not connects(sandbox, host, port), host

    @promise("network_isolation")
    def test_another_sandbox_cannot_be_reached(self, create: Create) -> None:
        first, second = create(), create()
        first.spawn("httpd", "-f", "-p", "7777", "-h", "/etc")
        found = addresses(first)
        assert found, "without block_network it has one"
        for address in found:
            eventually(partial(connects, first, address, 7777))
            assert not connects(second, address, 7777)

    @promise("network_isolation")
    @pytest.mark.parametrize("address", ["169.254.169.254", "169.254.170.2", "100.100.100.200"])
    def test_the_clouds_metadata_cannot_be_reached(self, sandbox: Sandbox, address: str) -> None:
        assert not connects(sandbox, address, 80)

    @promise("network_isolation")
    def test_addresses_cannot_be_forged(self, sandbox: Sandbox) -> None:
        commands = ("ip link add dummy0 type dummy", "ip addr add 10.1.2.3/8 dev lo", "ip route flush table all")
        results = [sandbox.exec("sh", "-c", command).returncode for command in commands]
        assert all(results)

    @promise("network_outbound")
    def test_the_sandbox_knows_its_own_name(self, sandbox: Sandbox) -> None:
        name = sandbox.exec("hostname").stdout.read().strip()
        assert name
        assert name != socket.gethostname()
        assert name in sandbox.filesystem.read_text("/etc/hosts")


def interfaces(sandbox: Sandbox) -> set[str]:
    """The interfaces within, but for those that lead nowhere."""
    lines = sandbox.exec("cat", "/proc/net/dev").stdout.read().splitlines()[2:]
    return {line.split(":")[0].strip() for line in lines} - TUNNELS


def connects(sandbox: Sandbox, host: str, port: int, *, seconds: int = 2) -> bool:
    """Whether a TCP connection can be made from within."""
    return sandbox.exec("timeout", str(seconds), "nc", host, str(port), stdin="").returncode == 0


@contextmanager
def server(host: str = "0.0.0.0") -> Iterator[int]:
    """A server on all addresses of this machine; it proves that it can be reached from here."""
    with socket.create_server((host, 0), backlog=64) as listener:
        port: int = listener.getsockname()[1]

        def serve() -> None:
            with contextlib.suppress(OSError):  # closed at the end
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.sendall(BANNER)

        threading.Thread(target=serve, daemon=True).start()
        with socket.create_connection(("127.0.0.1" if host == "0.0.0.0" else host, port), 5) as client:
            assert client.recv(100) == BANNER, "the control"
        yield port
        listener.shutdown(socket.SHUT_RDWR)


def own_addresses() -> set[str]:
    """The addresses of this machine from which it reaches others."""
    found = set()
    for target in ("192.0.2.1", "198.51.100.1", "10.0.0.1"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.connect((target, 9))  # sends nothing: it only chooses the route
            found.add(sock.getsockname()[0])
    return found


def addresses(sandbox: Sandbox) -> list[str]:
    """The addresses of a sandbox, but for loopback."""
    lines = sandbox.exec("ip", "-o", "-4", "addr", "show").stdout.read().splitlines()
    return [line.split()[3].split("/")[0] for line in lines if line.split()[1] != "lo"]


def _gateways(sandbox: Sandbox) -> list[str]:
    lines = sandbox.exec("ip", "-4", "route").stdout.read().splitlines()
    return [line.split()[2] for line in lines if line.startswith("default via")]


__all__ = [
    "TestIsolation",
    "TestLimits",
    "TestNetwork",
    "addresses",
    "connects",
    "interfaces",
    "own_addresses",
    "server",
]
