"""What users' programs do with the stock client: run by an interpreter that has some version of it,
behind a door (`MODAL_SERVER_URL`). Prints one line for each check, `ok NAME` or `failed NAME: why`.

    python client.py BUSYBOX [CHECK…]
    python client.py BUSYBOX --without CHECK…
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pathlib
import shutil
import sys
import tempfile
import time
import traceback
import urllib.request
import warnings
from typing import Any

import modal
from modal.stream_type import StreamType

VERSION = tuple(int(number) for number in modal.__version__.split(".")[:2])
BUSYBOX = sys.argv[1]
APP = modal.App.lookup(f"client-{VERSION[0]}-{VERSION[1]}", create_if_missing=True)
IMAGE = (
    modal.Image.from_scratch()
    .add_local_file(BUSYBOX, "/bin/busybox", copy=True)
    .dockerfile_commands(
        [
            'RUN ["/bin/busybox", "--install", "-s", "/bin"]',
            "RUN mkdir -p /etc /tmp && echo root:x:0:0::/:/bin/sh > /etc/passwd && echo root:x:0: > /etc/group",
            "ENV FROM_IMAGE=image",
            'CMD ["sleep", "172800"]',
        ]
    )
)


@contextlib.contextmanager
def raises(kind: type[BaseException], words: str = "") -> Any:
    try:
        yield
    except kind as error:
        if words not in str(error):
            raise
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


@contextlib.contextmanager
def sandbox(*command: str, **options: Any) -> Any:
    made = modal.Sandbox.create(*command, app=APP, image=options.pop("image", IMAGE), **{"timeout": 600, **options})
    try:
        yield made
    finally:
        made.terminate()


def out(made: Any, *command: str, **options: Any) -> str:
    process = made.exec(*command, **options)
    text = process.stdout.read()
    process.wait()
    return str(text)


def check_the_main_command_with_its_streams_and_its_end() -> None:
    with sandbox("sh", "-c", "read line; echo got $line; echo wrong >&2; exit 42") as made:
        made.stdin.write("this\n")
        made.stdin.write_eof()
        made.stdin.drain()
        assert made.stdout.read() == "got this\n"
        assert made.stderr.read() == "wrong\n"
        made.wait()
        assert made.returncode == 42
        again = modal.Sandbox.from_id(made.object_id)
        assert again.stdout.read() == "got this\n"
        assert again.poll() == 42


def check_the_main_command_reads_what_is_written_bit_by_bit() -> None:
    with sandbox("sh", "-c", "read one; read two; echo $one $two; cat") as made:
        for line in ("first\n", "2\n", "the third one\n"):
            made.stdin.write(line)
            made.stdin.drain()
        made.stdin.write_eof()
        made.stdin.drain()
        assert made.stdout.read() == "first 2\nthe third one\n"


def check_commands_with_streams_codes_and_signals() -> None:
    with sandbox(env={"A": "1", "B": "1"}, secrets=[modal.Secret.from_dict({"A": "0", "C": "0"})]) as made:
        process = made.exec("sh", "-c", "echo out; echo err >&2; exit 3")
        assert (process.stdout.read(), process.stderr.read(), process.wait()) == ("out\n", "err\n", 3)
        assert out(made, "sh", "-c", "echo $A$B$C$FROM_IMAGE") == "110image\n"
        assert out(made, "pwd", workdir="/tmp") == "/tmp\n"
        assert out(made, "sh", "-c", "echo $A", secrets=[modal.Secret.from_dict({"A": "9"})]) == "9\n"
        assert made.exec("sh", "-c", "kill -9 $$").wait() == 137
        assert made.exec("no-such-program").wait() == 127
        assert made.exec("sh", "-c", "printf '\\377'", text=False).stdout.read() == b"\xff"
        assert made.exec("echo", "x", stdout=StreamType.DEVNULL).wait() == 0
        process = made.exec("cat")
        assert process.poll() is None
        process.stdin.write("one\ntwo\n")
        process.stdin.drain()
        pieces = iter(process.stdout)
        first = next(pieces)
        assert first.startswith("one\n")
        process.stdin.write_eof()
        process.stdin.drain()
        assert first + "".join(pieces) == "one\ntwo\n"
        assert process.wait() == 0
        assert process.poll() == 0


def check_a_timeout_ends_a_command() -> None:
    with sandbox() as made:
        process = made.exec("sh", "-c", "echo begun; sleep 1000", timeout=2)
        assert process.wait() == -1


def check_a_terminal() -> None:
    with sandbox() as made:
        process = made.exec("sh", "-c", "tty; stty size; echo $TERM", pty=True)
        text = process.stdout.read().split()
        assert text[0].startswith("/dev/"), text
        assert len(text) == 4, text


def check_much_output_waits_until_it_is_read() -> None:
    with sandbox() as made:
        process = made.exec("sh", "-c", "head -c 12000000 /dev/zero; head -c 9000000 /dev/zero >&2", text=False)
        assert process.wait() == 0
        assert len(process.stdout.read()) == 12_000_000
        assert len(process.stderr.read()) == 9_000_000
        # More than its agent keeps in memory, read while it runs.
        process = made.exec("head", "-c", "30000000", "/dev/zero", text=False)
        assert len(process.stdout.read()) == 30_000_000
    with sandbox("head", "-c", "30000000", "/dev/zero") as made:
        assert len(made.stdout.read()) == 30_000_000


def check_files() -> None:
    with sandbox() as made:
        if VERSION < (1, 5) and not hasattr(made, "filesystem"):
            return
        files = made.filesystem
        files.write_text("text\n", "/tmp/a/b/text")
        assert files.read_text("/tmp/a/b/text") == "text\n"
        big = os.urandom(9_000_000)
        files.write_bytes(big, "/tmp/big")
        assert files.read_bytes("/tmp/big") == big
        from modal import exception as e

        with raises(e.SandboxFilesystemNotFoundError):
            files.read_text("/tmp/none")
        with raises(e.SandboxFilesystemIsADirectoryError):
            files.read_text("/tmp")
        found = files.list_files("/tmp/a/b")
        assert [(each.name, each.size, each.owner, each.permissions) for each in found] == [("text", 5, "root", "0644")]
        with tempfile.TemporaryDirectory() as folder:
            here = pathlib.Path(folder) / "here"
            here.write_bytes(b"local")
            files.copy_from_local(here, "/tmp/there")
            files.copy_to_local("/tmp/there", pathlib.Path(folder) / "back")
            assert (pathlib.Path(folder) / "back").read_bytes() == b"local"
        files.make_directory("/tmp/new/one")
        with raises(e.SandboxFilesystemDirectoryNotEmptyError):
            files.remove("/tmp/new")
        files.remove("/tmp/new", recursive=True)
        assert out(made, "ls", "/tmp") == "a\nbig\nthere\n"
        if hasattr(files, "stat"):
            assert files.stat("/tmp/there").size == 5
        made.exec("chmod", "750", "/tmp/there").wait()
        files.write_text("again", "/tmp/there")
        assert out(made, "stat", "-c", "%a", "/tmp/there") == "750\n"


def check_changes_of_files() -> None:
    with sandbox() as made:
        if not hasattr(made, "filesystem") or not hasattr(made.filesystem, "watch"):
            return
        made.exec("mkdir", "-p", "/tmp/seen").wait()
        made.exec("sh", "-c", "sleep 3; while sleep 0.2; do echo x > /tmp/seen/a; mv /tmp/seen/a /tmp/seen/b; done")
        seen = []
        for event in made.filesystem.watch("/tmp/seen", timeout=300):
            seen.append((event.type.value, tuple(event.paths)))
            if ("Modify", ("/tmp/seen/a", "/tmp/seen/b")) in seen:
                break
        assert ("Create", ("/tmp/seen/a",)) in seen, seen
        assert not list(made.filesystem.watch("/srv", timeout=1)) if made.exec("mkdir", "/srv").wait() == 0 else True


def check_finding_listing_and_tags() -> None:
    with sandbox(name="found") as made, sandbox() as other:
        made.set_tags({"a": "1", "b": "2"})
        other.set_tags({"a": "1"})
        ids = [each.object_id for each in modal.Sandbox.list(app_id=APP.app_id, tags={"a": "1"})]
        assert ids == [other.object_id, made.object_id], ids
        assert [each.object_id for each in modal.Sandbox.list(app_id=APP.app_id, tags={"b": "2"})] == [made.object_id]
        assert modal.Sandbox.from_name(str(APP.name), "found").object_id == made.object_id
        with raises(modal.exception.AlreadyExistsError):
            modal.Sandbox.create(app=APP, image=IMAGE, name="found", timeout=600)
        assert made.poll() is None
    with raises(modal.exception.NotFoundError):
        modal.Sandbox.from_name(str(APP.name), "found")
    with raises(modal.exception.NotFoundError):
        modal.Sandbox.from_id("sb-" + "x" * 26)


def check_the_end_by_time_and_by_us() -> None:
    with sandbox(timeout=2) as made:
        with raises(modal.exception.SandboxTimeoutError):
            made.wait()
        assert made.returncode == 124
    with sandbox() as made:
        process = made.exec("sleep", "1000")
        made.terminate()
        made.terminate()
        made.wait(raise_on_termination=False)
        assert made.returncode == 137
        assert process.wait() == 137


def check_idle_sandboxes_end() -> None:
    with sandbox(idle_timeout=2) as made:
        made.wait(raise_on_termination=False)
        assert made.returncode == 124


def check_images_with_local_files_and_failing_steps() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder) / "tree"
        tree.mkdir()
        (tree / "small").write_text("small")
        (tree / "run").write_text("#!/bin/sh\necho ran\n")
        (tree / "run").chmod(0o755)
        (tree / "large").write_bytes(os.urandom(6_000_000))
        late = IMAGE.add_local_dir(tree, "/srv/tree")
        with sandbox(image=late) as made:
            assert out(made, "sh", "-c", "cat /srv/tree/small; wc -c < /srv/tree/large; /srv/tree/run").split() == [
                "small6000000",
                "ran",
            ]
        baked = IMAGE.add_local_file(tree / "small", "/small", copy=True).run_commands("cat /small > /baked")
        baked = baked.env({"BAKED": "yes"}).workdir("/srv").entrypoint(["/bin/sh", "-c"])
        with sandbox("cat /baked; pwd; echo $BAKED", image=baked) as made:
            assert made.stdout.read() == "small/srv\nyes\n"
    broken = IMAGE.run_commands("echo why it broke; exit 7")
    with raises(modal.exception.Error):
        modal.Sandbox.create(app=APP, image=broken, timeout=600)


def check_secrets_of_build_steps() -> None:
    value = f"hidden-{os.getpid()}-{time.time_ns()}"
    secret = modal.Secret.from_dict({"TOKEN": value})
    step = f"echo $TOKEN | wc -c > /size; echo {time.time_ns()}"
    with sandbox(image=IMAGE.run_commands(step, secrets=[secret])) as made:
        assert out(made, "sh", "-c", "cat /size; echo $TOKEN") == f"{len(value) + 1}\n\n"
    # With another value it is the same step, and is not run again.
    again = IMAGE.run_commands(step, secrets=[modal.Secret.from_dict({"TOKEN": "short"})])
    with sandbox(image=again.run_commands("cp /size /copy")) as made:
        assert out(made, "cat", "/copy") == f"{len(value) + 1}\n"
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "Dockerfile"
        file.write_text(
            'FROM scratch\nCOPY busybox /bin/sh\nRUN [ -n "$TOKEN" ] && echo $TOKEN > /dev/null && > /right\n'
        )
        shutil.copy(BUSYBOX, folder)
        image = modal.Image.from_dockerfile(file, context_dir=folder, secrets=[secret])
        with sandbox(image=image) as made:
            assert made.exec("sh", "-c", "[ -e /right ]").wait() == 0
    with (
        raises(modal.exception.Error, "***"),
        sandbox(image=IMAGE.run_commands("echo $TOKEN; exit 1", secrets=[secret])),
    ):
        pass


def check_forced_builds() -> None:
    step = f"cat /proc/uptime > /when; : {time.time_ns()}"

    def built(*, force: bool) -> str:
        with sandbox(image=IMAGE.run_commands(step, force_build=force).run_commands("cp /when /copy")) as made:
            return out(made, "cat", "/copy")

    first = built(force=False)
    assert built(force=False) == first
    second = built(force=True)
    assert second != first
    assert built(force=False) == second


def check_networks_and_limits() -> None:
    with sandbox(block_network=True, cpu=0.5, memory=64) as made:
        assert "eth0" not in out(made, "ls", "/sys/class/net")
        # 64 MiB are not enough for that.
        assert made.exec("sh", "-c", "head -c 150000000 /dev/zero | tail").wait() == 137
    with warnings.catch_warnings(record=True) as caught, sandbox(region="eu"):
        warnings.simplefilter("always")
    # Up to 1.5, the client does not know warnings of a server.
    assert VERSION < (1, 6) or any("region" in str(each.message) for each in caught), [str(c.message) for c in caught]
    with (
        raises(modal.exception.Error, "experimental_options= is not supported"),
        sandbox(experimental_options={"x": 1}),
    ):
        pass


def check_changed_networks() -> None:
    with sandbox(outbound_cidr_allowlist=["192.0.2.0/24"]) as made:
        if not hasattr(made, "_experimental_set_outbound_network_policy"):
            return
        made._experimental_set_outbound_network_policy(outbound_cidr_allowlist=["198.51.100.0/24"])
        made._experimental_set_outbound_network_policy(outbound_domain_allowlist=["*"])
        with raises(modal.exception.Error):
            made._experimental_set_outbound_network_policy()
        assert out(made, "echo", "x") == "x\n"


def check_many_at_once() -> None:
    async def one(number: int) -> None:
        made = await modal.Sandbox.create.aio(app=APP, image=IMAGE, timeout=600)
        try:
            process = await made.exec.aio("echo", str(number))
            assert await process.stdout.read.aio() == f"{number}\n"
        finally:
            await made.terminate.aio()

    async def all_of_them() -> None:
        await asyncio.gather(*(one(number) for number in range(10)))

    asyncio.run(all_of_them())


def check_sandboxes_of_a_run_end_with_it() -> None:
    app = modal.App("a run")
    with app.run():
        made = modal.Sandbox.create(app=app, image=IMAGE, timeout=600)
        assert out(made, "echo", "x") == "x\n"
    deadline = time.monotonic() + 60
    while made.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert made.poll() == 137


def check_secrets_by_name() -> None:
    name = f"secret-{os.getpid()}"
    with raises(modal.exception.NotFoundError), sandbox(secrets=[modal.Secret.from_name(name)]):
        pass
    modal.Secret.objects.create(name, {"KEY": "value"})
    try:
        with sandbox(secrets=[modal.Secret.from_name(name, required_keys=["KEY"])]) as made:
            assert out(made, "sh", "-c", "echo $KEY") == "value\n"
        with raises(modal.exception.AlreadyExistsError):
            modal.Secret.objects.create(name, {"KEY": "value"})
    finally:
        modal.Secret.objects.delete(name)


def check_snapshots_are_images() -> None:
    with sandbox() as made:
        assert made.exec("sh", "-c", "mkdir -p /srv/kept && echo changed > /srv/kept/file").wait() == 0
        image = made.snapshot_filesystem()
        if hasattr(made, "snapshot_directory"):
            assert made.snapshot_directory("/srv/kept").object_id != image.object_id
    with sandbox(image=image) as again:
        assert out(again, "cat", "/srv/kept/file") == "changed\n"


def check_images_are_mounted() -> None:
    with sandbox() as made:
        if not hasattr(made, "mount_image"):
            return
        assert made.exec("sh", "-c", "mkdir -p /srv/kept /elsewhere && echo changed > /srv/kept/file").wait() == 0
        made.mount_image("/elsewhere", made.snapshot_directory("/srv/kept"))
        assert out(made, "cat", "/elsewhere/file") == "changed\n"


def check_ports_and_readiness() -> None:
    serve = (
        "mkdir -p /www && echo page > /www/index.html && httpd -p 8001 -h /www && sleep 0.5 && httpd -f -p 8000 -h /www"
    )
    ports = {"unencrypted_ports": [8000], "encrypted_ports": [8001]}
    with sandbox("sh", "-c", serve, **ports, readiness_probe=modal.Probe.with_tcp(8000)) as made:
        made.wait_until_ready(timeout=300)
        tunnels = made.tunnels()
        host, port = tunnels[8000].tcp_socket
        for url in (f"http://{host}:{port}", tunnels[8000].url, tunnels[8001].url):
            with urllib.request.urlopen(f"{url}/index.html") as answer:
                assert answer.read() == b"page\n"
        with raises(modal.exception.Error):
            _ = tunnels[8001].tcp_socket
    with (
        sandbox(readiness_probe=modal.Probe.with_exec("false", interval_ms=50)) as made,
        raises(modal.exception.TimeoutError),
    ):
        made.wait_until_ready(timeout=1)


def check_volumes_and_their_files() -> None:
    name = f"volume-{os.getpid()}"
    with raises(modal.exception.NotFoundError):
        modal.Volume.from_name(name).listdir("/")
    volume = modal.Volume.from_name(name, create_if_missing=True)
    try:
        with sandbox(volumes={"/data": volume}) as made:
            # A name that is no UTF-8, and a time before 1970, made the list fail for everybody.
            hostile = "touch -d 1960-01-01 /data/a/$(printf 'no\\377text')"
            assert made.exec("sh", "-c", f"mkdir /data/a && echo written > /data/a/file; {hostile}").wait() == 0
        volume.commit()
        assert [(entry.path, entry.size) for entry in volume.listdir("/", recursive=True) if entry.size == 8] == [
            ("a/file", 8)
        ]
        assert b"".join(volume.read_file("a/file")) == b"written\n"
        with tempfile.TemporaryDirectory() as folder:
            here = pathlib.Path(folder) / "large"
            here.write_bytes(os.urandom(9_000_000))
            with volume.batch_upload() as batch:
                batch.put_file(here, "/b/large")
            assert b"".join(volume.read_file("b/large")) == here.read_bytes()
        with sandbox(volumes={"/data": volume}) as made:
            assert made.exec("dd", "of=/data/huge", "bs=1", "count=0", "seek=1000G").wait() == 0
        for read in (
            lambda: list(volume.read_file("huge")),
            lambda: volume.read_file_into_fileobj("huge", io.BytesIO()),
        ):
            with raises(modal.exception.InvalidError, "up to 16 GiB"):
                read()
        volume.remove_file("huge")
        volume.copy_files(["a/file"], "copied")
        volume.remove_file("a", recursive=True)
        with sandbox(volumes={"/data": volume.read_only() if hasattr(volume, "read_only") else volume}) as made:
            assert out(made, "sh", "-c", "ls /data; cat /data/copied") == "b\ncopied\nwritten\n"
        with raises(FileNotFoundError):
            list(volume.read_file("none"))
    finally:
        modal.Volume.objects.delete(name)


def main() -> None:
    asked = sys.argv[2:]
    known = {name for name in globals() if name.startswith("check_")}
    left_out = {f"check_{name}" for name in asked[1:]} if asked[:1] == ["--without"] else set()
    wanted = known - left_out if left_out else {f"check_{name}" for name in asked} or known
    assert wanted | left_out <= known, f"there is no check of a name in {asked}"
    for name in sorted(wanted):
        check = globals()[name]
        began = time.monotonic()
        try:
            check()
        except BaseException as error:
            where = "".join(traceback.format_exception(error)[-2:])
            print(f"failed {name.removeprefix('check_')}: {type(error).__name__}: {error}\n{where}", flush=True)
        else:
            print(f"ok {name.removeprefix('check_')} ({time.monotonic() - began:.1f} s)", flush=True)


main()
