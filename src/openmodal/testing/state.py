"""What a sandbox's files were: snapshots, checkpoints, forks and resets."""

from __future__ import annotations

import pickle
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from openmodal import housekeeping
from openmodal.app import App
from openmodal.engines import Engine, lacking
from openmodal.errors import (
    AlreadyExistsError,
    EngineError,
    InvalidError,
    NotFoundError,
    SandboxFilesystemError,
    SandboxNotRunningError,
    SandboxResetError,
    SandboxTimeoutError,
)
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.secret import Secret
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import Create, eventually, promise, python

# What a layer must keep: what is gone, folders replaced, links, holes, owners, modes, odd names.
CHANGES = r"""
set -e
rm /etc/group; rm -r /srv; mkdir /srv; echo new > /srv/new
mkdir -p /kept/d; echo one > /kept/d/file; ln /kept/d/file /kept/hard; ln -s d/file /kept/link
echo odd > "/kept/ a\$'b
c"
truncate -s 8M /kept/hole; echo end >> /kept/hole
for id in 0 33 65534; do echo $id > /kept/$id; chown $id:$id /kept/$id; done
echo s > /kept/setuid; chmod 4755 /kept/setuid; mkdir -m 1777 /kept/sticky
touch -d '2001-02-03 04:05:06' /kept/old
"""
LOOK = r"""
cd /kept; ls -n . d | grep -v total; cat d/file hard link 0 33 65534; tail -c 4 hole; stat -c '%n %a %u %s %Y' old setuid sticky hole
ls /srv; test ! -e /etc/group && echo gone
"""


@contextmanager
def forked(sandbox: Sandbox, *args: int, **options: Any) -> Iterator[list[Sandbox]]:
    """Forks that end with the block."""
    forks = sandbox.fork(*args, **options)
    try:
        yield forks
    finally:
        for fork in forks:
            fork.terminate()


def left_over(engine: Engine) -> tuple[str, ...]:
    """What `gc` would remove."""
    return housekeeping.gc(check=True, engine=engine).removed


def sh(sandbox: Sandbox, script: str) -> str:
    """What a script prints."""
    done = sandbox.exec("sh", "-c", script)
    assert done.returncode == 0, done.stderr.read()
    said: str = done.stdout.read()
    return said


