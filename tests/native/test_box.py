"""Promises of `openmodal-agent box`, driven with plans written by hand, over a root of busybox."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.native.frames import Link

BUSYBOX = "/bin/busybox"
APPLETS = (
    "cat",
    "chmod",
    "hostname",
    "id",
    "ip",
    "ls",
    "mkdir",
    "readlink",
    "mount",
    "sh",
    "sleep",
    "stat",
    "touch",
    "true",
    "unshare",
)
GROUPS = Path("/sys/fs/cgroup")
MIB = 1 << 20

pytestmark = [
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs busybox-static"),
    pytest.mark.feature("box"),
    pytest.mark.may_leave("/tmp/om-box-*"),
]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def make_image(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "etc").mkdir()
    shutil.copy(BUSYBOX, folder / "bin" / "busybox")
    for applet in APPLETS:
        (folder / "bin" / applet).symlink_to("busybox")
    (folder / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (folder / "etc" / "group").write_text("root:x:0:\n")
    return folder


class Box:
    """One plan, and what comes of it."""

    def __init__(self, host: Host, name: str, **keys: str | list[str]) -> None:
        self._host = host
        self.dir = host.folder / name
        self.record = host.folder / f"{name}.record"
        self.said, self.pid, self.init = "", 0, 0
        self.plan: dict[str, str | list[str]] = {
            "id": name,
            "hostname": name,
            "dir": str(self.dir),
            "record": str(self.record),
            "lower": [str(host.image)],
            "upper": str(self.dir / "upper"),
            "work": str(self.dir / "work"),
            "ids": host.ids,
            "net": "none",
            "resolv": "nameserver 192.0.2.53\n",
            "hosts": "127.0.0.1 localhost\n",
            "timeout_ms": "60000",
            "env": ["PATH=/bin"],
            **keys,
        }
        if host.ids == "range":
            self.plan.setdefault("slots", str(host.folder / "slots"))

    def make_folders(self) -> Box:
        for folder in (self.dir, self.dir / "upper", self.dir / "work"):
            folder.mkdir(mode=0o700)
            os.chown(folder, self._host.uid, self._host.uid)
        (self.dir / "upper").chmod(0o755)
        return self

    def start(self) -> Box:
        lines = [
            f"{key}={one}" for key, value in self.plan.items() for one in ([value] if isinstance(value, str) else value)
        ]
        done = subprocess.run(
            [*self._host.prefix, str(self._host.program), "box"],
            input="".join(line + "\0" for line in lines),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.said = done.stdout
        word, _, rest = done.stdout.partition(" ")
        assert (done.returncode == 0) == (word == "ready"), done
        if word == "ready":
            self.pid = int(rest)
            children = _children(self.pid)
            self.init = next((pid for pid in children if len(_status(pid).get("NSpid", "").split()) > 1), 0)
            self._host.running.append(self)
        return self

    def error(self, kind: str) -> str:
        """It must have been refused, and have left nothing."""
        word, said_kind, sentence = self.start().said.split(" ", 2)
        assert (word, said_kind) == ("error", kind), self.said
        if self.dir.is_dir():
            left = [str(path) for path in self.dir.rglob("*") if path.name not in ("upper", "work")]
            assert not left
        return sentence

    def link(self) -> Link:
        with _reachable(self.dir) as folder:
            return Link(f"{folder}/agent.sock")

    def run(self, script: str) -> str:
        link = self.link()
        try:
            result = link.run("/bin/sh", "-c", script)
        finally:
            link.close()
        assert result.exit.code == 0, result
        return result.stdout.decode()

    def control(self, byte: bytes) -> dict[str, str]:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        with connection, _reachable(self.dir) as folder:
            connection.connect(f"{folder}/control.sock")
            connection.send(byte)
            answer = b""
            while more := connection.recv(4096):
                answer += more
        return _record(answer.decode())

    def end(self) -> dict[str, str]:
        return self.control(b"t")

    def wait_for_record(self) -> dict[str, str]:
        deadline = time.monotonic() + 10
        while not self.record.exists() or self.dir.exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return _record(self.record.read_text())


class Host:
    """Where boxes are made: as root with a range of ids each, or as a user with one."""

    def __init__(self, program: Path, folder: Path, ids: str) -> None:
        self.program, self.folder, self.ids = program, folder, ids
        self.running: list[Box] = []
        self.uid = os.getuid() if ids == "range" or os.getuid() else 1000
        drop = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        self.prefix = [] if self.uid == os.getuid() else drop
        self.image = make_image(folder / "image")
        for path in (folder, self.image, *self.image.rglob("*")):
            os.chown(path, self.uid, self.uid, follow_symlinks=False)
        self._count = 0

    def box(self, **keys: str | list[str]) -> Box:
        self._count += 1
        return Box(self, f"b{os.getpid()}-{self._count}", **keys).make_folders()

    def start(self, **keys: str | list[str]) -> Box:
        box = self.box(**keys).start()
        assert box.said.startswith("ready "), box.said
        return box

    def close(self) -> None:
        for box in self.running:
            with contextlib.suppress(OSError):
                box.end()
            assert _gone(box.pid, within=10), "the supervisor is still there"


@contextlib.contextmanager
def _reachable(folder: Path) -> Iterator[str]:
    """A short path: addresses of sockets are limited."""
    fd = os.open(folder, os.O_PATH)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _record(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def _status(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _gone(pid: int, within: float = 2) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if _status(pid).get("State", "Z").startswith("Z"):
            return True
        time.sleep(0.005)
    return False


@pytest.fixture(scope="session")
def public_program(program: Path) -> Iterator[Path]:
    """The program where a user without rights may start it."""
    folder = Path(tempfile.mkdtemp(prefix="om-box-program-", dir="/tmp"))
    folder.chmod(0o755)
    yield Path(shutil.copy(program, folder / "openmodal-agent"))
    shutil.rmtree(folder)


@pytest.fixture(params=[pytest.param("range", marks=as_root), "single"])
def host(request: pytest.FixtureRequest, public_program: Path) -> Iterator[Host]:
    yield from _host(public_program, request.param)


@pytest.fixture
def root_host(public_program: Path) -> Iterator[Host]:
    yield from _host(public_program, "range")


def _host(program: Path, ids: str) -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="om-box-", dir="/tmp"))
    folder.chmod(0o755)
    made = Host(program, folder, ids)
    yield made
    made.close()
    shutil.rmtree(folder)


# ----------------------------------------------------------------------------- its life and its end


def test_a_sandbox_runs_commands_and_leaves_nothing_but_its_record(host: Host) -> None:
    box = host.start()
    assert box.run("id -u; hostname; cat /etc/resolv.conf").splitlines() == ["0", box.dir.name, "nameserver 192.0.2.53"]
    record = box.end()
    assert (record["reason"], record["returncode"]) == ("terminated", "137")
    assert float(record["started"]) <= float(record["ended"]) <= time.time() + 1
    assert _record(box.record.read_text()) == record
    assert not box.dir.exists()
    assert _gone(box.pid)
    assert not os.path.exists(f"/proc/{box.init}")


def test_the_main_command_ends_the_sandbox_and_its_output_is_kept(host: Host) -> None:
    box = host.start(arg=["/bin/sh", "-c", "echo out; echo err >&2; exit 3"])
    record = box.wait_for_record()
    assert (record["reason"], record["returncode"]) == ("exited", "3")
    assert Path(f"{box.record}.stdout").read_text() == "out\n"
    assert Path(f"{box.record}.stderr").read_text() == "err\n"


def test_the_timeout_ends_it(host: Host) -> None:
    box = host.start(timeout_ms="300")
    record = box.control(b"w")
    assert (record["reason"], record["returncode"]) == ("timeout", "124")
    assert 0.25 < float(record["ended"]) - float(record["started"]) < 5


def test_idleness_ends_it(host: Host) -> None:
    record = host.start(idle_ms="300").control(b"w")
    assert (record["reason"], record["returncode"]) == ("idle", "124")


def test_all_who_wait_get_the_same_record(host: Host) -> None:
    box = host.start()
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    with _reachable(box.dir) as folder:
        for client in waiting:
            client.connect(f"{folder}/control.sock")
            client.send(b"w")
    record = box.end()
    for client in waiting:
        assert _record(client.recv(4096).decode()) == record
        assert client.recv(1) == b""
        client.close()


def test_nonsense_on_the_control_socket_is_refused(host: Host) -> None:
    box = host.start()
    assert box.control(b"x") == {}
    with socket.socket(socket.AF_UNIX) as client, _reachable(box.dir) as folder:
        client.connect(f"{folder}/control.sock")
        client.send(b"fly away\n")
        assert client.recv(4096).startswith(b"error unsupported ")
        assert client.recv(1) == b""
    assert box.run("id -u") == "0\n"


def test_the_supervisor_can_be_asked_to_end_by_a_signal(host: Host) -> None:
    box = host.start()
    os.kill(box.pid, signal.SIGTERM)
    assert box.wait_for_record()["reason"] == "terminated"


def test_a_killed_supervisor_takes_the_sandbox_with_it(host: Host) -> None:
    box = host.start()
    link = box.link()
    link.start("/bin/sleep", "1000")
    os.kill(box.pid, signal.SIGKILL)
    assert _gone(box.init, within=1)
    link.close()


def test_killing_init_from_outside_is_a_lost_sandbox(host: Host) -> None:
    box = host.start()
    os.kill(box.init, signal.SIGKILL)
    assert box.wait_for_record()["reason"] == "lost"


def test_nothing_survives_however_it_hides(host: Host) -> None:
    box = host.start()
    link = box.link()
    link.start("/bin/sh", "-c", "(trap '' TERM HUP; sleep 1000 & sleep 1000) & kill -STOP $$")
    time.sleep(0.2)
    inside = {int(line.split()[0]) for line in box.run("cat /proc/[0-9]*/stat").splitlines()}
    assert len(inside) >= 4
    box.end()
    assert _gone(box.init, within=0.1)
    link.close()


def test_files_that_nobody_may_touch_are_removed_too(host: Host) -> None:
    box = host.start()
    deep = "/".join(["d" * 20] * 120)
    box.run(f"mkdir -p /x/{deep}; touch /x/file; chmod 0 /x/file; mkdir /y; chmod 0 /y /x")
    box.end()
    assert not list(host.folder.glob("b*-*/")), "the folder or its trash is still there"


def test_it_holds_none_of_the_callers_descriptors(host: Host) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    box = host.box()
    lines = [
        f"{key}={one}" for key, value in box.plan.items() for one in ([value] if isinstance(value, str) else value)
    ]
    command = [*host.prefix, str(host.program), "box"]
    text = "".join(line + "\0" for line in lines)
    done = subprocess.run(command, input=text, capture_output=True, text=True, pass_fds=[writing], check=True)
    box.pid = int(done.stdout.removeprefix("ready "))
    os.close(writing)
    assert os.read(reading, 1) == b""  # the end of the file: nobody else has it
    os.close(reading)
    host.running.append(box)


# ------------------------------------------------------------------------------------ the isolation


def test_its_namespaces_are_its_own(host: Host) -> None:
    box = host.start()
    for name in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts", "time"):
        assert box.run(f"readlink /proc/self/ns/{name}").strip() != os.readlink(f"/proc/self/ns/{name}"), name
    assert box.run("cat /proc/net/route").count("\n") == 1
    assert "1 (" in box.run("cat /proc/1/stat")


def test_the_posture_of_init_and_of_commands(host: Host) -> None:
    box = host.start(rlimit=["7 1024 2048"])
    link = box.link()
    link.start("/bin/sleep", "1000")
    sleeping = [pid for pid in _descendants(box.init) if _status(pid).get("Name") == "sleep"]
    for pid in (box.init, *sleeping):
        status = _status(pid)
        assert status["CapBnd"] == status["CapPrm"] == status["CapEff"] == "00000000800404fb"
        assert status["CapInh"] == status["CapAmb"] == "0000000000000000"
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert "Max core file size        1                    1" in limits
    mapped = Path(f"/proc/{box.init}/uid_map").read_text().split()
    if host.ids == "range":
        assert int(mapped[1]) >= 0x10000000
        assert mapped[2] == "65536"
        assert _status(box.init)["Groups"] == ""
    else:
        assert mapped == ["0", str(host.uid), "1"]
    assert int(Path(f"/proc/{sleeping[0]}/oom_score_adj").read_text()) == 500
    assert "denied" in box.run("ls -l /proc/1/exe /proc/1/fd /proc/1/root/ 2>&1 || true")
    assert "denied" in box.run("cat /proc/1/environ 2>&1 || true")
    link.close()


def _descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from _descendants(child)


def test_the_machines_files_are_out_of_reach(host: Host) -> None:
    box = host.start()
    mounts = [line.split()[:3] for line in box.run("cat /proc/mounts").splitlines()]
    assert mounts[0][:2] == ["overlay", "/"]
    assert {kind for _, _, kind in mounts} <= {"overlay", "tmpfs", "devtmpfs", "devpts", "mqueue", "proc", "sysfs"}
    assert {where for _, where, kind in mounts if kind == "devtmpfs"} <= {
        f"/dev/{n}" for n in "null zero full random urandom tty".split()
    }
    assert box.run("ls /..").split() == box.run("ls /").split()
    assert "shared:" not in box.run("cat /proc/self/mountinfo")
    assert sorted(box.run("ls /dev").split()) == sorted(
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero".split()
    )


def test_what_tells_about_the_machine_is_hidden(host: Host) -> None:
    box = host.start()
    for path in ("/proc/kcore", "/proc/kallsyms", "/proc/keys", "/proc/timer_list", "/proc/interrupts"):
        assert box.run(f"if test -e {path}; then cat {path}; fi") == ""
    for path in ("/proc/bus", "/proc/fs", "/proc/irq", "/sys/firmware", "/sys/kernel/debug", "/sys/fs/cgroup"):
        assert box.run(f"if test -e {path}; then ls -A {path}; fi") == ""
    assert "Read-only" in box.run("(echo 1 > /proc/sys/kernel/core_pattern) 2>&1 || true")
    assert "Read-only" in box.run("mkdir /sys/x 2>&1 || true")


def test_the_filter_is_in_force_for_root_inside(host: Host) -> None:
    box = host.start()
    for command in (
        "unshare -U true",
        "unshare -m true",
        "mount -t tmpfs none /tmp",
        "mount -o remount,rw /proc/sys",
        "hostname other",
    ):
        said = box.run(f"{command} 2>&1 || true")
        assert "not permitted" in said or "denied" in said, command


def test_limits_show_in_proc_and_sys(host: Host) -> None:
    box = host.start(memory=str(256 * MIB), cpus="0")
    assert box.run("cat /proc/meminfo").startswith(f"MemTotal:       {256 * 1024:8d} kB\n")
    assert box.run("cat /sys/devices/system/cpu/online") == "0\n"
    assert _status(box.init)["Cpus_allowed_list"] == "0"


def test_a_sandbox_writes_its_own_files_only(host: Host) -> None:
    first, second = host.start(), host.start()
    first.run("echo mine > /file; chmod 600 /bin/busybox; echo x >> /etc/hosts; touch /dev/shm/x")
    assert second.run("ls /file 2>&1 || true; cat /etc/hosts; ls /dev/shm").splitlines()[1:] == ["127.0.0.1 localhost"]
    assert (host.image / "bin/busybox").stat().st_mode & 0o777 == 0o755


@pytest.mark.root
def test_ids_on_the_disk_start_at_0_and_ranges_do_not_meet(root_host: Host) -> None:
    boxes = [root_host.start() for _ in range(3)]
    bases = {int(Path(f"/proc/{box.init}/uid_map").read_text().split()[1]) for box in boxes}
    assert len(bases) == 3
    boxes[0].run("touch /file; mkdir /folder")
    assert (boxes[0].dir / "upper/file").stat().st_uid == 0
    assert boxes[0].run("stat -c %u:%g /file /bin/busybox").split() == ["0:0", "0:0"]


@pytest.mark.root
def test_an_upper_folder_can_be_kept_as_a_layer(root_host: Host) -> None:
    box = root_host.box(keep="1").start()
    box.run("echo hello > /file")
    box.end()
    assert (box.dir / "upper/file").read_text() == "hello\n"
    assert [path.name for path in box.dir.iterdir()] == ["upper"]


def test_extra_mounts(host: Host) -> None:
    source = host.folder / "source"
    source.mkdir()
    (source / "file").write_text("text")
    os.chown(source, host.uid, host.uid)
    box = host.start(bind=[f"{source}\t/data/deep\trw", f"{source}/file\t/etc/one\tro"])
    assert box.run("cat /data/deep/file /etc/one; touch /data/deep/new") == "texttext"
    assert (source / "new").exists()
    assert "Read-only" in box.run("(echo x > /etc/one) 2>&1 || true")


# ----------------------------------------------------------------------------------- hostile images


@pytest.mark.parametrize("name", ["dev", "proc", "sys", "etc"])
@pytest.mark.parametrize("target", ["/", "../../../..", "/proc/self/cwd", "missing"])
def test_an_image_with_a_link_in_the_place_of_a_mount_point_is_refused(host: Host, name: str, target: str) -> None:
    shutil.rmtree(host.image / name, ignore_errors=True)
    (host.image / name).symlink_to(target)
    assert f"/{name} in the image" in host.box().error("image")


@pytest.mark.parametrize("name", ["resolv.conf", "hosts", "hostname"])
def test_a_link_in_the_place_of_a_file_is_replaced_and_leads_nowhere(host: Host, name: str) -> None:
    canary = host.folder / "canary"
    canary.write_text("untouched")
    canary.chmod(0o666)
    (host.image / "etc" / name).symlink_to(canary)
    box = host.start()
    box.run(f"echo changed > /etc/{name}")
    assert canary.read_text() == "untouched"
    assert (host.image / "etc" / name).is_symlink()


def test_links_of_the_image_are_followed_inside_it_for_extra_mounts(host: Host) -> None:
    source = host.folder / "source"
    source.mkdir()
    (host.image / "out").symlink_to("/../../../tmp")
    box = host.start(bind=[f"{source}\t/out/here\tro"])
    assert box.run("ls /tmp") == "here\n"
    assert not Path("/tmp/here").exists()


# ------------------------------------------------------------------------------------------- errors


def test_a_bad_plan_is_refused_by_name(host: Host) -> None:
    assert "colour" in host.box(colour="red").error("plan")
    assert "net" in host.box(net="some").error("plan")
    assert "timeout_ms" in host.box(timeout_ms="-1").error("plan")
    assert "dir" in host.box(dir="relative").error("plan")
    assert "weaken" in host.box(weaken="seccomp").error("plan")


def test_what_is_missing_or_cannot_be_used_is_named_and_nothing_is_left(host: Host) -> None:
    assert "/no/layer" in host.box(lower=["/no/layer"]).error("image")
    assert "/no/folder" in host.box(dir="/no/folder").error("internal")
    assert "/no/source" in host.box(bind=["/no/source\t/x\tro"]).error("internal")
    assert "/no/group" in host.box(cgroup=["/no/group/x"]).error("internal")


@pytest.mark.root
def test_an_upper_on_a_file_system_that_cannot_hold_it_is_refused(root_host: Host) -> None:
    base = root_host.folder / "base"
    for name in ("upper", "work", "merged"):
        (base / name).mkdir(parents=True)
    options = f"lowerdir={root_host.image},upperdir={base}/upper,workdir={base}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, f"{base}/merged"], check=True)
    try:
        for name in ("up", "wk"):
            (base / "merged" / name).mkdir()
        box = root_host.box(upper=f"{base}/merged/up", work=f"{base}/merged/wk")
        assert "idmapped" in box.error("store")
    finally:
        subprocess.run(["umount", f"{base}/merged"], check=True)


def test_a_folder_that_may_not_be_written_is_refused(host: Host) -> None:
    if host.uid == 0:
        pytest.skip("root may write everywhere")
    box = host.box()
    os.chown(box.dir, 0, 0)
    assert str(box.dir) in box.error("permission")


def test_two_boxes_cannot_have_one_folder(host: Host) -> None:
    box = host.start()
    second = Box(host, box.dir.name).start()
    assert second.said.startswith("error plan another sandbox has the folder"), second.said
    assert box.run("id -u") == "0\n"


# ----------------------------------------------------------------------------- cgroups, the network


@pytest.fixture
def groups() -> Callable[[str], dict[str, str | list[str]]]:
    """Plan keys for this machine's cgroups, version 1 (with an empty version 2 beside) or 2."""

    def keys(name: str) -> dict[str, str | list[str]]:
        if (GROUPS / "cgroup.controllers").exists():
            folder = GROUPS / name
            return {"cgroup": [str(folder)], "kill": [f"{folder}/cgroup.kill"]}
        made = [GROUPS / each / name for each in ("unified", "memory", "pids", "freezer") if (GROUPS / each).is_dir()]
        limit = [f"{GROUPS}/memory/{name}/memory.limit_in_bytes {64 * MIB}", f"{GROUPS}/pids/{name}/pids.max 20"]
        return {
            "cgroup": [str(folder) for folder in made],
            "set": limit,
            "kill": [f"{GROUPS}/unified/{name}/cgroup.kill"],
            "thaw": f"{GROUPS}/freezer/{name}/freezer.state",
            "oom": f"{GROUPS}/memory/{name}/memory.oom_control oom_kill",
        }

    return keys


