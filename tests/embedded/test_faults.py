"""Faults: whoever dies, and whenever, what is left is a sandbox that can be used and ended, or nothing. The leak check sees to it."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openmodal import _binary, _config, _wire
from openmodal._dual import run_sync
from openmodal.app import App
from openmodal.engines.embedded import Embedded, launch, trial
from openmodal.errors import (
    DiskFullError,
    EngineError,
    Error,
    ImageBuildError,
    SandboxError,
    SandboxNotRunningError,
    SandboxTerminatedError,
)
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, eventually
from tests.disks import small_disk

APP = "faults"


def make(engine: Embedded, image: Image, *args: str, timeout: float = 600) -> Sandbox:
    return Sandbox.create(*args, app=App(APP), image=image, engine=engine, timeout=timeout)


def clear(engine: Embedded) -> int:
    """End what is left of the app, as a user would; return how many were running.

    A box whose maker died before it could report is not listed at first, and ends by itself,
    perhaps at this moment.
    """
    ended: set[str] = set()

    def nothing_is_left() -> bool:
        for sandbox in Sandbox.list(app=APP, engine=engine):
            ended.add(sandbox.id)
            with contextlib.suppress(SandboxNotRunningError):
                assert sandbox.exec("echo", "usable").stdout.read() == "usable\n"
            sandbox.terminate()
        engine.gc()
        return not any(id.startswith(APP) for id in engine.store.ids())

    eventually(nothing_is_left)
    return len(ended)


# -------------------------------------------------------------------------------- the SDK is killed

SYSTEM = ("posix", "fcntl", "_io", "_socket", "select", "_posixsubprocess", "socket", "method_descriptor")


def dies_at(number: int, act: Callable[[], object]) -> tuple[bool, int]:
    """Run `act` in a forked child that kills itself right before its system call number `number`.

    Returns whether it came that far, and how many it would have made.
    """
    read, write = os.pipe()
    gc.collect()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(read)
            calls = 0

            def profile(frame: object, event: str, argument: object) -> None:
                nonlocal calls
                owner = getattr(argument, "__module__", None) or type(getattr(argument, "__self__", None)).__module__
                if event == "c_call" and owner in SYSTEM:
                    calls += 1
                    if calls == number:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.setprofile(profile)
            act()
            sys.setprofile(None)
            os.write(write, str(calls).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with open(read, encoding="ascii") as file:
        count = int(file.read() or 0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), "the child itself failed"
    return status < 0, count


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
class TestSdkIsKilled:
    @pytest.fixture(autouse=True)
    def _clean(self, engine: Embedded) -> Iterator[None]:
        yield
        clear(engine)

    def at_every_system_call(self, act: Callable[[], object], after: Callable[[], object]) -> None:
        """Kill it at each of the system calls in turn. With several hundreds of them, at sixty, spread evenly."""
        finished, count = dies_at(0, act)
        assert not finished
        after()
        assert count > 5
        for number in range(1, count + 1, max(1, count // 60)):
            dies_at(number, act)
            after()

    def test_during_create(self, engine: Embedded, image: Image) -> None:
        found = []
        self.at_every_system_call(lambda: make(engine, image), lambda: found.append(clear(engine)))
        assert set(found) == {0, 1}, "sometimes before the sandbox was there and sometimes after"

    def test_during_create_with_a_name(self, engine: Embedded, image: Image) -> None:
        def create() -> None:
            Sandbox.create(app=App(APP), image=image, engine=engine, timeout=600, name="the-name")

        self.at_every_system_call(create, lambda: clear(engine))
        create()

    def test_during_exec(self, engine: Embedded, image: Image) -> None:
        sandbox = make(engine, image)
        other = Sandbox.from_id(sandbox.id, engine=engine)

        def after() -> None:
            assert sandbox.exec("echo", "usable").stdout.read() == "usable\n"

        self.at_every_system_call(lambda: other.exec("sh", "-c", "cat; seq 1 1000", stdin=b"x" * 300_000), after)

    def test_during_writing_a_file(self, engine: Embedded, image: Image) -> None:
        sandbox = make(engine, image)
        other = Sandbox.from_id(sandbox.id, engine=engine)
        old, new = b"old" * 400_000, b"new" * 400_000

        def before() -> None:
            assert sandbox.filesystem.read_bytes("/tmp/file") in (old, new)
            sandbox.filesystem.write_bytes("/tmp/file", old)

        sandbox.filesystem.write_bytes("/tmp/file", old)
        self.at_every_system_call(lambda: other.filesystem.write_bytes("/tmp/file", new), before)
        eventually(lambda: [info.name for info in sandbox.filesystem.list_files("/tmp")] == ["file"])

    def test_during_terminate(self, engine: Embedded, image: Image) -> None:
        made: list[Sandbox] = []

        def act() -> None:
            made[-1].terminate()

        def renew() -> None:
            for sandbox in made:
                sandbox.terminate()
                assert sandbox.poll() == 137
            made[:] = [make(engine, image)]

        renew()
        self.at_every_system_call(act, renew)

    def test_during_build(self, engine: Embedded, image: Image) -> None:
        """A step that was interrupted is built by the next, and is then what it should be."""
        marker: list[str] = []

        def renew() -> None:
            if marker:
                with make(engine, recipe()) as sandbox:
                    assert sandbox.filesystem.read_text("/made") == marker[0] + "\n"
                engine.gc()
            marker[:] = [secrets.token_hex(8)]

        def recipe() -> Image:
            return image.run_commands(f"echo {marker[0]} > /made")

        renew()
        self.at_every_system_call(lambda: recipe().build(engine=engine), renew)

    @pytest.mark.slow
    def test_at_any_moment(self, engine: Embedded, image: Image) -> None:
        """The clock decides instead of a count: so it also dies while the kernel or the box is at work."""

        def act() -> None:
            while True:
                sandbox = make(engine, image)
                sandbox.exec("echo", "x")
                sandbox.terminate()

        for n in range(150):
            pid = os.fork()
            if not pid:
                with contextlib.suppress(BaseException):
                    act()
                os._exit(1)
            time.sleep(n % 50 / 1000)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            clear(engine)


# ------------------------------------------------------------------ supervisor and agent are killed


def supervisor(engine: Embedded, sandbox: Sandbox) -> int:
    """The process that holds the sandbox's lock."""
    lock = str(engine.store.folder(sandbox.id) / "lock")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(fd) == lock for fd in (process / "fd").iterdir()):
                return int(process.name)
    raise AssertionError("nobody holds the lock")