@promise("snapshot")
class TestSnapshots:
    def test_it_has_every_file_as_it_was(self, create: Create) -> None:
        sandbox = create()
        sh(sandbox, CHANGES)
        seen = sh(sandbox, LOOK)
        image = sandbox.snapshot_filesystem()
        sh(sandbox, "rm -r /kept; echo later > /later")
        other = create(image=image)
        assert sh(other, LOOK) == seen
        assert not other.filesystem.exists("/later"), "what is written later is not in it"
        sh(other, "rm -r /kept")
        assert sh(create(image=image), LOOK) == seen, "nor what is done on it"

    def test_it_is_an_image_like_any_other(self, create: Create, engine_name: str) -> None:
        sandbox = create(workdir="/root")
        sh(sandbox, "echo one > /one")
        image = sandbox.snapshot_filesystem()
        sandbox.terminate()
        built = pickle.loads(pickle.dumps(image)).run_commands("cat /one /one > /two").env({"STAGE": "test"})
        assert sh(create(image=built), "cat /two; echo $STAGE $FROM_IMAGE; pwd") == "one\none\ntest image\n/srv\n"
        other = """
            with openmodal.Sandbox.create(image=image, engine=argv[0], timeout=60) as sandbox:
                print(sandbox.exec("cat", "/one").stdout.read())
            """
        assert python(other, engine_name, image=image).strip() == "one"

    def test_a_dockerfile_begins_with_it(self, create: Create, tmp_path: Path) -> None:
        sandbox = create()
        sh(sandbox, "echo one > /one")
        (tmp_path / "Dockerfile").write_text("FROM base\nRUN cat /one /one > /two\n", "ascii")
        image = Image.from_dockerfile(tmp_path / "Dockerfile", bases={"base": sandbox.snapshot_filesystem()})
        assert sh(create(image=image), "cat /two") == "one\none\n"

    def test_a_snapshot_of_a_snapshot_and_of_nothing_new(self, create: Create) -> None:
        sandbox = create()
        for number in range(3):
            sh(sandbox, f"echo {number} >> /list; rm -f /{number - 1}; touch /{number}")
            image = sandbox.snapshot_filesystem()
            sandbox = create(image=image)
        again = create(image=sandbox.snapshot_filesystem())
        assert sh(again, "cat /list; ls /0 /1 /2 2>/dev/null || true") == "0\n1\n2\n/2\n"

    def test_of_a_folder_it_is_an_image_whose_root_that_is(self, create: Create) -> None:
        sandbox = create()
        sh(sandbox, "mkdir -p /box/bin /box/own; cp /bin/busybox /bin/sh /box/bin; echo one > /box/own/file")
        sh(sandbox, "ln -s own/file /box/link; chown 33:50 /box/own; chmod 2750 /box/own; truncate -s 1M /box/hole")
        other = create(image=sandbox.snapshot_directory("/box"))
        look = "/bin/busybox cat /link; /bin/busybox stat -c '%u %g %a' /own; /bin/busybox wc -c < /hole"
        assert sh(other, look) == "one\n33 50 2750\n1048576\n"
        for wrong in ("/nothing", "/box/link"):
            with pytest.raises(SandboxFilesystemError):
                sandbox.snapshot_directory(wrong)

    def test_a_writer_loses_nothing_and_each_snapshot_has_a_prefix(self, create: Create) -> None:
        """The files are copied while the writer is stopped: as a power cut would leave them."""
        sandbox = create()
        writer = sandbox.spawn("sh", "-c", "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo $i >> /lines; done")
        eventually(lambda: sandbox.filesystem.exists("/lines"))
        images = [sandbox.snapshot_filesystem() for _ in range(3)]
        sandbox.filesystem.write_text("/stop", "")
        assert writer.wait() == 0
        lines = sh(sandbox, "cat /lines")
        assert lines.split() == [str(number) for number in range(1, len(lines.split()) + 1)]
        for image in images:
            assert lines.startswith(sh(create(image=image), "cat /lines"))

    def test_it_stays_until_it_expires_and_as_long_as_it_is_used(self, create: Create, engine: Engine) -> None:
        sandbox = create()
        sh(sandbox, "echo one > /one")
        kept, brief = sandbox.snapshot_filesystem(), sandbox.snapshot_filesystem(ttl=0.01)
        user = create(image=brief)
        time.sleep(0.02)
        housekeeping.gc(engine=engine)
        assert sh(user, "cat /one") == "one\n", "it is in use"
        user.terminate()
        eventually(lambda: not housekeeping.gc(engine=engine).failed and not left_over(engine))
        with pytest.raises(NotFoundError, match="has expired"):
            create(image=brief)
        assert sh(create(image=kept), "cat /one") == "one\n"

    def test_of_a_sandbox_that_has_ended_there_is_none(self, create: Create) -> None:
        sandbox = create()
        sandbox.terminate()
        with pytest.raises(SandboxNotRunningError, match="it was terminated"):
            sandbox.snapshot_filesystem()

    def test_wrong_arguments_are_refused(self, create: Create) -> None:
        sandbox = create()
        wrong: tuple[dict[str, Any], ...] = ({"ttl": -1}, {"ttl": "x"}, {"timeout": 0})
        for options in wrong:
            with pytest.raises(InvalidError):
                sandbox.snapshot_filesystem(**options)


