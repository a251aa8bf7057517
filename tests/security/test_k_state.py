"""K. State on the disk, other users of the machine, and the surroundings of the SDK."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from openmodal import _config
from openmodal.app import App
from openmodal.engines.embedded import Embedded
from openmodal.errors import Error
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import python
from tests.security.attack import sh

Create = Callable[..., Sandbox]

AS_ANOTHER = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "sh", "-c"]


def test_what_leads_to_sandboxes_is_open_to_the_owner_only(engine: Embedded, create: Create) -> None:
    """K1: folders, sockets, locks."""
    sandbox = create("sleep", "54321")
    folder = engine.store.folder(sandbox.id)
    places = [_config.state(), _config.machine(), engine.store.sandboxes, engine.store.ended, folder]
    places += [folder / name for name in ("agent.sock", "control.sock", "lock")]
    places += list(engine.store.ended.glob(f"{sandbox.id}*"))
    assert {str(path): oct(path.stat().st_mode & 0o077) for path in places if path.stat().st_mode & 0o077} == {}
    assert Path("/etc/passwd").stat().st_mode & 0o077, "the control"


def test_another_user_sees_and_reaches_nothing(engine: Embedded, create: Create) -> None:
    """K2: no folder, no socket, no variable; asked as that user."""
    word = secrets.token_hex(16)
    sandbox = create(env={"TOKEN": word})
    folder = engine.store.folder(sandbox.id)
    sandbox.spawn("sleep", "54321")
    script = f"ls {folder} || ls {engine.store.sandboxes} || cat {folder}/status.json || nc -U {folder}/agent.sock </dev/null"
    assert subprocess.run([*AS_ANOTHER, script], capture_output=True, check=False).returncode != 0
    assert subprocess.run(["sh", "-c", f"ls {folder}"], capture_output=True, check=False).returncode == 0, "the control"
    seen = subprocess.run([*AS_ANOTHER, "cat /proc/[0-9]*/environ"], capture_output=True, check=False).stdout
    assert word.encode() not in seen
    assert (
        word.encode()
        in subprocess.run(["sh", "-c", "cat /proc/[0-9]*/environ"], capture_output=True, check=False).stdout
    )


def test_a_secret_is_where_it_was_put_and_nowhere_else(engine: Embedded, engine_name: str, armed: Image) -> None:
    """K5: not in state, command lines, tracebacks or what is shown, when things go well and when they fail."""
    word = secrets.token_hex(16)
    said = python(
        """
        import contextlib, traceback
        from openmodal import App, Sandbox, Secret
        word = argv[1]
        given = dict(app=App("attack"), image=image, engine=argv[0], secrets=[Secret.from_dict({"TOKEN": word})])
        print(given["secrets"])
        with Sandbox.create(timeout=60, **given) as sandbox:
            print("control", sandbox.exec("sh", "-c", "test ${#TOKEN} = 32; echo $?").stdout.read())
            for act in (
                lambda: sandbox.exec("true", user="nobody-here"),
                lambda: sandbox.exec("sleep", "9", timeout=0.1),
                lambda: sandbox.filesystem.read_text("/none"),
                lambda: Sandbox.create(workdir="", **given),
                lambda: Sandbox.create("/none/here", timeout=60, **given).wait(),
            ):
                try:
                    act()
                except Exception:
                    traceback.print_exc(file=sys.stdout)
            print(sandbox, sandbox.status(), sandbox.info())
        """,
        engine_name,
        word,
        image=armed,
    )
    assert "control 0" in said
    assert "Traceback" in said
    assert word not in said
    files = [
        path for root in (engine.store.sandboxes, engine.store.ended) for path in root.rglob("*") if path.is_file()
    ]
    assert files
    assert not [path for path in files if word.encode() in path.read_bytes()]


def test_programs_on_the_callers_path_are_not_used_for_what_needs_rights(
    engine_name: str, armed: Image, tmp_path: Path
) -> None:
    """K7: nor its LD_PRELOAD and LD_LIBRARY_PATH for the native program."""
    trap = tmp_path / "was-run"
    for name in ("iptables", "iptables-restore", "nft", "nsenter", "mkfs.ext4", "mount", "ip", "newuidmap", "pasta"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} >> {trap}\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    source = """
        os.environ["PATH"] = argv[1] + ":" + os.environ["PATH"]
        os.environ["LD_PRELOAD"] = argv[1] + "/evil.so"
        with openmodal.Sandbox.create(app=openmodal.App("attack"), image=image, engine=argv[0], disk=32) as sandbox:
            print(sandbox.exec("sh", "-c", "echo $LD_PRELOAD works").stdout.read())
    """
    assert python(source, engine_name, str(tmp_path), image=armed).strip() == "works"
    assert not trap.exists()
    subprocess.run(["sh", "-c", "iptables"], env={"PATH": str(tmp_path)}, executable="/bin/sh", check=False)
    assert trap.read_text() == "iptables\n", "the control"


WATCHED = """
    import ctypes
    libc = ctypes.CDLL(None)
    assert libc.unshare(0x20000) == 0
    assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # what is mounted from now on is this process's
    watch = libc.inotify_init1(os.O_NONBLOCK)
    folders = [name for name in ("/tmp", "/var/tmp", "/dev/shm") if not openmodal.__file__.startswith(name + "/")]
    for folder in folders:
        assert libc.mount(b"none", folder.encode(), b"tmpfs", 0, None) == 0
        libc.inotify_add_watch(watch, folder.encode(), 0x100)
    def made():
        try:
            return len(os.read(watch, 65536))
        except BlockingIOError:
            return 0
    with openmodal.Sandbox.create("cat", app=openmodal.App("attack"), image=image, engine=argv[0], timeout=60) as sandbox:
        sandbox.exec("sh", "-c", "head -c 1000000 /dev/zero")
        sandbox.filesystem.copy_to_local("/etc", argv[1] + "/etc")
        sandbox.filesystem.copy_from_local(argv[1] + "/etc", "/tmp/etc")
    print(made())
    open(folders[-1] + "/control", "w").close()
    print(made() > 0)