@pytest.mark.root
def test_the_agent_comes_before_its_commands_where_the_cpu_is_short(root_host: Host) -> None:
    """Else a fork bomb keeps it from killing the bomb."""
    box = root_host.start()
    stats = box.run("cat /proc/1/stat /proc/self/stat").splitlines()
    nice = [int(stat.rpartition(")")[2].split()[16]) for stat in stats]
    assert nice == [-20, os.getpriority(os.PRIO_PROCESS, 0)]


@pytest.mark.root
def test_limits_hold_for_everything_inside(
    root_host: Host, groups: Callable[[str], dict[str, str | list[str]]]
) -> None:
    name = f"om-box-{os.getpid()}"
    keys = groups(name)
    if "oom" not in keys:
        pytest.skip("needs cgroup controllers of version 1")
    box = root_host.start(**keys)
    assert name in Path(f"/proc/{box.init}/cgroup").read_text()
    assert {line.rpartition(":")[2] for line in box.run("cat /proc/self/cgroup").split()} == {"/"}
    link = box.link()
    bomb = link.run("/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 a b c d e f g h i j k; do sleep 9 & done 2>&1")
    assert b"can't fork" in bomb.stdout
    link.close()
    box.end()
    assert not any((GROUPS / each / name).exists() for each in os.listdir(GROUPS))


