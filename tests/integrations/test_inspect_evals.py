"""Evaluations of Inspect AI in our sandboxes, and what its own checks do not ask for."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai", reason="frameworks have environments of their own: make test-integrations")

from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.util import ComposeConfig, OutputLimitExceededError, SandboxUnavailableError

from openmodal.errors import InvalidError
from openmodal.integrations.inspect import APP, OpenModalSandboxEnvironment
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.embedded]

PAGE = Path(__file__).resolve().parents[2] / "docs/integrations/inspect.md"
FILE = re.compile(r"^```\w+\n# (Dockerfile|sums\.py)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INSPECT = str(Path(sys.executable).with_name("inspect"))

TOOLS = """

from inspect_ai.dataset import MemoryDataset
from inspect_ai.tool import bash_session, text_editor

CALLS = [
    ("text_editor", {"command": "create", "path": "/home/agent/a.py", "file_text": "print(6 * 7)"}),
    ("bash_session", {"action": "type_submit", "input": "cd /home/agent && python3 a.py"}),
    ("bash", {"command": "sleep 60"}),
    ("bash", {"command": "head -c 11000000 /dev/zero"}),
    ("bash", {"command": "cat from_host; whoami"}),
]


def calling(messages, *_):
    turn = sum(message.role == "assistant" for message in messages)
    if turn < len(CALLS):
        output = ModelOutput.for_tool_call("mockllm/model", *CALLS[turn])
    else:
        output = ModelOutput.from_content("mockllm/model", messages[-1].text)
    output.usage = ModelUsage()
    return output


@task
def tools():
    return Task(
        dataset=[Sample("go", target="agent", files={"from_host": "a file\\n"})],
        solver=[use_tools(bash(timeout=3), bash_session(), text_editor()), generate()],
        scorer=includes(),
        sandbox="openmodal",
        model=get_model("mockllm/model", custom_outputs=calling),
    )


@task
def sleeper():
    task = tools()
    task.solver = [use_tools(bash()), generate()]
    CALLS[:] = [("bash", {"command": "sleep 600"})]
    task.dataset = MemoryDataset([Sample("go", id=n, target="agent") for n in range(20)])
    return task
"""


@pytest.fixture(autouse=True)
def on_the_embedded_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMODAL_ENGINE", "embedded")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with the two files of the documentation's page, and two more tasks."""
    files = dict(FILE.findall(PAGE.read_text("utf-8")))
    (tmp_path / "Dockerfile").write_text(files["Dockerfile"] + "COPY . /srv\n")
    (tmp_path / "sums.py").write_text(files["sums.py"] + TOOLS)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [INSPECT, "eval", *arguments, "--display", "plain", "--log-format", "json", "--log-dir", "logs"]


