"""Steps become layers, each once, and nothing half-made is ever used."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from openmodal._hidden import names_of
from openmodal.build import Options, build, local, lookup
from openmodal.build.base import trust_layer
from openmodal.build.layers import Layers
from openmodal.build.prune import prune
from openmodal.errors import DiskFullError, ImageBuildError, InvalidError, UnsupportedError
from openmodal.image import Image
from openmodal.testing.fixtures import eventually
from tests.build.runner import chroot_runner

pytestmark = pytest.mark.root
ROOT = Path(__file__).resolve().parents[2]


def test_a_command_s_changes_are_the_layer_and_the_image_is_found_again(made, store, busybox):
    image = busybox.run_commands("echo one > /one", "rm /etc/group; cat /one > /two")
    tree = made(image)
    assert tree.text("/two") == "one\n"
    assert "/etc/group" not in tree
    assert len(tree.root.layers) == 4
    assert lookup(image.recipe, store) == tree.root


def test_a_second_build_runs_nothing(made, busybox):
    image = busybox.run_commands("echo one > /one")
    first = made(image).root
    made.news.clear()
    assert made(image).root == first
    assert len(made.requests) == 1
    assert {news.event for news in made.news} == {"start", "cached"}


def test_images_share_the_steps_they_have_in_common(made, busybox):
    made(busybox.run_commands("echo one > /one", "echo two > /two"))
    made(busybox.run_commands("echo one > /one", "echo three > /three"))
    assert len(made.requests) == 3


def test_settings_reach_commands_and_the_root(made, busybox):
    image = (
        busybox.env({"A": "1", "B": "x y"}).workdir("/some/where").run_commands("echo $A$B >out; pwd >>out").cmd(["sh"])
    )
    tree = made(image.env({"A": "2"}).user("ada"))
    assert tree.text("/some/where/out") == "1x y\n/some/where\n"
    assert dict(tree.root.env)["A"] == "2"
    assert (tree.root.user, tree.root.cmd, tree.root.workdir) == ("ada", ("sh",), "/some/where")


def test_nothing_of_mounts_stays_in_a_layer(made, busybox, store):
    tree = made(busybox.run_commands("true"))
    assert [p.name for p in Path(tree.folders[0]).iterdir() if p.name not in ("proc", "dev")] == []


def test_a_failing_step_tells_what_it_printed_and_leaves_nothing(made, store, busybox):
    image = busybox.run_commands("echo good", "echo bad news; exit 3")
    with pytest.raises(ImageBuildError, match=r"step 4 of 4.*exit code 3.*bad news") as caught:
        made(image)
    assert caught.value.step == "RUN echo bad news; exit 3"
    assert caught.value.output == "bad news"
    assert lookup(image.recipe, store) is None
    assert list((store.path / "tmp").iterdir()) == []
    assert len(made.requests) == 2
    with pytest.raises(ImageBuildError):
        made(image)
    assert len(made.requests) == 3  # the good step was kept


def test_a_full_disk_is_named(store, busybox):
    def full(request):
        request.output(b"cp: write error: No space left on device\n")
        return 1

    with pytest.raises(DiskFullError, match=r"^step 3 of 3, RUN true, failed: .*openmodal image prune"):
        build(busybox.run_commands("true").recipe, store, full, lambda progress: None)
    assert list((store.path / "tmp").iterdir()) == []


def test_a_really_full_disk_is_named_and_cleaned_up(tmp_path, busybox):
    """R16, on a file system of 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=True)
    try:
        (tmp_path / "big").write_bytes(bytes(5 << 20))
        with pytest.raises(DiskFullError):
            build(
                busybox.add_local_file(tmp_path / "big", "/big").recipe,
                Layers(folder / "s"),
                chroot_runner,
                lambda p: None,
            )
        assert list((folder / "s/tmp").iterdir()) == []
    finally:
        subprocess.run(["umount", folder], check=True)


def test_an_image_needs_a_beginning(made):
    from openmodal._spec import Recipe, Run

    with pytest.raises(InvalidError, match="begins with"):
        made(Recipe((Run(("true",)),)))


# -------------------------------------------------------------------------------------- local files