@pytest.mark.root
def test_a_frozen_sandbox_ends_too(root_host: Host, groups: Callable[[str], dict[str, str | list[str]]]) -> None:
    name = f"om-box-frozen-{os.getpid()}"
    keys = groups(name)
    if "thaw" not in keys:
        pytest.skip("needs the freezer of version 1")
    box = root_host.start(**keys)
    Path(str(keys["thaw"])).write_text("FROZEN")
    assert box.end()["reason"] == "terminated"


@pytest.mark.root
def test_a_main_command_that_needs_too_much_memory_is_told_from_others(
    root_host: Host, groups: Callable[[str], dict[str, str | list[str]]]
) -> None:
    keys = groups(f"om-box-oom-{os.getpid()}")
    if "oom" not in keys:
        pytest.skip("needs the memory controller of version 1")
    keys["arg"] = ["/bin/sh", "-c", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"]
    record = root_host.start(**keys).control(b"w")
    assert (record["reason"], record["returncode"]) == ("oom", "137")


@pytest.fixture
def router(public_program: Path) -> Iterator[Path]:
    """A router on a machine of its own: a network namespace that stands for the machine."""
    folder = Path(tempfile.mkdtemp(prefix="om-box-net-", dir="/tmp"))
    machine, path = folder / "machine", folder / "router"
    machine.touch()
    subprocess.run(["unshare", f"--net={machine}", "ip", "link", "set", "lo", "up"], check=True)
    command = ["nsenter", f"--net={machine}", str(public_program), "router"]
    addresses = ["169.254.137.1", "169.254.137.2", "10.251.0.1"]
    for _ in range(2):  # again: what is there already is made anew
        subprocess.run([*command, "make", f"{path}.new", *addresses], check=True)
        subprocess.run([*command, "commit", f"{path}.new", str(path)], check=True)
    # Without the SDK's rules nothing hides the sandboxes' addresses, so the machine needs the way
    # back.
    route = ["ip", "route", "add", "10.251.0.0/16", "via", "169.254.137.2"]
    subprocess.run(["nsenter", f"--net={machine}", *route], check=True)
    yield path
    subprocess.run([*command, "remove", str(path)], check=True)
    left = subprocess.run(
        ["nsenter", f"--net={machine}", "ip", "-o", "link"], check=True, capture_output=True, text=True
    )
    assert "openmodal0" not in left.stdout
    subprocess.run(["umount", str(machine)], check=True)
    shutil.rmtree(folder)


def _in(namespace: Path | str, *command: str) -> str:
    return subprocess.run(
        ["nsenter", f"--net={namespace}", *command], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.root
def test_a_routed_sandbox_has_one_interface_and_reaches_the_machine(root_host: Host, router: Path) -> None:
    box = root_host.start(net="router", router=str(router))
    assert box.run("ls /sys/class/net").split() == ["eth0", "lo"]
    base = int(Path(f"/proc/{box.init}/uid_map").read_text().split()[1])
    slot = (base - 0x10000000) // 65536
    address = f"10.251.{slot >> 8}.{slot & 255}"
    assert f"inet {address}/32" in box.run("ip addr show eth0")
    assert "inet6" not in box.run("ip addr show eth0")
    assert "inet6 ::1/128" in box.run("ip addr show lo")
    assert f"{address} dev om{slot}" in _in(router, "ip", "route")
    assert _in(f"/proc/{box.init}/ns/net", "cat", "/proc/sys/net/ipv4/ping_group_range").split() == [
        str(base),
        str(base + 65535),
    ]
    for peer in ("10.251.0.1", "169.254.137.2", "169.254.137.1"):
        assert " 0% packet loss" in _in(f"/proc/{box.init}/ns/net", BUSYBOX, "ping", "-c1", "-W2", peer)
    box.end()
    assert f"om{slot}" not in _in(router, "ip", "-o", "link")


@pytest.mark.root
def test_without_a_router_a_routed_sandbox_is_refused(root_host: Host) -> None:
    assert "/no/router" in root_host.box(net="router", router="/no/router").error("network")


@pytest.mark.root
def test_the_machines_network_only_for_builds(root_host: Host) -> None:
    box = root_host.start(net="host")
    assert box.run("readlink /proc/self/ns/net").strip() == os.readlink("/proc/self/ns/net")
