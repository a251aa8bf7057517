"""The OpenAI Agents SDK's own sessions on our sandboxes, and a whole run with a scripted model."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("agents.sandbox", reason="frameworks have environments of their own: make test-integrations")

from agents.sandbox import LocalSnapshotSpec, Manifest, User, errors
from agents.sandbox.entries import Dir, File
from agents.sandbox.manifest import Environment
from agents.sandbox.session import SandboxSession
from agents.sandbox.session.pty_types import PtyExecUpdate

from openmodal.integrations.openai_agents import APP, OpenModalOptions, OpenModalSandboxClient
from openmodal.sandbox import Sandbox
from tests.integrations.conftest import printed_by_page

pytestmark = [pytest.mark.anyio, pytest.mark.embedded]

OPTIONS = OpenModalOptions(options={"engine": "embedded", "timeout": 900}, exposed_ports=(8000,))
SERVER = "python3 -m http.server 8000 --bind 127.0.0.1"
READY = "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8000))' 2>/dev/null"


def manifest() -> Manifest:
    return Manifest(
        entries={"a": File(content=b"text"), "deep": Dir(children={"b": File(content=b"deep")})},
        environment=Environment(value={"GREETING": "hello"}),
        users=[User(name="worker")],
    )


@pytest.fixture
async def session() -> AsyncIterator[SandboxSession]:
    client = OpenModalSandboxClient()
    async with await client.create(manifest=manifest(), options=OPTIONS) as session:
        yield session
    await client.delete(session)
    assert not Sandbox.list(app=APP, engine="embedded")


def test_the_pages_run_ends_with_its_answer(tmp_path: Path) -> None:
    assert printed_by_page("openai_agents", tmp_path).split()[-1] == "42"
    assert not Sandbox.list(app=APP, engine="embedded")


async def test_commands(session: SandboxSession) -> None:
    done = await session.exec("cat a deep/b; echo $GREETING; pwd; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.exit_code) == (b"textdeephello\n/workspace\n", b"err\n", 3)
    done = await session.exec("whoami", user="worker")
    assert done.stdout == b"worker\n"
    with pytest.raises(errors.ExecTimeoutError):
        await session.exec("sleep 60", timeout=0.5)
    with pytest.raises(errors.ExecTransportError, match="nobody-here"):
        await session.exec("true", user="nobody-here")
    assert await session.running()


async def test_files_stay_in_the_workspace_and_have_their_owners(session: SandboxSession) -> None:
    await session.write(Path("new/c"), io.BytesIO(b"content"))
    assert (await session.read(Path("new/c"))).read() == b"content"
    assert await session.read_bounded(Path("new/c"), max_bytes=3) == b"con"
    assert {Path(entry.path).name for entry in await session.ls("new")} >= {"c"}
    with pytest.raises(errors.WorkspaceReadNotFoundError):
        await session.read(Path("none"))
    with pytest.raises(errors.WorkspaceArchiveWriteError):
        await session.write(Path("a"), io.BytesIO(b""), user="worker")
    await session.mkdir("of-worker")
    assert (await session.exec("chown worker of-worker")).ok()
    await session.write(Path("of-worker/d"), io.BytesIO(b"d"), user=User(name="worker"))
    assert (await session.exec("stat -c %U of-worker/d")).stdout == b"worker\n"
    assert (await session.exec("ln -s /etc/hostname out")).ok()
    for outside in ("../etc/hostname", "/etc/hostname", "out"):
        with pytest.raises(errors.InvalidManifestPathError):
            await session.read(Path(outside))


async def ended(session: SandboxSession, update: PtyExecUpdate) -> tuple[bytes, int | None]:
    """What a command writes up to its end, and its exit code."""
    output = update.output
    while update.process_id:
        update = await session.pty_write_stdin(session_id=update.process_id, chars="")
        output += update.output
    return output, update.exit_code


async def test_commands_that_run_on(session: SandboxSession) -> None:
    begun = await session.pty_exec_start("read a; echo said $a; exit 3", tty=True, yield_time_s=0.25)
    assert begun.process_id and begun.exit_code is None
    said = await session.pty_write_stdin(session_id=begun.process_id, chars="hello\n", yield_time_s=5)
    # What is typed is shown, too.
    assert await ended(session, said) == (b"hello\r\nsaid hello\r\n", 3)
    with pytest.raises(errors.PtySessionNotFoundError):
        await session.pty_write_stdin(session_id=begun.process_id, chars="x")

    done = await session.pty_exec_start("echo out; echo err >&2; exit 4", yield_time_s=20)
    assert await ended(session, done) == (b"out\nerr\n", 4)
    # What it leaves behind holds its output open.
    left = await session.pty_exec_start("echo out; sleep 600 & exit 5", yield_time_s=0.25)
    assert await ended(session, left) == (b"out\n", 5)
    silent = await session.pty_exec_start("sleep 600", yield_time_s=0.25)
    assert silent.process_id
    with pytest.raises(RuntimeError, match="stdin is not available for this process"):
        await session.pty_write_stdin(session_id=silent.process_id, chars="x")
    await session.pty_terminate_all()
    with pytest.raises(errors.PtySessionNotFoundError):
        await session.pty_write_stdin(session_id=silent.process_id, chars="")


async def test_a_port_is_reached(session: SandboxSession) -> None:
    await session.pty_exec_start(SERVER, yield_time_s=0.25)
    assert (await session.exec(f"for n in $(seq 100); do {READY} && exit; sleep 0.1; done; exit 1")).ok()
    endpoint = await session.resolve_exposed_port(8000)
    with urllib.request.urlopen(endpoint.url_for("http") + "a", timeout=60) as answer:
        assert answer.read() == b"text"
    with pytest.raises(errors.ExposedPortUnavailableError):
        await session.resolve_exposed_port(9)


async def test_a_session_is_resumed_in_its_sandbox_or_from_its_snapshot(tmp_path: Path) -> None:
    client, snapshot = OpenModalSandboxClient(), LocalSnapshotSpec(base_path=tmp_path)
    first = await client.create(manifest=manifest(), options=OPTIONS, snapshot=snapshot)
    async with first:
        await first.exec("echo kept > made; chown worker made; echo lost > /srv/outside")
        live = await client.resume(client.deserialize_session_state(client.serialize_session_state(first.state)))
        await live.start()
        assert (await live.exec("cat /srv/outside")).stdout == b"lost\n"
    second = await client.resume(client.deserialize_session_state(client.serialize_session_state(first.state)))
    async with second:
        done = await second.exec("cat made a; stat -c %U made; ls /srv")
        assert done.stdout == b"kept\ntextworker\n"
    await client.delete(second)
    assert not Sandbox.list(app=APP, engine="embedded")


async def test_an_image_with_a_user_has_a_workspace_of_that_user(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:3.13-slim\nRUN useradd agent\nUSER agent\n")
    options = OpenModalOptions(image=str(tmp_path / "Dockerfile"), options={"engine": "embedded", "timeout": 900})
    async with await OpenModalSandboxClient().create(manifest=Manifest(), options=options) as session:
        assert (await session.exec("whoami; touch mine && stat -c %U mine")).stdout == b"agent\nagent\n"
