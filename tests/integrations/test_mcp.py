"""`openmodal mcp`, as the SDK's own client uses it over both transports."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.types import TextContent

from openmodal.cli.image import images_of_file
from openmodal.integrations.mcp.sandboxes import APP
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import eventually
from tests.integrations.conftest import ROOT, printed_by_page

pytestmark = [pytest.mark.anyio, pytest.mark.embedded]

PAGE = ROOT / "docs/integrations/mcp.md"
TOKEN = "a-token-of-this-test"
IMAGE = """\
import openmodal
image = openmodal.Image.from_scratch().add_local_dir({root!r}, "/").run_commands(
    "/bin/busybox --install -s /bin; mkdir -p /tmp /root /srv"
).workdir("/srv")
"""
CLIENT = """\
import asyncio, os, sys
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

async def main():
    async with Client(stdio_client(StdioServerParameters(command=sys.argv[1], args=sys.argv[2:], env=dict(os.environ)))) as client:
        await client.call_tool("exec_command", {"command": "true"})
        print("ready", flush=True)
        await client.call_tool("exec_command", {"command": "sleep 600", "timeout_seconds": 600})

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What --image says for a root of busybox."""
    busybox = shutil.which("busybox")
    assert busybox
    folder = tmp_path_factory.mktemp("mcp")
    (folder / "root/bin").mkdir(parents=True)
    for name in ("busybox", "sh"):
        shutil.copy(busybox, folder / "root/bin" / name)
    (folder / "image.py").write_text(IMAGE.format(root=str(folder / "root")))
    return str(folder / "image.py")


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "openmodal", "--local", "mcp", *options]


@asynccontextmanager
async def over_stdio(*options: str) -> AsyncIterator[Client]:
    program, *arguments = command(*options)
    with open("/dev/null", "w") as quiet:
        server = StdioServerParameters(command=program, args=arguments, env=dict(os.environ))
        async with Client(stdio_client(server, errlog=quiet)) as client:
            yield client


@contextmanager
def served(*options: str) -> Iterator[str]:
    """The address of a server over HTTP."""
    with subprocess.Popen(command("--http", "0", *options), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        try:
            assert address.endswith("/mcp"), address
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=100)


@asynccontextmanager
async def over_http(*options: str) -> AsyncIterator[Client]:
    with served(*options) as address:
        async with Client(address) as client:
            yield client
            for sandbox in (await call(client, "list_sandboxes"))["result"]:
                await call(client, "terminate_sandbox", id=sandbox["id"])


@pytest.fixture(scope="module", params=[over_stdio, over_http])
async def client(request: pytest.FixtureRequest, image: str) -> AsyncIterator[Client]:
    """A session whose sandbox is made."""
    async with request.param("--image", image) as client:
        await client.call_tool("exec_command", {"command": "true"})
        yield client


def running() -> set[str]:
    return {sandbox.id for sandbox in Sandbox.list(app=APP, engine="embedded")}


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """What a tool answers as structured output."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    answer: dict[str, Any] = result.structured_content
    return answer


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """The sentence of a tool that fails."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    (said,) = result.content
    assert isinstance(said, TextContent)
    return said.text


async def test_each_tool_has_hints_and_schemas(client: Client) -> None:
    tools = (await client.list_tools()).tools
    assert [tool.name for tool in tools] == (
        "create_sandbox list_sandboxes terminate_sandbox exec_command read_output write_input kill_process run_python "
        "read_file write_file edit_file list_files make_directory move remove port_url"
    ).split()
    for tool in tools:
        assert tool.annotations and tool.annotations.read_only_hint is not None
        assert tool.output_schema and tool.description
        assert "ctx" not in tool.input_schema["properties"]


async def test_commands_and_files_of_a_session(client: Client) -> None:
    said = await call(client, "exec_command", command="echo out; echo err >&2; pwd; exit 3")
    assert (said["output"], said["exit_code"]) == ("out\nerr\n/srv\n", 3)
    late = await call(client, "exec_command", command="echo begun; sleep 60", timeout_seconds=1)
    assert (late["output"], late["exit_code"], late["timed_out"]) == ("begun\n", 124, True)
    much = await call(client, "exec_command", command="echo first; yes | head -c 100000; echo last")
    assert much["truncated"] and len(much["output"]) < 30_100
    assert re.match(
        r"first\ny\n.*\[\.\.\. 70011 bytes are left out here \.\.\.\].*\nlast\n\Z", much["output"], re.DOTALL
    )

    await call(client, "write_file", path="a/b.txt", text="one\ntwo\nthree\n")
    await call(client, "edit_file", path="a/b.txt", old="two", new="2")
    assert "0 times" in await refused(client, "edit_file", path="a/b.txt", old="two", new="2")
    read = await call(client, "read_file", path="a/b.txt", offset=2, limit=1)
    assert read == {"text": "     2\t2", "lines": 3, "truncated": True}
    await call(client, "make_directory", path="/srv/c")
    await call(client, "move", path="a/b.txt", new_path="/srv/c/b.txt")
    # A name that is no UTF-8 made the whole list fail.
    await call(client, "exec_command", command="touch /srv/c/$(printf 'no\\377text')")
    found = await call(client, "list_files", path="c")
    assert [entry["name"] for entry in found["entries"]] == ["b.txt", "no\\udcfftext"]
    assert found["entries"][0] == {"name": "b.txt", "kind": "file", "size": 12}
    assert "not empty" in await refused(client, "remove", path="c")
    await call(client, "remove", path="c", recursive=True)
    assert "No such file" in await refused(client, "read_file", path="c/b.txt")


async def test_commands_in_the_background(client: Client) -> None:
    script = "while read line; do echo got $line; done; echo end; exit 4"
    process = (await call(client, "exec_command", command=script, background=True))["process"]
    assert (await call(client, "read_output", process=process, wait_seconds=0))["output"] == ""
    await call(client, "write_input", process=process, text="a\n")
    said = await call(client, "read_output", process=process, wait_seconds=30)
    assert (said["output"], said["exit_code"]) == ("got a\n", None)
    await call(client, "write_input", process=process, text="b\n", end=True)
    text, code = "", None
    while code is None:
        said = await call(client, "read_output", process=process, wait_seconds=30)
        text, code = text + said["output"], said["exit_code"]
    assert (text, code) == ("got b\nend\n", 4)
    process = (await call(client, "exec_command", command="sleep 600", background=True))["process"]
    await call(client, "kill_process", process=process)
    while (said := await call(client, "read_output", process=process))["exit_code"] is None:
        pass
    assert said["exit_code"] == 137
    assert "background=true" in await refused(client, "read_output", process="nothing")


async def test_fifty_calls_at_once_share_the_sessions_sandbox(client: Client) -> None:
    calls = [call(client, "exec_command", command=f"echo {n}; hostname") for n in range(50)]
    said = [each["output"].split() for each in await asyncio.gather(*calls)]
    assert [number for number, _ in said] == [str(n) for n in range(50)]
    assert len({host for _, host in said}) == 1
    listed = (await call(client, "list_sandboxes"))["result"]
    assert said[0][1] in [each["id"] for each in listed]


async def test_the_operators_limits_hold(image: str) -> None:
    limits = ("--image", image, "--max-sandboxes", "2", "--max-lifetime", "10m", "--memory", "64m", "--block-network")
    async with over_stdio(*limits) as client:
        first = (await call(client, "create_sandbox", timeout_seconds=99999))["id"]
        second = (await call(client, "create_sandbox", timeout_seconds=60))["id"]
        lives = {
            each["id"]: each["expires"] - each["created"] for each in (await call(client, "list_sandboxes"))["result"]
        }
        assert {id: round(seconds / 10) for id, seconds in lives.items()} == {first: 60, second: 6}
        assert "2 sandboxes run already" in await refused(client, "create_sandbox")
        assert "limited the network" in await refused(client, "create_sandbox", image="python:3.13")
        said = await call(client, "exec_command", id=first, command="ls /sys/class/net; grep MemTotal /proc/meminfo")
        assert said["output"].split() == ["lo", "MemTotal:", str(64 * 1024), "kB"]
        await call(client, "terminate_sandbox", id=first)
        assert "no running sandbox" in await refused(client, "exec_command", id=first, command="true")

        # A sandbox that ended is told once; then the session has another one.
        own = (await call(client, "exec_command", command="hostname"))["output"].strip()
        assert own not in (first, second)
        Sandbox.from_id(own, engine="embedded").terminate()
        assert "terminated" in await refused(client, "exec_command", command="true")
        assert (await call(client, "exec_command", command="hostname"))["output"].strip() != own


async def test_a_build_is_no_way_around_a_list_of_domains(image: str) -> None:
    async with over_stdio("--image", image, "--allow-domain", "example.com") as client:
        for package in ({"pip_packages": ["a"]}, {"apt_packages": ["a"]}, {"image": "python:3.13"}):
            assert "limited the network" in await refused(client, "create_sandbox", **package)


async def test_sandboxes_of_others_are_not_seen(client: Client, image: str) -> None:
    with Sandbox.create(app=APP, image=images_of_file(image)["image"], engine="embedded") as another:
        assert "no running sandbox" in await refused(client, "exec_command", id=another.id, command="true")
        assert another.id not in [each["id"] for each in (await call(client, "list_sandboxes"))["result"]]


def test_a_client_that_is_killed_leaves_nothing(image: str) -> None:
    before = running()
    client = [sys.executable, "-c", CLIENT, *command("--image", image)]
    with subprocess.Popen(client, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.kill()
    eventually(lambda: not running() - before)


def test_a_server_that_is_killed_leaves_nothing(image: str) -> None:
    before = running()
    with subprocess.Popen(
        command("--image", image), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        for message in (
            {"id": 1, "method": "initialize", "params": {
                "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "old", "version": "1"}
            }},
            {"method": "notifications/initialized"},
            {"id": 2, "method": "tools/call", "params": {"name": "exec_command", "arguments": {"command": "echo hello"}}},
        ):  # fmt: skip
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
            process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert answers[1]["result"]["structuredContent"]["output"] == "hello\n"
        assert running() - before
        process.kill()
    eventually(lambda: not running() - before)


def status(address: str, **headers: str) -> int:
    """What becomes of a request of one of a client's first kind."""
    first = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    own = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    request = Request(address, json.dumps(first).encode(), own | {k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urlopen(request, timeout=100) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


async def test_http_is_for_programs_of_this_machine(image: str, tmp_path: Path) -> None:
    with served("--image", image) as address:
        let_in = status(address)
        assert let_in not in (401, 403, 421)
        assert status(address, Origin="http://evil.example") == 403
        assert status(address, Origin="http://127.0.0.1:8000") == 403
        assert status(address, Host="evil.example") == 421
    (tmp_path / "token").write_text(TOKEN + "\n")
    page = "https://page.example"
    with served("--image", image, "--token-file", str(tmp_path / "token"), "--allow-origin", page) as address:
        assert status(address) == 401
        assert status(address, Authorization="Bearer another-token-of-this") == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert status(address, **right) == let_in
        assert status(address, Origin=page, **right) == let_in
        assert status(address, Origin="http://evil.example", **right) == 403


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--http", "0.0.0.0:0"), "who could run commands"),
        (("--http", "nonsense"), "is not [HOST:]PORT"),
        (("--http", "0", "--token-file", "/nonexistent"), "cannot be read"),
        (("--allow-local", "/nonexistent"), "must be a folder that is there"),
    ],
)
def test_what_would_be_unsafe_is_refused(options: tuple[str, ...], said: str) -> None:
    done = subprocess.run(command(*options), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode and done.stderr.count("\n") == 1
    assert said in done.stderr


async def test_local_files_are_copied_below_the_allowed_folder_only(image: str, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "in").write_text("local")
    (tmp_path / "secret").write_text("secret")
    (allowed / "link").symlink_to(tmp_path)
    async with over_stdio("--image", image, "--allow-local", str(allowed)) as client:
        await call(client, "upload", local_path="in", path="/srv/in")
        await call(client, "exec_command", command="tr a-z A-Z </srv/in >/srv/out; ln -s / /srv/root")
        await call(client, "download", path="/srv/out", local_path="out")
        assert (allowed / "out").read_text() == "LOCAL"
        await call(client, "download", path="/srv", local_path="tree")
        for outside in ("../secret", str(tmp_path / "secret"), "link/secret", "tree/root/etc/passwd"):
            assert "is not below" in await refused(client, "upload", local_path=outside, path="/srv/x")
            assert "is not below" in await refused(client, "download", path="/srv/in", local_path=outside)


async def test_a_port_of_a_sandbox_has_an_address(image: str) -> None:
    async with over_stdio("--image", image) as client:
        await call(client, "write_file", path="index.html", text="served")
        await call(client, "exec_command", command="httpd -f -p 8000 -h /srv", background=True)
        url = (await call(client, "port_url", port=8000))["url"]

        def page() -> str:
            try:
                with urlopen(url, timeout=10) as answer:
                    return str(answer.read().decode())
            except OSError:
                return ""

        while not await asyncio.to_thread(page):
            pass
        assert page() == "served"


@pytest.mark.slow
async def test_python_keeps_its_names() -> None:
    async with over_stdio() as client:
        assert (await call(client, "run_python", code="x = 40\nprint('said')\nx + 1"))["result"] == "41"
        said = await call(client, "run_python", code="x + 2")
        assert (said["result"], said["output"], said["error"]) == ("42", "", None)
        late = await call(client, "run_python", code="import time; time.sleep(60)", timeout_seconds=1)
        assert late["timed_out"] and "KeyboardInterrupt" in late["error"]
        assert "ZeroDivisionError" in (await call(client, "run_python", code="1 / 0"))["error"]
        assert (await call(client, "run_python", code="x"))["result"] == "40"


async def test_each_configuration_of_the_page_starts_a_server() -> None:
    texts = re.findall(r"^```json\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    servers = [server for text in texts for of in json.loads(text).values() for server in of.values()]
    assert len(servers) == 3
    for server in servers:
        assert server["command"].endswith("/bin/openmodal")
        started = StdioServerParameters(command=sys.executable, args=["-m", "openmodal", *server["args"]])
        async with Client(stdio_client(started)) as client:
            assert (await client.list_tools()).tools


@pytest.mark.slow
def test_the_program_of_the_page_runs(tmp_path: Path) -> None:
    assert printed_by_page("mcp", tmp_path) == "42\n\n"