"""


def test_nothing_is_made_where_others_make_files(engine_name: str, image: Image) -> None:
    """K8: in /tmp somebody else may have put a link of that name."""
    with tempfile.TemporaryDirectory(dir=_config.state()) as folder:
        assert python(WATCHED, engine_name, folder, image=image).split() == ["0", "True"]


def test_failed_creations_leave_nothing(
    engine: Embedded, armed: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K10: of every kind, many times; the leak check looks."""
    before = engine.store.ids()
    (tmp_path / "dev").symlink_to("/etc")
    broken = Image.from_scratch().add_local_dir(str(tmp_path), "/")
    tries: list[Callable[[], object]] = [
        lambda: Sandbox.create(image=broken, engine=engine, app=App("attack"), timeout=30),
        lambda: Sandbox.create(image=armed, engine=engine, app=App("attack"), timeout=30, workdir=""),
        lambda: Sandbox.create(image=armed, engine=engine, app=App("attack"), timeout=30, name="a/b"),
    ]
    for _ in range(25):
        for attempt in tries:
            with pytest.raises(Error):
                attempt()
    monkeypatch.setenv("OPENMODAL_AGENT", "/bin/false")
    for _ in range(25):
        with pytest.raises(Error):
            Sandbox.create(image=armed, engine=Embedded(), app=App("attack"), timeout=30)
    monkeypatch.undo()
    assert engine.store.ids() == before
    with contextlib.suppress(OSError):
        assert not [name for name in os.listdir(engine.store.sandboxes) if name.endswith(".trash")]
    with Sandbox.create(image=armed, engine=engine, app=App("attack"), timeout=30) as sandbox:
        assert sh(sandbox, "echo x") == "x\n", "the control"