def test_copies_in_a_row_are_one_layer(made, busybox, tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    image = busybox.run_commands("true")
    for name in "abc":
        image = image.add_local_file(tmp_path / name, f"/srv/{name}")
    tree = made(image)
    assert [tree.text(f"/srv/{name}") for name in "abc"] == ["a", "b", "c"]
    assert len(tree.root.layers) == 4


def test_copying_keeps_the_image_s_folders_and_links_as_they_are(made, busybox, tmp_path):
    base = busybox.run_commands("mkdir /real /sticky; chmod 1777 /sticky; chmod 700 /real; busybox ln -s /real /srv")
    (tmp_path / "file").write_text("x")
    tree = made(base.add_local_file(tmp_path / "file", "/sticky/").add_local_file(tmp_path / "file", "/srv/a/b"))
    assert stat.S_IMODE(tree.stat("/sticky").st_mode) == 0o1777
    assert stat.S_IMODE(tree.stat("/real").st_mode) == 0o700
    assert tree.text("/sticky/file") == tree.text("/real/a/b") == "x"
    assert stat.S_ISLNK(tree.stat("/srv").st_mode)


def test_a_link_in_the_image_does_not_lead_a_copy_out_of_it(made, busybox, tmp_path):
    canary = tmp_path / "canary"
    canary.mkdir()
    base = busybox.run_commands(f"busybox ln -s {canary} /out; busybox ln -s ../../../../../..{canary} /up")
    (tmp_path / "file").write_text("x")
    tree = made(base.add_local_file(tmp_path / "file", "/out/a").add_local_file(tmp_path / "file", "/up/b"))
    assert list(canary.iterdir()) == []
    assert tree.text(f"{canary}/a") == tree.text(f"{canary}/b") == "x"


def test_modes_are_normal_and_links_stay_links(made, tmp_path):
    folder = tmp_path / "d"
    (folder / "sub").mkdir(parents=True, mode=0o700)
    (folder / "sub/tool").write_text("x")
    (folder / "sub/tool").chmod(0o700)
    (folder / "text").write_text("x")
    (folder / "text").chmod(0o600)
    (folder / "link").symlink_to("/etc/shadow")
    tree = made(Image.from_scratch().add_local_dir(folder, "/d", ignore=["none"]))
    modes = [stat.S_IMODE(tree.stat(path).st_mode) for path in ("/d", "/d/sub", "/d/sub/tool", "/d/text")]
    assert modes == [0o755, 0o755, 0o755, 0o644]
    assert os.readlink(tree.folders[0] + "/d/link") == "/etc/shadow"


def test_a_file_that_changes_while_it_is_added_is_noticed(store, tmp_path, monkeypatch):
    """R52: the hash of what was read is the hash that is recorded."""
    from openmodal.build import put

    file = tmp_path / "file"
    file.write_text("old")
    original = put.copy_local

    def changed_meanwhile(*arguments):
        file.write_text("new")
        original(*arguments)

    monkeypatch.setattr(put, "copy_local", changed_meanwhile)
    image = Image.from_scratch().add_local_file(file, "/file")
    with pytest.raises(ImageBuildError, match="changed while"):
        build(image.recipe, store, chroot_runner, lambda p: None)
    assert not any("COPY" in store.meta(key).step for key in os.listdir(store.path / "layers"))


def test_what_did_not_change_in_a_folder_is_not_copied_again(made, busybox, tmp_path):
    """One changed file of a folder cost a copy of all of it."""
    folder = tmp_path / "d"
    (folder / "sub").mkdir(parents=True)
    for name in ("same", "sub/same", "changed", "touched", "mode"):
        (folder / name).write_text(name)
    time.sleep(local.SETTLED + 0.5)
    before = made(busybox.add_local_dir(folder, "/d"))
    (folder / "changed").write_text("new")
    (folder / "mode").chmod(0o755)
    os.utime(folder / "touched", (1, 1))
    after = made(busybox.add_local_dir(folder, "/d"))
    shared = {name for name in (*os.listdir(folder), "sub/same") if _inode(before, name) == _inode(after, name)}
    assert shared == {"same", "sub/same"}
    assert after.text("/d/changed") == "new"
    assert before.text("/d/changed") == "changed"
    assert stat.S_IMODE(after.stat("/d/mode").st_mode) == 0o755
    assert after.stat("/d/touched").st_mtime == 1


def test_a_file_is_copied_again_when_the_layer_that_had_it_is_gone(made, busybox, store, tmp_path):
    (tmp_path / "d").mkdir()
    for name in "ab":
        (tmp_path / "d" / name).write_text(name)
    time.sleep(local.SETTLED + 0.5)
    made(busybox.add_local_dir(tmp_path / "d", "/d"))
    assert store.notes("copied")
    prune(store)
    assert not store.notes("copied")
    (tmp_path / "d/b").write_text("new")
    tree = made(busybox.add_local_dir(tmp_path / "d", "/d"))
    assert (tree.text("/d/a"), tree.text("/d/b")) == ("a", "new")


def _inode(tree, name: str) -> int:
    return tree.stat(f"/d/{name}").st_ino if not stat.S_ISDIR(tree.stat(f"/d/{name}").st_mode) else -id(tree)


def test_many_files_are_copied_in_reasonable_time(made, busybox, tmp_path):
    folder = tmp_path / "many"
    for n in range(2000):
        (folder / str(n % 50)).mkdir(parents=True, exist_ok=True)
        (folder / str(n % 50) / str(n)).write_text(str(n))
    begun = time.monotonic()
    made(busybox.run_commands("true").add_local_dir(folder, "/many"))
    assert time.monotonic() - begun < 10


# -------------------------------------------------------------------------------- several processes


def start(mode: str, store: Layers, image: Image, *arguments: str) -> subprocess.Popen[bytes]:
    """Another process, see tests/build/child.py."""
    recipe = msgspec.json.encode(image.recipe, enc_hook=names_of).decode()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.build.child", mode, str(store.path), recipe, *arguments], env=env
    )