def descendants(pid: int) -> list[int]:
    """The processes below one, as seen from this machine."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = process.read_bytes().rpartition(b")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(process.parent.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        queue += children.get(queue.pop(), [])
        found = sorted({*found, *queue})
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in (b"Z", b"X")


class TestSupervisor:
    def test_the_sandbox_dies_with_its_supervisor(self, engine: Embedded, create: Create) -> None:
        sandbox = create()
        sandbox.spawn("sh", "-c", "setsid sleep 54321 & trap '' TERM; while :; do sleep 54321; done")
        boss = supervisor(engine, sandbox)
        eventually(lambda: len(descendants(boss)) >= 4)
        inside = descendants(boss)
        os.kill(boss, signal.SIGKILL)
        eventually(lambda: not any(map(alive, inside)))
        with pytest.raises(SandboxNotRunningError, match="supervisor"):
            sandbox.exec("true")
        assert sandbox.poll() == 137
        status = sandbox.status()
        assert status.ended
        assert status.ended.reason == "lost"
        assert not engine.store.folder(sandbox.id).exists()

    def test_a_command_under_way_is_told(self, engine: Embedded, create: Create) -> None:
        sandbox = create()
        process = sandbox.spawn("sh", "-c", "echo up; sleep 54321")
        assert process.stdout.readline() == "up\n"
        os.kill(supervisor(engine, sandbox), signal.SIGKILL)
        with pytest.raises(SandboxNotRunningError):
            process.wait()

    def test_gc_clears_up_after_it_and_only_once(self, engine: Embedded, create: Create) -> None:
        sandbox, other = create(), create()
        os.kill(supervisor(engine, sandbox), signal.SIGKILL)
        eventually(lambda: any(sandbox.id in line for line in engine.gc()))
        assert not any(sandbox.id in line for line in engine.gc())
        assert other.exec("echo", "alive").stdout.read() == "alive\n"

    def test_terminate_and_list_cope_with_a_dead_supervisor(self, engine: Embedded, create: Create) -> None:
        one, two = create(), create()
        for sandbox in (one, two):
            os.kill(supervisor(engine, sandbox), signal.SIGKILL)
        one.terminate()
        assert one.poll() == 137
        eventually(lambda: two.id not in [found.id for found in Sandbox.list(engine=engine)])

    def test_the_sandbox_ends_when_its_agent_is_killed(self, engine: Embedded, create: Create) -> None:
        sandbox = create()
        children = descendants(supervisor(engine, sandbox))
        os.kill(children[0], signal.SIGKILL)
        with pytest.raises(SandboxError):
            sandbox.exec("sleep", "54321")
        eventually(lambda: sandbox.poll() is not None)

    @pytest.mark.slow
    def test_a_supervisor_that_does_not_answer_is_got_rid_of(self, engine: Embedded, create: Create) -> None:
        sandbox = create()
        boss = supervisor(engine, sandbox)
        os.kill(boss, signal.SIGSTOP)
        sandbox.terminate()
        assert sandbox.poll() == 137
        assert not alive(boss)

    def test_terminate_leaves_the_last_words_of_the_main_command(self, create: Create) -> None:
        sandbox = create("sh", "-c", "echo last words; touch /tmp/said; sleep 54321")
        eventually(lambda: sandbox.filesystem.exists("/tmp/said"))
        sandbox.terminate()
        assert sandbox.stdout.read() == "last words\n"
        assert sandbox.returncode == 137

    def test_a_process_1_that_does_not_answer_keeps_nobody(self, engine: Embedded, create: Create) -> None:
        """What it holds of the main command's output is lost then; its end is not."""
        sandbox = create("sleep", "54321")
        boss = supervisor(engine, sandbox)
        (init,) = (pid for pid in descendants(boss) if init_there(pid))
        os.kill(init, signal.SIGSTOP)
        sandbox.terminate()
        assert sandbox.poll() == 137
        assert not alive(init)


