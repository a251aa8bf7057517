"""H. Files and images from hostile hands. Archives: tests/build/test_unpack.py; registries:
tests/build/test_registry.py; Dockerfiles: tests/build/test_dockerfile.py; answers of an agent that
lies: tests/unit/test_localcopy.py."""

from __future__ import annotations

import contextlib
import os
import secrets
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openmodal.app import App
from openmodal.engines.embedded import Embedded
from openmodal.errors import EngineError, InvalidError, NotFoundError, SandboxFileNotFoundError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.secret import Secret
from openmodal.volume import HostDirectory, Volume
from tests.security.attack import sh, works

Create = Callable[..., Sandbox]


@pytest.fixture
def canary() -> Iterator[Path]:
    """A file of root's that no sandbox's link may lead to."""
    file = Path(f"/root/om-canary-{secrets.token_hex(8)}")
    file.write_text("the machine's")
    yield file
    assert file.read_text() == "the machine's"
    file.unlink()


def test_a_link_is_followed_inside_only(create: Create, canary: Path, tmp_path: Path) -> None:
    """H1: copied out, read, looked at."""
    sandbox = create()
    sh(sandbox, f"ln -s {canary} /tmp/l; ln -s / /tmp/root; mkdir /tmp/tree; ln -s {canary} /tmp/tree/l")
    for path in ("/tmp/l", f"/tmp/root/root/{canary.name}"):
        with pytest.raises(SandboxFileNotFoundError):
            sandbox.filesystem.read_text(path)
    sandbox.filesystem.copy_to_local("/tmp/tree", tmp_path / "tree")
    assert os.readlink(tmp_path / "tree" / "l") == str(canary)
    with contextlib.suppress(OSError):
        sandbox.filesystem.copy_to_local("/tmp/l", tmp_path / "l")
    assert not (tmp_path / "l").exists() or (tmp_path / "l").is_symlink()
    sh(sandbox, f"echo inside > {canary}")
    assert sandbox.filesystem.read_text("/tmp/l") == "inside\n", "the control"


def test_an_upload_goes_where_links_lead_inside(create: Create, tmp_path: Path) -> None:
    """H2: podman's CVE-2019-10152."""
    sandbox, name = create(), f"om-{secrets.token_hex(8)}"
    sh(sandbox, "ln -s / /tmp/d; ln -s /root /tmp/r; ln -s /proc/1/root /tmp/p")
    (tmp_path / "file").write_text("up")
    sandbox.filesystem.copy_from_local(tmp_path / "file", f"/tmp/d/{name}")
    sandbox.filesystem.copy_from_local(tmp_path / "file", f"/tmp/r/{name}")
    with contextlib.suppress(OSError):
        sandbox.filesystem.write_text(f"/tmp/p/{name}-proc", "up")
    assert sh(sandbox, f"cat /{name} /root/{name}") == "upup", "the control"
    assert not any(os.path.lexists(path) for path in (f"/{name}", f"/root/{name}", f"/{name}-proc"))


def test_a_tree_stays_below_the_folder_it_is_copied_to(create: Create, tmp_path: Path) -> None:
    """H4: with links out, loops, odd names, and a writer that changes it meanwhile."""
    sandbox = create()
    sh(
        sandbox,
        "mkdir -p /tmp/t/deep/deeper; cd /tmp/t; ln -s ../../../../root up; ln -s /etc abs; ln -s loop loop; "
        "ln -s deep link; echo x > deep/x; mkdir '..\n'; echo y > '..\n/y'; mkfifo pipe; mkdir -m 0 closed",
    )
    flipper = sandbox.spawn(
        "sh", "-c", "cd /tmp/t; mkdir flip; while :; do mv flip aside; ln -s / flip; rm flip; mv aside flip; done"
    )
    target = tmp_path / "inside" / "t"
    target.parent.mkdir()
    for n in range(10):
        with contextlib.suppress(OSError, NotFoundError):  # it may be told that something went away
            sandbox.filesystem.copy_to_local("/tmp/t", target.with_name(f"t{n}"))
    flipper.kill()
    sandbox.filesystem.copy_to_local("/tmp/t", target)
    assert os.readlink(target / "up") == "../../../../root"
    assert (target / "deep" / "x").read_text() == "x\n"
    assert (target / "..\n" / "y").read_text() == "y\n"
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    found = [path for path in tmp_path.rglob("*") if not path.is_symlink()]
    assert all(path.resolve().is_relative_to(tmp_path) for path in found)