def evaluated(folder: Path, *arguments: str) -> EvalLog:
    """Run an evaluation to its end; its log is in the folder that is the image's build context."""
    done = subprocess.run(command(*arguments), check=False, cwd=folder, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    (log,) = (folder / "logs").iterdir()
    return read_eval_log(str(log))


@asynccontextmanager
async def sample(config: str | ComposeConfig | None = None) -> AsyncIterator[OpenModalSandboxEnvironment]:
    made = await OpenModalSandboxEnvironment.sample_init("a task", config, {})
    environment = made["default"].as_type(OpenModalSandboxEnvironment)
    try:
        yield environment
    finally:
        await OpenModalSandboxEnvironment.sample_cleanup("a task", config, {"default": environment}, False)


def test_the_pages_evaluation_has_five_samples_that_are_all_right(tasks: Path) -> None:
    log = evaluated(tasks, "sums.py@sums")
    assert log.status == "success"
    assert log.results
    assert log.samples
    assert [score.metrics["accuracy"].value for score in log.results.scores] == [1.0]
    assert len(log.samples) == 5


def test_a_models_tools_work_and_their_failures_are_told_to_it(tasks: Path) -> None:
    (sample,) = evaluated(tasks, "sums.py@tools").samples or []
    assert sample.error is None
    answers = [
        (message.text, message.error and message.error.type) for message in sample.messages if message.role == "tool"
    ]
    made, run, late, long, last = answers
    assert "created" in made[0]
    assert "42" in run[0]
    assert late[1] == "timeout"
    assert long[1] == "limit"
    assert last == ("a file\nagent\n", None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_twenty_samples_run_at_once_and_an_evaluation_that_is_ended_leaves_none(
    tasks: Path, number: signal.Signals
) -> None:
    at_once = command("sums.py@sleeper", "--max-samples", "20", "--max-sandboxes", "20")
    with subprocess.Popen(at_once, cwd=tasks, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as evaluation:
        eventually(lambda: len(Sandbox.list(app=APP)) == 20, seconds=600)
        evaluation.send_signal(number)
        evaluation.communicate(timeout=600)
    eventually(lambda: not Sandbox.list(app=APP))


def test_without_cleanup_sandboxes_live_on(tasks: Path) -> None:
    evaluated(tasks, "sums.py@tools", "--no-sandbox-cleanup")
    (left,) = Sandbox.list(app=APP)
    assert left.exec("whoami").stdout.read() == "agent\n"
    left.terminate()


async def test_cleanup_ends_sandboxes_that_others_left() -> None:
    async with sample() as first, sample() as second:
        ids = {sandbox.id for sandbox in await Sandbox.list.aio(app=APP)}
        assert ids == {first.sandbox.id, second.sandbox.id}
        subprocess.run([INSPECT, "sandbox", "cleanup", "openmodal", first.sandbox.id], check=True)
        assert [sandbox.id for sandbox in await Sandbox.list.aio(app=APP)] == [second.sandbox.id]
        subprocess.run([INSPECT, "sandbox", "cleanup", "openmodal"], check=True)
        assert await Sandbox.list.aio(app=APP) == []


async def test_a_sandbox_that_has_ended_is_unavailable() -> None:
    async with sample() as environment:
        await environment.sandbox.terminate.aio()
        for call in (
            environment.exec(["true"]),
            environment.read_file("/etc/passwd"),
            environment.write_file("/x", ""),
        ):
            with pytest.raises(SandboxUnavailableError, match="terminated"):
                await call
        with pytest.raises(ConnectionError):
            await environment.connection()


async def test_its_connection_is_a_command_that_leads_into_it() -> None:
    async with sample() as environment:
        connection = await environment.connection(user="nobody")
        program, *arguments = shlex.split(connection.command)
        assert program == "openmodal"
        shell = [sys.executable, "-c", "from openmodal.cli import main; main()", *arguments]
        told = subprocess.run(shell, input="id -un; hostname\n", capture_output=True, text=True, check=True).stdout
        assert told.split() == ["nobody", environment.sandbox.id]


async def test_what_is_wrong_about_a_command_is_a_result_that_the_model_can_read() -> None:
    async with sample() as environment:
        nobody = await environment.exec(["true"], user="nobody-there")
        nowhere = await environment.exec(["true"], cwd="/no/such/folder")
        for result, said in ((nobody, "nobody-there"), (nowhere, "/no/such/folder")):
            assert (result.success, said in result.stderr) == (False, True), result
        for argv in (["echo", "a\0b"], ["echo", "x" * 200_000]):
            assert not (await environment.exec(argv)).success


async def test_a_path_that_leads_nowhere_is_a_file_that_is_not_there() -> None:
    async with sample() as environment:
        for path in ("/etc/passwd/below", "a\0b", ""):
            with pytest.raises(FileNotFoundError):
                await environment.read_file(path)
            with pytest.raises(FileNotFoundError):
                await environment.write_file(path, "text")


async def test_too_much_output_is_an_error_with_what_fits() -> None:
    async with sample() as environment:
        with pytest.raises(OutputLimitExceededError) as caught:
            await environment.exec(["sh", "-c", "yes x | head -c 12000000"])
        assert caught.value.truncated_output == "x\n" * (5 << 20)


async def test_a_late_command_tells_what_it_wrote() -> None:
    async with sample() as environment:
        with pytest.raises(TimeoutError) as caught:
            await environment.exec(["sh", "-c", "echo begun; sleep 60"], timeout=1)
        assert caught.value.__dict__["truncated_output"] == "begun\n"


async def test_a_compose_service_is_a_sandbox_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "Dockerfile").write_text("FROM python:3.13-slim\nRUN useradd --create-home agent\n")
    compose = tmp_path / "compose.yaml"
    compose.write_text(
        "services:\n  box:\n    build: image\n    command: sleep infinity\n    user: agent\n    working_dir: /home/agent\n"
        "    environment:\n      PRICE: 5$$\n    mem_limit: 300m\n    network_mode: none\n    x-openmodal: {timeout: 600}\n"
    )
    async with sample(str(compose)) as environment:
        script = "echo $(whoami) $PWD $PRICE; ls /sys/class/net; grep MemTotal /proc/meminfo"
        told = (await environment.exec(["sh", "-c", script])).stdout.split()
        assert told == ["agent", "/home/agent", "5$", "lo", "MemTotal:", str(300 * 1024), "kB"]
        status = await environment.sandbox.status.aio()
        assert status.expires - status.created == pytest.approx(600, abs=5)


async def test_services_of_a_compose_file_see_each_other_by_name(tmp_path: Path) -> None:
    """The tools' own one has `x-default`; another sample's services are others."""
    (tmp_path / "Dockerfile").write_text("FROM python:3.13-slim\n")
    compose = tmp_path / "compose.yaml"
    compose.write_text(
        "services:\n  web:\n    build: .\n    command: python3 -m http.server 8000\n"
        "  agent:\n    build: .\n    x-default: true\n    depends_on: [web]\nnetworks:\n  default:\n    internal: true\n"
    )
    asks = "import urllib.request as u; print(u.urlopen('http://web:8000/etc/hostname', timeout=5).read().decode())"
    script = f'for i in $(seq 60); do python3 -c "{asks}" 2>/dev/null && exit; sleep 1; done; exit 1'
    await OpenModalSandboxEnvironment.task_init("services", str(compose))
    started = [await OpenModalSandboxEnvironment.sample_init("services", str(compose), {}) for _ in range(2)]
    told = []
    for environments in started:
        assert [*environments] == ["agent", "web"]
        served = (await environments["web"].exec(["cat", "/etc/hostname"])).stdout
        told.append((served.strip(), (await environments["agent"].exec(["sh", "-c", script])).stdout.strip()))
    for environments in started:
        await OpenModalSandboxEnvironment.sample_cleanup("services", str(compose), environments, False)
    await OpenModalSandboxEnvironment.task_cleanup("services", str(compose), True)
    assert [said for _, said in told] == [served for served, _ in told]
    assert len({*told}) == 2


async def test_services_without_a_default_one_are_refused_before_anything_is_built() -> None:
    config = ComposeConfig.model_validate({"services": {"web": {"image": "a"}, "db": {"image": "b"}}})
    with pytest.raises(InvalidError, match="none of the services web, db is the default one"):
        await OpenModalSandboxEnvironment.task_init("startup", config)


async def test_samples_have_the_image_of_the_tasks_beginning(tasks: Path) -> None:
    """Inspect writes logs into the build context: each sample would have built anew."""
    dockerfile = str(tasks / "Dockerfile")
    await OpenModalSandboxEnvironment.task_init("startup", dockerfile)
    (tasks / "later").write_text("")
    async with sample(dockerfile) as environment:
        assert (await environment.exec(["ls", "/srv"])).stdout.split() == ["Dockerfile", "sums.py"]
    await OpenModalSandboxEnvironment.task_cleanup("startup", dockerfile, True)
    async with sample(dockerfile) as environment:
        assert "later" in (await environment.exec(["ls", "/srv"])).stdout