def init_there(pid: int) -> bool:
    """Whether a process is a sandbox's process 1."""
    status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    return len(ids := status.partition("NSpid:")[2].splitlines()[0].split()) > 1 and ids[-1] == "1"


class TestGarbage:
    def test_a_half_made_folder_goes(self, engine: Embedded) -> None:
        folder = engine.store.sandboxes / f"{APP}-0badf00d"
        folder.mkdir(mode=0o700)
        (folder / "status.json").write_text("{")
        (folder / "upper").mkdir()
        assert any(folder.name in line for line in engine.gc())
        assert not folder.exists()

    def test_a_folder_whose_maker_died_before_it_had_a_name_goes(self, engine: Embedded) -> None:
        folder = engine.store.sandboxes / f".{APP}-0badf00d"
        folder.mkdir(mode=0o700)
        (folder / "status.json").write_text("{")
        engine.gc()
        assert not folder.exists()

    def test_gc_leaves_sandboxes_alone_that_are_being_made(self, engine: Embedded, image: Image) -> None:
        stop = threading.Event()
        failed: list[BaseException] = []

        def collect() -> None:
            try:
                while not stop.is_set():
                    engine.gc()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=collect) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                with make(engine, image) as sandbox:
                    assert sandbox.exec("echo", "x").stdout.read() == "x\n"
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failed == []

    def test_tidying_up_by_the_way_neither_fails_a_creation_nor_leaves_one(
        self, engine: Embedded, create: Create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            tidied.append("")
            raise EngineError("something that cannot be removed")

        tidied: list[str] = []
        real = os.urandom
        monkeypatch.setattr(os, "urandom", lambda count: b"\0" if count == 1 else real(count))
        with trial.place(engine.store.state) as place:  # whose only layer is nobody's
            assert run_sync(trial.run(place, trial.bare())).runtime == "native"
        monkeypatch.setattr("openmodal.engines.embedded.engine.expire", fail)
        assert create().exec("echo", "usable").stdout.read() == "usable\n"
        assert tidied

    def test_a_name_of_a_dead_sandbox_is_free(self, engine: Embedded, create: Create) -> None:
        os.kill(supervisor(engine, create(name="dead")), signal.SIGKILL)
        deadline = time.monotonic() + 10
        while True:
            try:
                create(name="dead")
                break
            except Error:
                assert time.monotonic() < deadline
                time.sleep(0.02)


# --------------------------------------------------------------------------------------- full disks


@pytest.fixture
def small_home(tmp_path: Path, image: Image) -> Iterator[Path]:
    """A state folder on a disk of its own."""
    with small_disk(tmp_path) as home:
        yield home


def free(path: Path) -> int:
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


@pytest.mark.root
class TestFullDisk:
    @pytest.fixture(autouse=True)
    def _home(self, small_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENMODAL_HOME", str(small_home))

    def test_during_a_build_is_told_and_leaves_nothing(self, small_home: Path, image: Image) -> None:
        engine = Embedded()
        image.build(engine=engine)
        before = free(small_home)
        with pytest.raises((DiskFullError, ImageBuildError), match=r"(?i)space|full") as caught:
            image.run_commands("dd if=/dev/zero of=/big bs=1M count=100").build(engine=engine)
        assert "\n" not in str(caught.value).split(";")[0]
        eventually(lambda: free(small_home) >= before - (1 << 20))
        with make(engine, image) as sandbox:
            assert sandbox.exec("echo", "x").stdout.read() == "x\n"
        image.run_commands("echo fits > /small").build(engine=engine)

    def test_while_a_local_file_is_added_is_told_and_leaves_nothing(
        self, small_home: Path, image: Image, tmp_path: Path
    ) -> None:
        engine = Embedded()
        image.build(engine=engine)
        before = free(small_home)
        with open(tmp_path / "big", "wb") as file:
            file.truncate(100_000_000)
        with pytest.raises((DiskFullError, ImageBuildError), match=r"(?i)space|full"):
            image.add_local_file(tmp_path / "big", "/big").build(engine=engine)
        eventually(lambda: free(small_home) >= before - (1 << 20))

    def test_in_a_sandbox_is_the_commands_error_and_ends_with_the_sandbox(self, small_home: Path, image: Image) -> None:
        engine = Embedded()
        with make(engine, image) as sandbox:
            before = free(small_home)
            process = sandbox.exec("dd", "if=/dev/zero", "of=/srv/big", "bs=1M", "count=100")
            assert process.returncode == 1
            assert "space" in process.stderr.read().lower()
            with pytest.raises(OSError, match=r"(?i)space"):
                sandbox.filesystem.write_bytes("/srv/other", bytes(10_000_000))
            assert sandbox.exec("echo", "alive").stdout.read() == "alive\n"
        eventually(lambda: free(small_home) >= before - (1 << 16))  # how it ended takes some

    @pytest.mark.parametrize("killed", [False, True])
    def test_how_it_ended_is_told_all_the_same(self, small_home: Path, image: Image, killed: bool) -> None:
        """I32: the record was lost with the folder, and poll raised NotFoundError; behind a killed supervisor it raised for good."""
        engine = Embedded()
        sandbox = make(engine, image)
        for size in ("1M", "4k", "1"):
            assert sandbox.exec("dd", "if=/dev/zero", f"of=/srv/{size}", f"bs={size}", "count=9999").returncode == 1
        with pytest.raises(OSError, match="space"):
            (small_home / "control").write_bytes(b"x")
        if killed:
            os.kill(supervisor(engine, sandbox), signal.SIGKILL)
            eventually(lambda: not engine.store.alive(sandbox.id))
        else:
            sandbox.terminate()
        for _ in range(2):
            assert Sandbox.from_id(sandbox.id, engine=engine).poll() == 137
        assert engine.store.end(sandbox.id)
        (small_home / "control").write_bytes(b"there is room again")

    def test_at_create_is_told_and_leaves_nothing(self, small_home: Path, image: Image) -> None:
        engine = Embedded()
        image.build(engine=engine)
        with open(small_home / "fill", "wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12):  # to the last block
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        with pytest.raises((DiskFullError, EngineError)):
            make(engine, image)
        assert engine.store.ids() == []
        assert not [name for name in os.listdir(small_home / "uppers") if name.startswith(APP)]
        (small_home / "fill").unlink()
        make(engine, image).terminate()


def test_a_native_program_that_does_nothing_is_told(
    engine: Embedded, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("/bin/false", "/bin/true", "/nothing/here"):
        monkeypatch.setenv("OPENMODAL_AGENT", program)
        with pytest.raises(EngineError):
            make(Embedded(), image)
        assert [id for id in engine.store.ids() if id.startswith(APP)] == []


def test_a_native_program_that_hangs_is_ended_and_told(
    engine: Embedded, image: Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """J22: create waited for it without end, long after it had given it up."""
    (tmp_path / "hangs").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 54321\n")
    (tmp_path / "hangs").chmod(0o755)
    image.build(engine=engine)
    monkeypatch.setattr(launch, "_START_SECONDS", 2.0)
    monkeypatch.setattr(launch, "_END_SECONDS", 1.0)
    monkeypatch.setenv("OPENMODAL_AGENT", str(tmp_path / "hangs"))
    with pytest.raises(EngineError, match=r"did not start within|has not ended within"):
        make(engine, image)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_another_program_that_hangs_is_ended_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """J22: iptables waits for a lock that somebody holds."""
    monkeypatch.setattr(_binary, "MOST_SECONDS", 0.5)
    with pytest.raises(EngineError, match=r"sleep 54321.*was killed"):
        _binary.run(["/bin/sleep", "54321"])


def test_half_a_state_file_is_not_taken_for_no_sandbox(engine: Embedded, create: Create) -> None:
    """K13: as a crash of the machine leaves it. Its end was told once, and then NotFoundError."""
    sandbox = create()
    file = engine.store.folder(sandbox.id) / "status.json"
    os.kill(supervisor(engine, sandbox), signal.SIGKILL)
    eventually(lambda: not engine.store.alive(sandbox.id))
    file.write_bytes(file.read_bytes()[:50])
    for _ in range(2):
        assert Sandbox.from_id(sandbox.id, engine=engine).poll() == 137


# ------------------------------------------------------------------------------ what others can see


class TestPrivacy:
    def test_state_is_open_to_nobody_else(self, engine: Embedded, create: Create) -> None:
        create("sleep", "54321")
        state = _config.state()
        assert state.stat().st_mode & 0o077 == 0
        for folder in (engine.store.sandboxes, engine.store.ended):
            assert folder.stat().st_mode & 0o077 == 0

    @pytest.mark.root
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_another_user_reaches_nothing(self, engine: Embedded, create: Create) -> None:
        folder = engine.store.folder(create().id)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                for path in (folder, folder / "agent.sock", folder / "control.sock", engine.store.sandboxes):
                    with pytest.raises(PermissionError):
                        os.listdir(path)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def test_commands_cannot_look_into_who_moves_files_for_their_user(self, create: Create, image: Image) -> None:
        """It has their user's id, and the connection to this program."""
        sandbox = create(image=image.user("agent"))
        transfer = sandbox._agent.lease()
        link = run_sync(transfer.__aenter__())
        run_sync(link.send(_wire.file(_wire.FileOp.WRITE, b"/home/agent/file")))
        script = """
            sleep 99 & mine=$!
            for p in /proc/[0-9]*; do
                grep -q "^PPid:.1$" $p/status && grep -q "^Uid:.1000.1000.1000.1000" $p/status && its=${p#/proc/}
            done
            for p in $mine $its; do
                ls /proc/$p/fd >/dev/null 2>&1; echo $?
                head -c1 /proc/$p/environ >/dev/null 2>&1; echo $?
            done
            kill -STOP $its
        """
        mine_fd, mine_environ, *its = sandbox.exec("sh", "-c", script).stdout.read().split()
        assert (mine_fd, mine_environ) == ("0", "0"), "the control: what is the user's own"
        assert its == ["1", "1"]
        run_sync(link.send(_wire.frame(_wire.Kind.END)))
        assert run_sync(link.receive())[0] == _wire.Kind.OK, "a worker that is stopped is woken"
        run_sync(transfer.__aexit__(None, None, None))
        assert sandbox.exec("stat", "-c", "%U", "/home/agent/file").stdout.read() == "agent\n"

    def test_secrets_are_in_no_file_and_no_command_line(self, engine: Embedded, create: Create) -> None:
        canary = secrets.token_hex(12)
        sandbox = create(env={"TOKEN": canary}, name="canary")
        assert sandbox.exec("sh", "-c", "echo $TOKEN").stdout.read() == canary + "\n", "the control"
        needle = canary.encode()
        roots = [engine.store.sandboxes, engine.store.ended, _config.machine()]
        files = [path for root in roots for path in root.rglob("*") if path.is_file()]
        assert files
        lines = list(Path("/proc").glob("[0-9]*/cmdline"))
        found = []
        for path in (*files, *lines):
            with contextlib.suppress(OSError):
                if needle in path.read_bytes():
                    found.append(str(path))
        assert found == []

    def test_the_supervisor_holds_nothing_of_its_makers(self, engine: Embedded, create: Create, tmp_path: Path) -> None:
        """A descriptor that it kept would keep the maker's pipes open and its files undeleted."""
        with open(tmp_path / "file", "w") as file:
            os.set_inheritable(file.fileno(), True)
            boss = supervisor(engine, create())
            links = []
            for fd in Path(f"/proc/{boss}/fd").iterdir():
                with contextlib.suppress(OSError):
                    links.append(os.readlink(fd))
        assert not any(str(tmp_path) in link for link in links)

    def test_terminated_means_told_before_anything_is_gone(self, engine: Embedded, create: Create) -> None:
        sandbox = create()
        folder = engine.store.folder(sandbox.id)
        sandbox.terminate()
        assert not folder.exists()
        with pytest.raises(SandboxTerminatedError):
            sandbox.exec("true")