def test_many_processes_build_an_image_once(store, busybox, tmp_path):
    image = busybox.run_commands("echo one > /one", "echo two > /two")
    processes = [start("build", store, image, str(tmp_path / "log")) for _ in range(6)]
    assert [process.wait(60) for process in processes] == [0] * 6
    assert len((tmp_path / "log").read_text().splitlines()) == 2
    assert lookup(image.recipe, store) is not None


def test_those_who_wait_for_a_step_fail_as_it_does_and_a_later_build_tries_again(store, busybox):
    """Each of them ran the step again, one after the other."""
    image, runs, waiting = busybox.run_commands("false"), [], []

    def report(progress):
        if progress.event == "waiting":
            waiting.append(progress)

    def attempt(run):
        with pytest.raises(ImageBuildError, match=r"step 3 of 3.*code 7.*no luck") as caught:
            build(image.recipe, store, run, report)
        return caught.value.step, caught.value.output

    def run(request):
        runs.append(request)
        if len(runs) == 1:
            others.extend(pool.submit(attempt, run) for _ in range(3))
            eventually(lambda: len(waiting) == 3)
        request.output(b"no luck\n")
        return 7

    others: list[Future[tuple[str, str]]] = []
    with ThreadPoolExecutor(3) as pool:
        failed = attempt(run)
    assert [other.result() for other in others] == [failed] * 3
    assert len(runs) == 1
    assert attempt(run) == failed == ("RUN false", "no luck")
    assert len(runs) == 2


@pytest.mark.parametrize("point", ["run", "sync", "rename", "remove", "mkdir"])
def test_a_killed_build_leaves_a_store_that_the_next_build_completes(store, busybox, point):
    """R04: killed at the first, second, … call of what it does to the disk, until it gets through."""
    image = busybox.run_commands("echo one > /one", "echo two > /two")
    for count in range(1, 40):
        code = start("die", store, image, point, str(count)).wait()
        assert code in (0, -signal.SIGKILL)
        root = build(image.recipe, store, chroot_runner, lambda p: None)
        assert Path(store.folder(root.layers[0]), "two").read_text() == "two\n"
        assert Path(store.folder(root.layers[1]), "one").read_text() == "one\n"
        assert list((store.path / "tmp").iterdir()) == []
        if code == 0:
            break
        for file in (store.path / "images").iterdir():
            file.unlink()
        subprocess.run(["rm", "-rf", store.path / "layers"], check=True)
    assert count > 1


