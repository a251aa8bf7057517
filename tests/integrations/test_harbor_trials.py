"""Harbor's trials in our sandboxes: its oracle and nop agents on every kind of task, many at once."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("harbor", reason="frameworks have environments of their own: make test-integrations")

from openmodal.integrations.harbor import APP
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually
from tests.build.test_registry import Content, docker_registry, plain, push

pytestmark = pytest.mark.embedded

PAGE = Path(__file__).resolve().parents[2] / "docs/integrations/harbor.md"
FILE = re.compile(r"^```\w+\n# sums/(\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
HARBOR = str(Path(sys.executable).with_name("harbor"))
ENVIRONMENT = "openmodal.integrations.harbor:OpenModalEnvironment"

NO_NETWORK = 'test "$(ls /sys/class/net)" = lo && ! getent hosts example.com\n'
# Nobody answers there; what the gate decides is in the sandbox's log.
CALLS = """\
for address in {addresses}; do
    python3 -c 'import socket, sys; socket.create_connection((sys.argv[1], 80), 2).recv(1)' $address 2>/dev/null || true
done
"""
LISTED, OTHER = "192.0.2.7", "192.0.2.8"
PHASES = f"""\
[environment]
network_mode = "no-network"
[agent]
network_mode = "allowlist"
allowed_hosts = ["{LISTED}"]
[verifier]
network_mode = "no-network"
"""


def task(folder: Path, *, configuration: str = "", dockerfile: str = "", solve: str = "", check: str = "") -> None:
    """The page's task, with something else about it."""
    files = dict(FILE.findall(PAGE.read_text("utf-8")))
    files["task.toml"] += configuration
    files["environment/Dockerfile"] += dockerfile
    files["solution/solve.sh"] += solve
    # A check that fails leaves no reward, which is an error of the trial.
    files["tests/test.sh"] = "set -e\n" + check + "set +e\n" + files["tests/test.sh"]
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def run(folder: Path, agent: str, *options: str) -> dict[str, list[float]]:
    """The rewards of each task's trials."""
    command = [HARBOR, "run", "-p", "tasks", "-a", agent, "--env", ENVIRONMENT, "-o", agent, "-q", "-y", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rewards: dict[str, list[float]] = {}
    for path in (folder / agent).glob("*/*/result.json"):
        result = json.loads(path.read_text())
        assert not result["exception_info"], result["exception_info"]
        rewards.setdefault(result["task_name"].rpartition("/")[2], []).append(
            result["verifier_result"]["rewards"]["reward"]
        )
    return rewards


def test_oracle_and_nop_get_what_they_deserve_on_every_kind_of_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENMODAL_ENGINE", "embedded")
    tasks = tmp_path / "tasks"
    task(tasks / "root", solve="test $(id -u) = 0\n")
    task(
        tasks / "user",
        dockerfile="RUN useradd --create-home agent && chown agent /work\n",
        configuration='[agent]\nuser = "agent"\n',
        solve="test $(whoami) = agent\n",
        check="test $(whoami) = root\n",
    )
    task(
        tasks / "blocked",
        configuration='[environment]\nnetwork_mode = "no-network"\n',
        solve=NO_NETWORK,
        check=NO_NETWORK,
    )
    task(
        tasks / "phases",
        configuration=PHASES,
        solve=CALLS.format(addresses=f"{LISTED} {OTHER}"),
        check=CALLS.format(addresses=LISTED),
    )
    assert run(tmp_path, "nop") == {name: [0.0] for name in ("root", "user", "blocked", "phases")}
    assert run(tmp_path, "oracle", "-k", "4", "-n", "16") == {
        name: [1.0] * 4 for name in ("root", "user", "blocked", "phases")
    }
    assert not Sandbox.list(app=APP)
    ended = [sandbox for sandbox in Sandbox.list(app=APP, ended=True) if "phases" in str(sandbox.last_status)]
    log = [(record.address, record.allowed) for record in ended[-1].egress_log()]
    assert log == [(f"{LISTED}:80", True), (f"{OTHER}:80", False), (f"{LISTED}:80", False)]


def test_a_task_that_is_an_image_has_its_files_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMODAL_ENGINE", "embedded")
    busybox = shutil.which("busybox")
    assert busybox
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        archive.add(busybox, "bin/busybox")
        for name in {*subprocess.check_output([busybox, "--list"], text=True).split()} - {"busybox"}:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
    with docker_registry(tmp_path) as host:
        push(host, Content([output.getvalue()], [plain], {"Env": ["PATH=/bin"], "WorkingDir": "/work"}))
        task(
            tmp_path / "tasks/image",
            configuration=f'[environment]\ndocker_image = "{host}/team/app"\n',
            solve="cat beside.txt > /work/answer\n",
        )
        (tmp_path / "tasks/image/environment/Dockerfile").unlink()
        (tmp_path / "tasks/image/environment/beside.txt").write_text("5050")
        solution = tmp_path / "tasks/image/solution/solve.sh"
        solution.write_text(solution.read_text().replace("python3", "true"))
        assert run(tmp_path, "oracle") == {"image": [1.0]}


def test_a_run_that_is_killed_leaves_no_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMODAL_ENGINE", "embedded")
    task(tmp_path / "tasks/slow", solve="sleep 600\n")
    command = [HARBOR, "run", "-p", "tasks", "-a", "oracle", "--env", ENVIRONMENT, "-q", "-y"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: Sandbox.list(app=APP), seconds=300)
        process.kill()
    eventually(lambda: not Sandbox.list(app=APP))
