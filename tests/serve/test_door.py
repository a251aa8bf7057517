"""Who comes in, what a door says of itself, and what is lost with one: nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from modal._utils.grpc_utils import custom_detail_codec
from modal_proto import api_grpc, api_pb2

from openmodal import Image, Sandbox, engines
from openmodal.serve import apps, ids
from openmodal.serve.access import Access
from openmodal.serve.calls import Call, Details
from openmodal.serve.door import Door as InnerDoor
from openmodal.serve.door import Limits
from openmodal.serve.images import Images
from openmodal.serve.kept import Kept
from openmodal.serve.sandboxes import Sandboxes
from openmodal.serve.volumes import Volumes
from openmodal.volume import Volume
from tests.serve.conftest import TOKEN, Door, environment, opened

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
print(whole.hexdigest(), process.wait(), flush=True)
sys.stdin.readline()  # until no door is killed any more
sandbox.terminate()
"""
)


def client(program: str, door: Door, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment("1.6", door.variables | variables),
        stdin=subprocess.PIPE,
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


def test_tokens_of_a_file_are_in_no_log(tmp_path: Path) -> None:
    with opened(tmp_path) as door:
        while "SSL_CERT_FILE" not in (tmp_path / "log").read_text():  # its last word
            assert door.process.poll() is None
            time.sleep(0.05)
        door.process.terminate()
        assert door.process.stdout
        said = door.process.stdout.read() + (tmp_path / "log").read_text()
    assert TOKEN[0] not in said
    assert TOKEN[1] not in said


def test_it_tells_how_it_is(door: Door) -> None:
    client(BEGIN + "modal.Sandbox.create(app=app, image=image).terminate()", door).communicate()
    with urllib.request.urlopen(f"{door.url}/healthz") as answer:
        assert json.load(answer) == {"engine": "embedded", "sandboxes": 0}
    with urllib.request.urlopen(f"{door.url}/metrics") as answer:
        text = answer.read().decode()
    assert 'openmodal_calls_total{call="SandboxCreateV2",status="OK"} 1' in text


@pytest.mark.parametrize("until", [1, 1 << 40])
def test_files_come_in_by_urls_of_its_own_only(door: Door, until: int) -> None:
    request = urllib.request.Request(f"{door.url}/blobs/{'0' * 64}/4/{until}/{'0' * 64}", b"data", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)


def test_urls_end_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access((TOKEN,), b"key")
    text, until, signature = access.signed("blob").split("/")
    assert access.is_signed(text, int(until), signature)
    assert not access.is_signed(text, int(until) + 1, signature)
    monkeypatch.setattr("time.time", lambda: int(until) + 1.0)
    assert not access.is_signed(text, int(until), signature)


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


FULL = (
    BEGIN
    + """
import threading, time
first = modal.Sandbox.create(app=app, image=image, timeout=600)
began, ends = time.monotonic(), threading.Timer(2, first.terminate)
ends.start()
modal.Sandbox.create(app=app, image=image, timeout=600).terminate()
ends.join()
print(time.monotonic() - began >= 2)
"""
)


def test_who_finds_no_room_waits_for_it(tmp_path: Path) -> None:
    with opened(tmp_path, 0, "--max-sandboxes", "1") as door:
        said, errors = client(FULL, door).communicate(timeout=300)
    assert said == "True\n", errors


def test_a_client_that_waited_for_nothing_is_told_when_to_ask_again() -> None:
    sent = Details().encode(Status.RESOURCE_EXHAUSTED, "full", [api_pb2.RPCRetryPolicy(retry_after_secs=5)])
    (told,) = custom_detail_codec.decode(Status.RESOURCE_EXHAUSTED, "full", sent)
    assert told == api_pb2.RPCRetryPolicy(retry_after_secs=5)


async def status_of(door: Door, size: int) -> str:
    """What a door says to a message of that size."""
    channel = Channel("127.0.0.1", door.port)
    metadata = {"x-modal-token-id": TOKEN[0], "x-modal-token-secret": TOKEN[1]}
    request = api_pb2.MountPutFileRequest(sha256_hex="0" * 64, data=bytes(size))
    try:
        await api_grpc.ModalClientStub(channel).MountPutFile(request, metadata=metadata, timeout=300)
    except GRPCError as error:
        return error.status.name
    finally:
        channel.close()
    return "OK"


def test_a_message_has_a_size_that_is_held_in_memory(door: Door) -> None:
    assert asyncio.run(status_of(door, 40 << 20)) == "RESOURCE_EXHAUSTED"
    # That one is read, and its file is not what its digest says.
    assert asyncio.run(status_of(door, 4 << 20)) == "INVALID_ARGUMENT"


def test_more_than_the_queue_takes_are_told_to_ask_again(tmp_path: Path) -> None:
    engine, kept = engines.choose("embedded"), Kept(tmp_path)
    limits = Limits(starts=1, queue=1)
    door = InnerDoor(engine, kept, Access((TOKEN,), b"key"), Images(engine, kept), "http://127.0.0.1:1", limits)
    sandboxes = Sandboxes(door)

    async def counted(id: str) -> None:
        async with sandboxes._counted(id):
            pass

    async def look() -> None:
        async with sandboxes._counted("first"):
            waiting = asyncio.create_task(counted("second"))
            await asyncio.sleep(0)
            with pytest.raises(GRPCError) as refused:
                await counted("third")
            assert refused.value.status is Status.RESOURCE_EXHAUSTED
        await waiting
        await counted("third")

    asyncio.run(look())


def test_silence_is_not_measured_by_the_clock_of_the_wall() -> None:
    """A machine that slept, or whose clock was set, has not heard its programs for hours by it."""
    first = apps.listened({}, {"a": 1e9, "b": 1e9}, 10.0)
    assert first == {"a": (1e9, 10.0), "b": (1e9, 10.0)}
    assert apps.listened(first, {"a": 1e9, "b": 2e9}, 25.0) == {"a": (1e9, 10.0), "b": (2e9, 25.0)}
    assert apps.listened(first, {}, 25.0) == {}


def test_sandboxes_of_a_run_that_fell_silent_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of `app.run()` was killed; one whose program beats goes on."""
    monkeypatch.setattr(apps, "_BEAT", 0.1)
    monkeypatch.setattr(apps, "_SILENCE", 2.0)
    engine, kept = engines.choose("embedded"), Kept(tmp_path)
    door = InnerDoor(engine, kept, Access((TOKEN,), b"key"), Images(engine, kept), "http://127.0.0.1:1", Limits())

    async def look() -> None:
        looking = asyncio.create_task(apps.end_lost_runs(door))
        try:
            while ids.app("door", "silent") in kept.names(door.own(apps.RUN)):
                kept.name(door.own(apps.RUN), ids.app("door", "beats"), "")
                await asyncio.sleep(0.05)
        finally:
            looking.cancel()

    def created(run: str) -> Sandbox:
        monkeypatch.setenv("OPENMODAL_RUN", run)
        image = Image.from_scratch().add_local_file("/bin/busybox", "/bin/busybox")
        return Sandbox.create(image=image, engine=engine, timeout=600)

    with created("silent") as silent, created("beats") as beats:
        kept.name(door.own(apps.RUN), ids.app("door", "silent"), "")
        asyncio.run(look())
        assert (silent.poll(), beats.poll()) == (137, None)
    assert list(kept.names(door.own(apps.RUN))) == [ids.app("door", "beats")]


def test_an_ephemeral_volume_whose_program_fell_silent_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed for ever; its client says no other end than its silence."""
    monkeypatch.setattr(apps, "_BEAT", 0.1)
    monkeypatch.setattr(apps, "_VOLUME_SILENCE", 2.0)
    engine, kept = engines.choose("embedded"), Kept(tmp_path)
    door = InnerDoor(engine, kept, Access((TOKEN,), b"key"), Images(engine, kept), "http://127.0.0.1:1", Limits())
    volumes, call = Volumes(door), Call("VolumeGetOrCreate", {}, None)  # type: ignore[arg-type]
    ephemeral = api_pb2.VolumeGetOrCreateRequest(object_creation_type=api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL)

    async def look() -> tuple[str, str]:
        silent, beats = [(await volumes.get_or_create(ephemeral, call)).volume_id for _ in range(2)]
        looking = asyncio.create_task(apps.end_lost_runs(door))
        try:
            while ids.volume_name(silent) in kept.names(door.own(apps.VOLUME)):
                await volumes.heartbeat(api_pb2.VolumeHeartbeatRequest(volume_id=beats), call)
                await asyncio.sleep(0.05)
        finally:
            looking.cancel()
        return ids.volume_name(silent), ids.volume_name(beats)

    silent, beats = asyncio.run(look())
    try:
        assert {silent, beats} & {found.name for found in Volume.list(engine=engine)} == {beats}
    finally:
        Volume.delete(beats, engine=engine)


async def _listed(door: Door, tag: str, *, finished: bool) -> list[str]:
    channel = Channel("127.0.0.1", door.port)
    metadata = {"x-modal-token-id": TOKEN[0], "x-modal-token-secret": TOKEN[1]}
    request = api_pb2.SandboxListRequest(include_finished=finished)
    request.tags.add(tag_name="which", tag_value=tag)
    try:
        answer = await api_grpc.ModalClientStub(channel).SandboxListV2(request, metadata=metadata, timeout=100)
    finally:
        channel.close()
    return [each.id for each in answer.sandboxes]


def test_those_that_ended_are_listed_if_they_are_asked_for(door: Door) -> None:
    image, tag = Image.from_scratch().add_local_file("/bin/busybox", "/bin/busybox"), os.urandom(4).hex()
    with Sandbox.create(image=image, engine="embedded", timeout=600, tags={"which": tag}) as sandbox:
        id = ids.sandbox_on_wire(sandbox.id)
        assert asyncio.run(_listed(door, tag, finished=True)) == [id]
    assert asyncio.run(_listed(door, tag, finished=False)) == []
    assert asyncio.run(_listed(door, tag, finished=True)) == [id]