@promise("published")
class TestPublished:
    def test_a_name_finds_the_image_until_it_is_deleted(
        self, face: Face, create: Create, engine: Engine, image: Image
    ) -> None:
        name = f"test-{secrets.token_hex(4)}"
        made = face(image.run_commands(f"echo {name} > /name").publish)(name, engine=engine)
        try:
            assert face(Image.from_name)(name, engine=engine) == made
            if "images" not in lacking(engine):
                housekeeping.prune(unused_for=0, engine=engine)
                assert name in {n for built in housekeeping.images(engine=engine) for n in built.names}
            assert sh(create(image=made), "cat /name; echo $FROM_IMAGE; pwd") == f"{name}\nimage\n/srv\n"
            other = face(image.publish)(name, engine=engine)
            assert face(Image.from_name)(name, engine=engine) == other != made, "the later one has it"
        finally:
            face(Image.delete)(name, engine=engine)
        with pytest.raises(NotFoundError, match="no image is published as"):
            face(Image.from_name)(name, engine=engine)
        with pytest.raises(NotFoundError):
            face(Image.delete)(name, engine=engine)


@promise("fork")
@promise("snapshot_on_end")
class TestKeptAtTheEnd:
    @pytest.fixture
    def name(self, engine: Engine) -> Iterator[str]:
        made = f"kept-{secrets.token_hex(4)}"
        yield made
        with suppress(NotFoundError):
            Image.delete(made, engine=engine)

    def found(self, create: Create, engine: Engine, name: str) -> str:
        with create(image=Image.from_name(name, engine=engine)) as other:
            return sh(other, "cat /kept 2>/dev/null; ls /srv")

    def test_when_it_is_terminated(self, create: Create, engine: Engine, name: str) -> None:
        sandbox = create(snapshot_on_end=name)
        sh(sandbox, "echo first > /kept; rmdir /srv; mkdir /srv; echo > /srv/new")
        sandbox.spawn("sh", "-c", "while :; do echo x >> /log; done")
        (fork,) = sandbox.fork()
        sandbox.terminate()
        end = sandbox.status().ended
        assert end
        assert (end.reason, end.unkept) == ("terminated", "")
        assert end.snapshot
        assert self.found(create, engine, name) == "first\nnew\n"
        sh(fork, "echo other > /kept")
        fork.terminate()
        assert self.found(create, engine, name) == "first\nnew\n", "a fork has no such name"

    @promise("checkpoint")
    def test_when_its_time_is_over_with_its_checkpoints(self, create: Create, engine: Engine, name: str) -> None:
        sandbox = create(snapshot_on_end=name, timeout=3)
        sh(sandbox, "echo first > /kept")
        sandbox.checkpoint()
        sh(sandbox, "echo second >> /kept; echo > /srv/new")
        with pytest.raises(SandboxTimeoutError):
            sandbox.wait(timeout=100)
        assert self.found(create, engine, name) == "first\nsecond\nnew\n"

    def test_when_its_main_command_has_ended(self, create: Create, engine: Engine, name: str) -> None:
        sandbox = create("sh", "-c", "echo done > /kept; exit 3", snapshot_on_end=name)
        assert sandbox.wait(timeout=100) == 3
        assert self.found(create, engine, name).startswith("done\n")