# -------------------------------------------------------------------------------------------- prune


def test_prune_removes_what_nobody_uses(made, store, busybox):
    image = busybox.run_commands("echo one > /one")
    made(image)
    pruned = prune(store)
    assert pruned.layers == 3
    assert pruned.bytes > 0
    assert lookup(image.recipe, store) is None
    assert list((store.path / "layers").iterdir()) == []
    assert made(image).text("/one") == "one\n"


def test_prune_keeps_an_image_that_is_held_and_everything_below_it(made, store, busybox):
    tree = made(busybox.run_commands("echo one > /one"))
    held = store.hold(tree.root)
    assert held is not None
    with held:
        assert prune(store).layers == 0
        assert tree.text("/one") == "one\n"
    assert prune(store).layers == 3
    assert store.hold(tree.root) is None


def test_prune_keeps_recent_images_and_within_a_budget_the_ones_used_last(made, store, busybox):
    old, new = busybox.run_commands("echo old > /x"), busybox.run_commands("echo new > /x")
    made(old)
    made(new)
    assert prune(store, unused_for=3600).layers == 0
    for file in (store.path / "images").glob("*.json"):
        os.utime(file, (1, 1))
    new_name = next(
        f for f in (store.path / "images").glob("*.json") if lookup(new.recipe, store) and _top(f) == _key(new, store)
    )
    os.utime(new_name)
    assert prune(store, budget=1 << 40).layers == 0
    size = sum(store.meta(key).size for key in os.listdir(store.path / "layers"))
    assert prune(store, budget=size - 1).layers == 1
    assert lookup(new.recipe, store) is not None
    assert lookup(old.recipe, store) is None


def _top(file: Path) -> str:
    return str(json.loads(file.read_bytes())["layers"][0])


def _key(image: Image, store: Layers) -> str:
    root = lookup(image.recipe, store)
    assert root is not None
    return root.layers[0]


def test_an_image_in_use_never_goes_away_under_its_users(store, busybox):
    """R20: builders, users and prune at the same time."""
    users = [start("use", store, busybox.add_local_file(__file__, "/x"), "4") for _ in range(3)]
    while any(user.poll() is None for user in users):
        prune(store)
    assert [user.wait() for user in users] == [0, 0, 0]


# -------------------------------------------------------------------------------------------- other


def test_lookup_is_fast(made, store, busybox, tmp_path):
    image = busybox.run_commands(*(f"echo {n}" for n in range(3)))
    made(image)
    recipe = Image.from_scratch().env({"A": "1"}).recipe
    made(recipe)
    lookup(recipe, store)
    begun = time.perf_counter()
    for _ in range(100):
        assert lookup(recipe, store)
    assert (time.perf_counter() - begun) / 100 < 0.02


def test_the_trust_layer_is_content_addressed_and_survives_prune(store, tmp_path):
    bundle = tmp_path / "ca"
    bundle.write_text("certificates")
    key, env = trust_layer(store, bundle)
    assert key.startswith("57240bf0da526efc35bd"), "as every version has named it"
    assert Path(store.folder(key), "usr/local/share/openmodal/ca.crt").read_text() == "certificates"
    assert dict(env)["PIP_CERT"] == "/usr/local/share/openmodal/ca.crt"
    prune(store)
    assert trust_layer(store, bundle) == (key, env)
    bundle.write_text("others")
    assert trust_layer(store, bundle)[0] != key


def test_a_python_that_debian_does_not_have_is_explained(made):
    with pytest.raises(UnsupportedError, match=r"3.11 \(bookworm\) and 3.13 \(trixie\).*from_registry"):
        made(Image.debian_slim("3.9"), Options(base="packages"))


def test_a_missing_mmdebstrap_is_explained(made, monkeypatch):
    from openmodal.errors import EngineError

    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EngineError, match="apt-get install mmdebstrap"):
        made(Image.debian_slim(), Options(base="packages"))