def test_copying_out_again_writes_nowhere_else(create: Create, canary: Path, tmp_path: Path) -> None:
    """H19: what was a link to a folder of this machine the first time is a folder the second time."""
    sandbox = create()
    sh(sandbox, f"ln -s {canary.parent} /tmp/out; ln -s {canary} /tmp/file; mkdir /tmp/t; ln -s {canary} /tmp/t/l")
    for name in ("out", "file"):
        with contextlib.suppress(OSError):  # /root is empty in this image
            sandbox.filesystem.copy_to_local(f"/tmp/{name}", tmp_path / name)
        assert not (tmp_path / name).is_symlink()
    sh(sandbox, f"rm /tmp/out; mkdir /tmp/out; echo evil > /tmp/out/{canary.name}")
    sandbox.filesystem.copy_to_local("/tmp/out", tmp_path / "out")
    assert (tmp_path / "out" / canary.name).read_text() == "evil\n", "the control"


def test_a_link_from_a_sandbox_brings_no_file_of_this_machine_in(create: Create, canary: Path, tmp_path: Path) -> None:
    """H20: copied out in a folder, and then in by its name."""
    sandbox = create()
    sh(sandbox, f"mkdir /tmp/t; ln -s {canary} /tmp/t/l")
    sandbox.filesystem.copy_to_local("/tmp/t", tmp_path / "t")
    assert (tmp_path / "t/l").read_text() == "the machine's", "the control"
    with pytest.raises(InvalidError, match="link"):
        sandbox.filesystem.copy_from_local(tmp_path / "t/l", "/tmp/got")
    sandbox.filesystem.copy_from_local(tmp_path / "t", "/tmp/again")
    assert sh(sandbox, "cat /tmp/got /tmp/again/l 2>/dev/null; true") == ""


def test_a_link_from_a_sandbox_leads_no_later_copy_away(create: Create, canary: Path, tmp_path: Path) -> None:
    """H19, H20, with the link in the middle of the path that is named."""
    sandbox = create()
    sh(sandbox, f"mkdir /tmp/t; ln -s {canary.parent} /tmp/t/l; echo evil > /tmp/file")
    sandbox.filesystem.copy_to_local("/tmp/t", tmp_path / "t")
    named = tmp_path / "t/l" / canary.name
    assert named.read_text() == "the machine's", "the control"
    with pytest.raises(InvalidError, match="link"):
        sandbox.filesystem.copy_to_local("/tmp/file", named)
    with pytest.raises(InvalidError, match="link"):
        sandbox.filesystem.copy_from_local(named, "/tmp/got")
    with pytest.raises(InvalidError, match="link"):
        Image.from_scratch().add_local_file(named, "/got").build()