@promise("fork")
class TestForks:
    def test_forks_go_on_from_the_files_and_not_from_each_other(self, create: Create) -> None:
        sandbox = create(env={"OWN": "env"}, workdir="/root", tags={"of": "parent"})
        sh(sandbox, "echo one > /one")
        with forked(sandbox, 2) as (first, second):
            sh(first, "echo first > /one")
            sh(sandbox, "echo parent > /one")
            assert sh(second, "cat /one; echo $OWN; pwd") == "one\nenv\n/root\n"
            assert len({sandbox.id, first.id, second.id}) == 3
            assert second.get_tags() == {"of": "parent"}
            with forked(first, 1, tags={"of": "first"}) as (grandchild,):
                assert sh(grandchild, "cat /one") == "first\n"
                assert grandchild.get_tags() == {"of": "first"}

    def test_forks_outlive_their_parent(self, create: Create) -> None:
        sandbox = create()
        sh(sandbox, "echo one > /one")
        with forked(sandbox, 1) as (fork,):
            sandbox.terminate()
            assert sh(fork, "cat /one") == "one\n"

    def test_secrets_are_not_passed_on(self, create: Create) -> None:
        sandbox = create(secrets=[Secret.from_dict({"TOKEN": "parent", "KEY": "of-env"})], env={"KEY": "env"})
        with forked(sandbox, 1) as (fork,):
            assert sh(fork, "echo ${TOKEN-none} $KEY") == "none env\n"
        with forked(sandbox, 1, secrets=[Secret.from_dict({"TOKEN": "own"})]) as (fork,):
            assert sh(fork, "echo $TOKEN") == "own\n"

    def test_all_or_none(self, create: Create, sandboxes: type[Sandbox], app: App, engine: Engine) -> None:
        sandbox = create()
        blocker = create(name="fork-2")
        before = {found.id for found in sandboxes.list(app=app, engine=engine)}
        with pytest.raises(AlreadyExistsError, match="'fork-2'"):
            sandbox.fork(3, name="fork")
        assert {found.id for found in sandboxes.list(app=app, engine=engine)} == before
        blocker.terminate()
        with forked(sandbox, 3, name="fork") as forks:
            assert [fork.status().name for fork in forks] == ["fork-1", "fork-2", "fork-3"]

    def test_wrong_arguments_are_refused(self, create: Create) -> None:
        sandbox = create()
        wrong: tuple[dict[str, Any], ...] = ({"n": 0}, {"n": "x"}, {"name": "a b"}, {"timeout": -1})
        for options in wrong:
            with pytest.raises(InvalidError):
                sandbox.fork(**options)


# What could survive a reset: files, memory that outlives processes, sockets, processes, names.
CANARIES = r"""
echo file > /canary; echo tmp > /tmp/canary; echo shm > /dev/shm/canary
(setsid sleep 10000 </dev/null >/dev/null 2>&1 &) ; (nc -l -p 7777 </dev/null >/dev/null 2>&1 &)
hostname canary 2>/dev/null; mkdir -p /gone && cd /gone && (setsid sh -c 'exec 9>/gone/held; rm -r /gone; sleep 10001' &)
"""
PROBE = r"""
for f in /canary /tmp/canary /dev/shm/canary /gone; do [ -e $f ] && echo $f; done
ps -o args | grep -c '[s]leep 1000' | grep -v '^0$' ; netstat -ltn 2>/dev/null | grep -o 7777; hostname | grep canary
true
"""


