"""What is special with gVisor in the box: that it is there, what of it is seen from outside, and that it goes, whoever dies."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from openmodal.engines.embedded import Embedded, gvisor, network
from openmodal.errors import EngineError, SandboxError, SandboxNotRunningError, SandboxTimeoutError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, eventually
from tests.embedded.test_faults import alive, clear, descendants, dies_at, make, supervisor
from tests.gvisor.engine import Gvisor


def parts(engine: Embedded, sandbox: Sandbox) -> dict[str, int]:
    """runsc's processes by name: `runsc` (process 1 of the box), `runsc-gofer`, `runsc-sandbox` (gVisor's kernel)."""
    found: dict[str, int] = {}
    for pid in descendants(supervisor(engine, sandbox)):
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
            found.setdefault(os.path.basename(name), pid)
    return found


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def cpu_seconds(pids: list[int]) -> float:
    """The CPU time that processes have used, as this machine's kernel counts it."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class TestRuntime:
    def test_commands_run_on_gvisors_kernel_and_not_on_this_machines(self, create: Create) -> None:
        sandbox = create()
        assert "gVisor" in sandbox.exec("dmesg").stdout.read()
        assert sandbox.exec("uname", "-r").stdout.read().strip() != os.uname().release

    @pytest.mark.parametrize("compiler", ["cc", "musl-gcc"])
    def test_the_agent_starts_whichever_compiler_made_it(
        self, compiler: str, create: Create, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not shutil.which(compiler):
            pytest.skip(f"needs {compiler}")
        build = Path(__file__).parents[2] / "native" / "build.py"
        subprocess.run([sys.executable, build, "--compiler", compiler, "--output", tmp_path], check=True)
        monkeypatch.setenv("OPENMODAL_AGENT", str(next(tmp_path.glob("openmodal-agent-*"))))
        assert create().exec("echo", "hello").stdout.read() == "hello\n"

    def test_the_same_engine_runs_native_sandboxes_on_this_machines_kernel(self, image: Image) -> None:
        with make(Embedded(), image) as sandbox:
            assert sandbox.exec("uname", "-r").stdout.read().strip() == os.uname().release
            assert sandbox.status().runtime == "native"

    def test_the_argument_says_it_and_the_status_tells_it(self, image: Image) -> None:
        with Sandbox.create(image=image, engine="embedded", runtime="gvisor", timeout=60) as sandbox:
            assert "gVisor" in sandbox.exec("dmesg").stdout.read()
            assert sandbox.status().runtime == "gvisor"
        assert sandbox.status().runtime == "gvisor"

    def test_from_outside_it_has_no_right_on_this_machine(self, engine: Gvisor, create: Create) -> None:
        """Ids of the sandbox's own range, no capability outside of its user namespace, and a filter on gVisor's kernel."""
        sandbox = create()
        own = {
            name: os.readlink(f"/proc/self/ns/{name}") for name in ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
        }
        found = parts(engine, sandbox)
        assert {"runsc", "runsc-gofer", "runsc-sandbox"} <= set(found)
        for pid in filter(alive, descendants(supervisor(engine, sandbox))):
            status = status_of(pid)
            assert min(map(int, status["Uid"].split() + status["Gid"].split())) >= 0x10000000, status["Name"]
            assert status["NoNewPrivs"] == "1", status["Name"]
            assert not [name for name in own if os.readlink(f"/proc/{pid}/ns/{name}") == own[name]], status["Name"]
        kernel = status_of(found["runsc-sandbox"])
        assert (kernel["Seccomp"], kernel["CapEff"]) == ("2", "0" * 16)

    def test_every_process_is_in_the_sandboxs_groups(self, engine: Gvisor, create: Create) -> None:
        sandbox = create()
        for pid in filter(alive, descendants(supervisor(engine, sandbox))):
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            assert any(sandbox.id in line for line in lines if "memory" in line or line.startswith("0::")), lines

    def test_files_are_the_sandboxs_own_and_owned_within_its_range(self, engine: Gvisor, create: Create) -> None:
        """On disk they look as if root and user 1000 had made them: the upper folder is a clean layer."""
        sandbox = create()
        sandbox.exec("sh", "-c", "echo x > /srv/root; echo y > /srv/agent; chown 1000:50 /srv/agent; echo z > /tmp/z")
        upper = engine._uppers.folder(sandbox.id) / "upper"
        found = {name: (upper / name).stat() for name in ("srv/root", "srv/agent", "tmp/z")}
        assert {name: (info.st_uid, info.st_gid) for name, info in found.items()} == {
            "srv/root": (0, 0),
            "srv/agent": (1000, 50),
            "tmp/z": (0, 0),
        }
        assert sandbox.filesystem.list_files("/tmp")[0].name == "z", "nothing that was for runsc is left"


class TestLimits:
    def test_the_machines_kernel_holds_the_limit_of_cpu_time(self, engine: Gvisor, create: Create) -> None:
        """From outside: what gVisor says of its processes' time is by its own clock."""
        sandbox = create(cpu=0.3)
        process = sandbox.spawn("sh", "-c", "echo up; while :; do :; done")
        assert process.stdout.readline() == "up\n"
        inside = descendants(supervisor(engine, sandbox))
        begin, used = time.monotonic(), cpu_seconds(inside)
        time.sleep(1.5)
        used, took = cpu_seconds(inside) - used, time.monotonic() - begin
        assert 0 < used < 0.5 * took

    def test_a_fork_bomb_is_stopped_by_gvisors_own_limit_sooner_or_later(self, create: Create) -> None:
        """It checks one start in eight or so: that forty passed a limit of twenty was seen, that three hundred do has a chance of 1e-16."""
        sandbox = create()
        limit = "/sys/fs/cgroup/pids/pids.max"
        assert sandbox.filesystem.read_text(limit).strip() == "512"
        script = f"echo 20 > {limit}; i=0; while [ $i -lt 300 ]; do sleep 54321 & i=$((i+1)); done; echo all"
        process = sandbox.exec("sh", "-c", script)
        assert "all" not in process.stdout.read()
        assert "fork" in process.stderr.read()
        sandbox.terminate()
        assert sandbox.poll() == 137


class TestRefusal:
    def test_without_runsc_one_sentence_names_it_and_the_remedy(
        self, engine: Gvisor, image: Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(network, "tool", lambda *_: None)
        with pytest.raises(EngineError, match=r"runsc.*apt-get install") as caught:
            make(engine, image)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("runsc", ["/bin/false", "busybox"])
    def test_a_runsc_that_does_not_work_is_told_and_leaves_nothing(
        self, engine: Gvisor, image: Image, monkeypatch: pytest.MonkeyPatch, busybox: Path, runsc: str
    ) -> None:
        """One that cannot be executed where it would run, and one that exits at once."""
        monkeypatch.setattr(gvisor, "find", lambda: str(busybox) if runsc == "busybox" else runsc)
        with pytest.raises(EngineError) as caught:
            make(engine, image)
        assert str(caught.value)
        assert not [id for id in engine.store.ids() if id.startswith("faults")]

    def test_what_runsc_says_is_told(self, engine: Gvisor, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gvisor, "_NETWORK", {"type": "network", "path": "/nowhere"})
        with pytest.raises(EngineError, match=r"runsc cannot start: .*nowhere"):
            make(engine, image)


class TestEnd:
    @pytest.fixture(autouse=True)
    def _clean(self, engine: Gvisor) -> Iterator[None]:
        yield
        clear(engine)

    def test_all_of_runsc_dies_with_the_supervisor(self, engine: Gvisor, create: Create) -> None:
        sandbox = create()
        sandbox.spawn("sh", "-c", "setsid sleep 54321 & trap '' TERM; while :; do sleep 54321; done")
        boss = supervisor(engine, sandbox)
        inside = descendants(boss)
        assert len(parts(engine, sandbox)) >= 3
        os.kill(boss, signal.SIGKILL)
        eventually(lambda: not any(map(alive, inside)))
        with pytest.raises(SandboxNotRunningError, match="supervisor"):
            sandbox.exec("true")
        assert not engine.store.folder(sandbox.id).exists()

    @pytest.mark.parametrize("part", ["runsc", "runsc-gofer", "runsc-sandbox"])
    def test_it_ends_when_one_part_is_killed(self, engine: Gvisor, create: Create, part: str) -> None:
        sandbox = create()
        inside = descendants(supervisor(engine, sandbox))
        os.kill(parts(engine, sandbox)[part], signal.SIGKILL)
        with pytest.raises((SandboxError, EngineError)):  # while it still dies without the gofer, of its files
            sandbox.exec("sh", "-c", "ls /bin; sleep 54321")
        eventually(lambda: sandbox.poll() is not None)
        eventually(lambda: not any(map(alive, inside)))
        ended = sandbox.status().ended
        assert ended and ended.reason == "lost"

    def test_its_timeout_ends_it(self, create: Create) -> None:
        sandbox = create(timeout=1)
        begin = time.monotonic()
        with pytest.raises(SandboxTimeoutError):
            sandbox.exec("sleep", "54321")
        assert time.monotonic() - begin < 20
        assert sandbox.poll() == 124

    def test_too_much_memory_ends_it_and_the_record_tells(self, create: Create) -> None:
        """gVisor's kernel holds the memory of all: so the machine's kernel ends all of them."""
        sandbox = create(memory=128)
        with pytest.raises(SandboxNotRunningError, match="memory"):
            sandbox.exec("dd", "if=/dev/zero", "of=/dev/null", "bs=400M", "count=1")
        ended = sandbox.status().ended
        assert ended and (ended.reason, ended.returncode) == ("oom", 137)

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_an_sdk_that_is_killed_during_create_leaves_a_usable_sandbox_or_nothing(
        self, engine: Gvisor, image: Image
    ) -> None:
        _, count = dies_at(0, lambda: make(engine, image))
        found = {clear(engine)}
        for number in range(count // 2, count + 1, max(1, count // 12)):
            dies_at(number, lambda: make(engine, image))
            found.add(clear(engine))
        assert found == {0, 1}

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_supervisor_that_is_killed_during_create_leaves_nothing(self, engine: Gvisor, image: Image) -> None:
        for n in range(6):
            pid = os.fork()
            if not pid:
                with contextlib.suppress(BaseException):
                    make(engine, image)
                os._exit(0)
            _kill_supervisor_of_new(engine, after=n * 0.03)
            os.waitpid(pid, 0)
            clear(engine)  # waits until nothing is left


def _kill_supervisor_of_new(engine: Gvisor, after: float) -> None:
    """Kill the supervisor of the sandbox that is being made, so many seconds after its socket is there."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for id in engine.store.ids():
            if id.startswith("faults") and (engine.store.folder(id) / "lock").exists():
                time.sleep(after)
                with contextlib.suppress(AssertionError, OSError):
                    os.kill(supervisor(engine, Sandbox(id, engine)), signal.SIGKILL)
                    return
        time.sleep(0.001)
    raise AssertionError("no supervisor came")