def test_a_link_in_a_folder_of_this_machine_leads_no_copy_away(create: Create, canary: Path, tmp_path: Path) -> None:
    """H19, H20, with a link that the sandbox made itself, where it may write."""
    folder = tmp_path / "given"
    folder.mkdir()
    os.chown(folder, 1234, 1235)
    sandbox = create(volumes={"/src": HostDirectory(folder, read_only=False)})
    sh(sandbox, f"ln -s {canary.parent} /src/l; mkdir /src/d; ln -s d /src/inside; echo evil > /tmp/file")
    named = folder / "l" / canary.name
    assert named.read_text() == "the machine's", "the control"
    for lead in (
        lambda: sandbox.filesystem.copy_to_local("/tmp/file", named),
        lambda: sandbox.filesystem.copy_from_local(named, "/tmp/got"),
        lambda: Image.from_scratch().add_local_file(named, "/got").build(),
        lambda: Image.from_scratch().add_local_dir(folder / "l", "/got").build(),
        lambda: HostDirectory(folder / "l"),
    ):
        with pytest.raises(InvalidError, match="leads out"):
            lead()
    sandbox.filesystem.copy_to_local("/tmp/file", folder / "inside/file")
    assert sh(sandbox, "cat /src/d/file") == "evil\n", "the control: where it can write anyway"


def test_a_mount_point_is_not_exchanged(engine: Embedded, create: Create, tmp_path: Path) -> None:
    """B16: in a volume that another sandbox writes to while this one is made."""
    (tmp_path / "mark").touch()
    with Volume.ephemeral(engine=engine) as volume:
        other = create(volumes={"/v": volume})
        racer = "cd /v; while :; do mkdir s; rmdir s; ln -s ../../../../etc s; rm s; ln -s / s; rm s; done"
        other.spawn("sh", "-c", racer)
        seen = "for p in $(cut -d ' ' -f 5 /proc/self/mountinfo); do [ ! -e $p/mark ] || echo $p; done"
        for _ in range(8):
            with contextlib.suppress(EngineError):  # when there is a link
                sandbox = create(volumes={"/v": volume, "/v/s": HostDirectory(tmp_path)})
                assert all(point.startswith("/v/") for point in sh(sandbox, seen).split())
                sandbox.terminate()
        other.terminate()
        sandbox = create(volumes={"/v": volume, "/v/quiet": HostDirectory(tmp_path)})
        assert sh(sandbox, seen) == "/v/quiet\n", "the control"
        sandbox.terminate()


TOOLS = "xz gzip pigz unpigz tar cat env sha256sum ls stat mkdir"


@pytest.fixture
def trojans(engine: Embedded, armed: Image) -> Image:
    """An image whose tools note that they were run."""
    script = "#!/bin/busybox sh\\necho $0 >> /was-run\\nexec /bin/busybox ${0##*/} $*\\n"
    image = armed.run_commands(
        f"for t in {TOOLS}; do rm -f /bin/$t; printf '{script}' > /bin/$t; /bin/busybox chmod 755 /bin/$t; done; rm -f /was-run",
        "/bin/busybox mkfifo /etc/localtime; echo /evil.so > /etc/ld.so.preload; echo 'passwd: evil' > /etc/nsswitch.conf",
    )
    image.build(engine=engine)
    return image


def test_copies_run_no_program_of_the_image(create: Create, trojans: Image, tmp_path: Path) -> None:
    """H7, H8, J11: docker's CVE-2026-41567 and CVE-2019-14271: no tool, no library, no configuration is used."""
    sandbox = create(image=trojans)
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz") as archive:
        archive.add(__file__, "test.py")
    sandbox.filesystem.copy_from_local(tmp_path / "a.tar.xz", "/tmp/a.tar.xz")
    sandbox.filesystem.copy_to_local("/tmp", tmp_path / "out")
    assert (tmp_path / "out" / "a.tar.xz").read_bytes() == (tmp_path / "a.tar.xz").read_bytes()
    assert sandbox.filesystem.list_files("/etc")
    assert sandbox.exec("/bin/busybox", "id", "-u", user="agent").stdout.read() == "1000\n"
    assert not sandbox.filesystem.exists("/was-run")
    sandbox.exec("tar", "--help")
    assert sandbox.filesystem.read_text("/was-run") == "/bin/tar\n", "the control"