@promise("reset")
class TestResets:
    def test_nothing_survives_but_what_is_told(self, create: Create) -> None:
        sandbox = create(tags={"a": "b"}, env={"OWN": "env"})
        fresh, before = sh(sandbox, f"{PROBE}\necho $OWN; pwd"), sandbox.status()
        sh(sandbox, CANARIES)
        eventually(lambda: "7777" in sh(sandbox, PROBE))
        found = sh(sandbox, PROBE).split()
        assert {"/canary", "/tmp/canary", "/dev/shm/canary", "7777"} < {*found}, "the probe finds what there is"
        generation = sandbox.info().generation
        assert sandbox.reset() == sandbox.info().generation > generation
        assert sh(sandbox, f"{PROBE}\necho $OWN; pwd") == fresh
        after = sandbox.status()
        assert (after.id, after.tags, after.expires, after.created) == (
            before.id,
            before.tags,
            before.expires,
            before.created,
        )

    def test_commands_of_before_are_told_and_do_not_run_again(self, face: Face, create: Create) -> None:
        sandbox = create()
        process = sandbox.spawn("sh", "-c", "echo x >> /runs; sleep 10000")
        running = face.start(sandbox.exec, "sh", "-c", "echo x >> /execs; sleep 10000")
        eventually(lambda: sandbox.filesystem.exists("/execs") and sandbox.filesystem.exists("/runs"))
        sandbox.reset()
        with pytest.raises(SandboxResetError, match="was reset"):
            process.wait()
        with pytest.raises(SandboxResetError, match="was reset"):
            running.result(100)
        assert sh(sandbox, "ls /runs /execs 2>/dev/null; true") == ""

    def test_the_main_command_begins_again(self, create: Create) -> None:
        sandbox = create("sh", "-c", "echo begun; read line; echo $line; sleep 10000")
        assert sandbox.stdout.readline() == "begun\n"
        sandbox.reset()
        assert sandbox.stdout.readline() == "begun\n"
        sandbox.stdin.write("again\n")
        sandbox.stdin.drain()
        assert sandbox.stdout.readline() == "again\n"

    @promise("checkpoint")
    def test_to_a_checkpoint_again_and_again(self, create: Create) -> None:
        sandbox = create()
        sh(sandbox, "echo one > /one; rm /etc/group")
        start = sandbox.checkpoint()
        for _ in range(3):
            sh(sandbox, "rm /one; touch /etc/group /two")
            sandbox.reset(start)
            assert sh(sandbox, "cat /one; ls /two /etc/group 2>/dev/null; true") == "one\n"
        sandbox.reset()
        assert sh(sandbox, "ls /one 2>/dev/null; ls /etc/group") == "/etc/group\n"
        sandbox.reset(start)
        assert sh(sandbox, "cat /one") == "one\n"
        with pytest.raises(InvalidError, match="takes a checkpoint of sandbox"):
            create().reset(start)

    @promise("checkpoint")
    def test_checkpoints_while_a_command_runs(self, create: Create) -> None:
        sandbox = create()
        process = sandbox.spawn("cat")
        sh(sandbox, "echo one > /one")
        start = sandbox.checkpoint()
        process.stdin.write("still there\n")
        process.stdin.drain()
        assert process.stdout.readline() == "still there\n"
        sh(sandbox, "echo two > /one")
        sandbox.reset(start)
        assert sh(sandbox, "cat /one") == "one\n"

    def test_of_a_sandbox_that_has_ended_there_is_none(self, create: Create) -> None:
        sandbox = create()
        sandbox.terminate()
        with pytest.raises(SandboxNotRunningError, match="it was terminated"):
            sandbox.reset()

    def test_reset_fork_and_terminate_at_once(self, face: Face, create: Create) -> None:
        sandbox = create()
        sh(sandbox, "echo one > /one")
        calls: list[Future[Any]] = [
            face.start(sandbox.reset),
            face.start(sandbox.fork),
            face.start(sandbox.reset),
            face.start(sandbox.terminate),
        ]
        for call in calls:
            try:
                result = call.result(300)
            except SandboxNotRunningError:
                continue
            for fork in result if isinstance(result, list) else ():
                fork.terminate()
        assert sandbox.poll() == 137


@promise("mount_image")
class TestMountedImages:
    def test_it_is_there_and_writable_until_it_is_taken_away(self, create: Create, image: Image) -> None:
        sandbox = create()
        made = image.run_commands("mkdir /data; echo one > /data/file")
        sandbox.mount_image("/mnt/image", made)
        assert sh(sandbox, "cat /mnt/image/data/file; echo two > /mnt/image/data/file") == "one\n"
        assert sh(create(image=made), "cat /data/file") == "one\n", "the image is as it was"
        with forked(sandbox, 1) as (fork,):
            assert not fork.filesystem.exists("/mnt/image/data"), "a fork has it not"
        sandbox.unmount_image("/mnt/image")
        assert not sandbox.filesystem.exists("/mnt/image/data")
        sandbox.mount_image("/mnt/image", made)
        assert sh(sandbox, "cat /mnt/image/data/file") == "one\n", "what was written went with the mount"

    def test_wrong_places_are_refused(self, create: Create, image: Image) -> None:
        sandbox = create()
        for path in ("relative", ""):
            with pytest.raises(InvalidError):
                sandbox.mount_image(path, image)
        for path in ("/etc/passwd", "/proc/self"):
            with pytest.raises(EngineError):
                sandbox.mount_image(path, image)
        with pytest.raises(EngineError):
            sandbox.unmount_image("/srv")
        assert sh(sandbox, "echo runs") == "runs\n"
