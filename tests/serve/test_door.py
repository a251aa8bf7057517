"""Who comes in, what a door says of itself, and what is lost with one: nothing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.serve.conftest import Door, environment, opened

pytestmark = pytest.mark.embedded

BEGIN = """
import sys, modal
app = modal.App.lookup("door", create_if_missing=True)
image = (
    modal.Image.from_scratch().add_local_file("/bin/busybox", "/bin/busybox", copy=True)
    .dockerfile_commands(['RUN ["/bin/busybox", "--install", "-s", "/bin"]'])
)
"""
LONG = (
    BEGIN
    + """
sandbox = modal.Sandbox.create(app=app, image=image, timeout=600)
script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); [ $((i % 500)) = 0 ] && sleep 0.3; done; exit 5"
process = sandbox.exec("sh", "-c", script)
print("begun", flush=True)
import hashlib
whole = hashlib.sha256()
for piece in process.stdout:
    whole.update(piece.encode())
print(whole.hexdigest(), process.wait())
sandbox.terminate()
"""
)


def client(program: str, door: Door, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment("1.6", door.variables | variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_door_that_is_killed_in_the_middle_of_output_loses_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as door:
        program = client(LONG, door)
        assert program.stdout
        assert program.stdout.readline() == "begun\n"
        for _ in range(3):
            door.kill()
            with opened(tmp_path, door.port) as again:
                door.process = again.process
                try:
                    program.wait(1)
                except subprocess.TimeoutExpired:
                    continue
                break
        with opened(tmp_path, door.port):
            said, errors = program.communicate(timeout=300)
    lines = "".join(f"line {number}\n" for number in range(3000))
    assert said.split() == [hashlib.sha256(lines.encode()).hexdigest(), "5"], errors


def test_two_doors_serve_the_same_sandboxes(door: Door, tmp_path: Path) -> None:
    made, _ = client(BEGIN + "print(modal.Sandbox.create(app=app, image=image).object_id)", door).communicate()
    with opened(tmp_path) as other:
        end = (
            BEGIN
            + f"s = modal.Sandbox.from_id({made.strip()!r}); print(s.exec('echo', 'hi').stdout.read()); s.terminate()"
        )
        said, errors = client(end, other).communicate()
    assert said.strip() == "hi", errors


@pytest.mark.parametrize("variable", ["MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"])
def test_a_wrong_token_is_refused(door: Door, variable: str) -> None:
    program = client(BEGIN, door, **{variable: "ak-wrong"})
    _, errors = program.communicate()
    assert program.returncode == 1
    assert "the token is not one of this door's" in errors


PROOFS = (
    BEGIN
    + """
import asyncio, os, urllib.parse
from grpclib.client import Channel
from modal_proto import api_grpc, api_pb2, task_command_router_grpc as router_grpc, task_command_router_pb2 as router
one, other = (modal.Sandbox.create(app=app, image=image, timeout=600) for _ in range(2))
place = urllib.parse.urlparse(os.environ["MODAL_SERVER_URL"])
token = {"x-modal-token-" + part: os.environ["MODAL_TOKEN_" + part.upper()] for part in ("id", "secret")}
async def call():
    channel = Channel(place.hostname, place.port)
    control, commands = api_grpc.ModalClientStub(channel), router_grpc.TaskCommandRouterStub(channel)
    asked = api_pb2.SandboxGetCommandRouterAccessRequest(sandbox_id=one.object_id)
    access = await control.SandboxGetCommandRouterAccess(asked, metadata=token)
    for made in (one, other):
        task = "ta-" + made.object_id[3:] + "V"
        request = router.TaskExecStartRequest(task_id=task, exec_id="x", command_args=["true"])
        try:
            await commands.TaskExecStart(request, metadata={"authorization": "Bearer " + access.jwt})
            print("served")
        except Exception as error:
            print(error.status.name)
    channel.close()
asyncio.run(call())
one.terminate(); other.terminate()
"""
)


def test_a_proof_for_one_sandbox_is_none_for_another(door: Door) -> None:
    said, errors = client(PROOFS, door).communicate()
    assert said.split() == ["served", "UNAUTHENTICATED"], errors


def test_it_tells_how_it_is(door: Door) -> None:
    client(BEGIN + "modal.Sandbox.create(app=app, image=image).terminate()", door).communicate()
    with urllib.request.urlopen(f"{door.url}/healthz") as answer:
        assert json.load(answer) == {"engine": "embedded", "sandboxes": 0}
    with urllib.request.urlopen(f"{door.url}/metrics") as answer:
        text = answer.read().decode()
    assert 'openmodal_calls_total{call="SandboxCreateV2",status="OK"} 1' in text


def test_files_come_in_by_urls_of_its_own_only(door: Door) -> None:
    request = urllib.request.Request(f"{door.url}/blobs/{'0' * 64}/4/{'0' * 64}", b"data", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)


def test_what_is_refused_is_in_its_log_as_json(tmp_path: Path) -> None:
    with opened(tmp_path) as door:
        client(BEGIN + "modal.Sandbox.from_id('sb-' + 'x' * 26)", door).communicate()
        lines = (tmp_path / "log").read_text("utf-8").splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert {"refused"} == {event["event"] for event in events}
    assert "NOT_FOUND" in {event["status"] for event in events}


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "openmodal", "--local", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_program_runs_behind_a_door_of_its_own_and_its_exit_code_is_ours() -> None:
    done = serve("--", sys.executable, "-c", "import os; print(os.environ['MODAL_SERVER_URL']); raise SystemExit(7)")
    assert done.returncode == 7
    assert done.stdout.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "the door must be encrypted"),
        (["--tls-cert", "/nonexistent", "--tls-key", "/nonexistent"], "cannot be used"),
        (["--tls-cert", "/nonexistent"], "give both"),
        (["--token-file", "/nonexistent"], "cannot be read"),
        (["--", "no-such-program"], "cannot be run"),
    ],
)
def test_what_cannot_be_served_is_told(arguments: list[str], words: str) -> None:
    done = serve(*arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_told(door: Door) -> None:
    done = serve("--port", str(door.port))
    assert done.returncode == 1
    assert "--port 0 takes one that is free" in done.stderr