DATABASES = {
    "a name that is a number": "1000:x:0:0::/:/bin/sh\n",
    "ids beyond the last": "one:x:-1:-1::/:\ntwo:x:4294967296:0::/:\nthree:x:4294967295:0::/:\n",
    "no end of line": "root:x:0:0:root:/:/bin/sh",
    "line ends of another system": "root:x:0:0:root:/:/bin/sh\r\nagent:x:1000:1000::/:\r\n",
    "broken lines": ":::::::::\nroot\n\n\n:x:0:0::/:\nagent:x:1000\n",
}


@pytest.mark.parametrize("what", DATABASES)
def test_a_number_is_a_user_id_whatever_the_image_says(create: Create, what: str) -> None:
    """H10: CVE-2026-46680 looked up a number as a name."""
    sandbox = create()
    sandbox.filesystem.write_text("/etc/passwd", DATABASES[what])
    assert sandbox.exec("id", "-u", user="1000").stdout.read() == "1000\n"
    for user in ("0x0", " root", "a:b:c", "-1", "4294967295", "4294967296", "+0", "one", "two", "three"):
        with pytest.raises(InvalidError):
            sandbox.exec("id", "-u", user=user)


def test_a_huge_or_odd_user_database_is_no_trouble(create: Create) -> None:
    """H10: larger than is read, a link, a pipe."""
    sandbox = create()
    for script in (
        "head -c 30000000 /dev/zero | tr '\\0' 'x' > /etc/group",
        "rm /etc/group; mkfifo /etc/group",
        "rm /etc/group; ln -s /dev/zero /etc/group",
    ):
        sh(sandbox, script)
        assert sandbox.exec("id", "-u", user="agent", timeout=20).stdout.read() == "1000\n"


ODD_NAMES = ["../../etc", "a/b", "a\0b", "a\nb", "x" * 300, "\uff41", "%2e%2e", "", " "]


@pytest.mark.parametrize("name", [*ODD_NAMES, ".", "..", "-x"])
def test_odd_names_are_refused_before_anything_is_touched(engine: Embedded, armed: Image, name: str) -> None:
    """H14: of apps, sandboxes, tags, and ids. A tag is no file's name and may be "."."""
    tried: list[Callable[[], object]] = [
        lambda: App(name),
        lambda: Sandbox.create(image=armed, engine=engine, name=name),
        lambda: Sandbox.from_name("attack", name, engine=engine),
        lambda: Sandbox.from_id(name, engine=engine),
    ]
    if name in ODD_NAMES:
        tried += [
            lambda: Sandbox.create(image=armed, engine=engine, tags={name: "x"}),
            lambda: Sandbox.create(image=armed, engine=engine, tags={"x": name}),
        ]
    before = engine.store.ids()
    for make in tried:
        with pytest.raises((InvalidError, NotFoundError)):
            make()
    assert engine.store.ids() == before


def test_labels_of_ours_cannot_be_forged(engine: Embedded, armed: Image, create: Create) -> None:
    """H16: tags that begin with our name."""
    for name in ("openmodal", "openmodal.run", "OpenModal-id"):
        with pytest.raises(InvalidError, match="reserved"):
            Sandbox.create(image=armed, engine=engine, tags={name: "x"})
    assert create(tags={"mine": "x"}).get_tags() == {"mine": "x"}, "the control"


def test_secrets_of_a_sandbox_are_in_no_layer_and_no_state(engine: Embedded, create: Create) -> None:
    """H17: nor in what is shown of them."""
    word = secrets.token_hex(16)
    secret = Secret.from_dict({"TOKEN": word})
    sandbox = create(secrets=[secret])
    assert sandbox.exec("sh", "-c", "echo $TOKEN").stdout.read() == word + "\n", "the control"
    assert word not in repr(secret) + str(secret) + repr(sandbox)
    roots = [engine.store.sandboxes, engine.store.ended, engine.layers.path]
    files = [path for root in roots for path in root.rglob("*.json") if path.is_file()]
    assert files
    assert not [path for path in files if word.encode() in path.read_bytes()]
    assert works(sandbox, "test -n $TOKEN")
