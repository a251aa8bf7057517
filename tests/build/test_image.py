"""An image is a value: pure, immutable, and the same for the same arguments everywhere."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest

from openmodal._spec import Config, Copy, Debian, Dockerfile, Registry, Run, Scratch
from openmodal.build import DEFAULTS, names
from openmodal.build.layers import Layers
from openmodal.errors import InvalidError
from openmodal.image import Image

BASE = Image.from_scratch()


def name(image: Image, store: Layers) -> str:
    return names.chain(image.recipe, store, DEFAULTS)[-1]


def test_each_method_returns_a_new_image_and_leaves_the_old_one():
    base = Image.debian_slim()
    steps = base.recipe.steps
    assert base.apt_install("git") is not base
    assert base.recipe.steps == steps == (Debian(""),)


def test_images_are_equal_hashable_and_picklable():
    image = Image.debian_slim("3.11").apt_install("git").env({"A": "1"})
    assert image == Image.debian_slim("3.11").apt_install("git").env({"A": "1"})
    assert len({image, pickle.loads(pickle.dumps(image))}) == 1
    with pytest.raises(AttributeError):
        image.recipe = BASE.recipe  # type: ignore[misc]


@pytest.mark.parametrize(
    "same",
    [
        BASE.apt_install(),
        BASE.apt_install([]),
        BASE.pip_install([], []),
        BASE.uv_pip_install(),
        BASE.run_commands(),
        BASE.run_commands([]),
        BASE.dockerfile_commands([]),
        BASE.env({}),
        BASE.add_local_python_source(),
    ],
)
def test_empty_lists_add_no_step(same: Image):
    assert same == BASE


def test_the_bases_are_steps():
    assert Image.from_registry("alpine:3").recipe.steps == (Registry("alpine:3"),)
    assert Image.from_scratch().recipe.steps == (Scratch(),)
    assert Image.from_dockerfile("/x/Dockerfile", build_args={"A": "1"}).recipe.steps == (
        Dockerfile("/x/Dockerfile", (), "/x", (("A", "1"),)),
    )


def test_apt_takes_strings_and_lists_quotes_nothing_unsafe_and_keeps_downloads_out_of_the_layer():
    (step,) = BASE.apt_install("git", ["curl", "g++"]).recipe.steps[1:]
    assert isinstance(step, Run)
    assert "install -y --no-install-recommends git curl g++" in step.argv[2]
    assert step.argv[2].count(" update ") == 1
    assert "/var/lib/apt/lists" in step.caches


def test_pip_passes_requirements_after_two_dashes():
    (step,) = BASE.pip_install(
        "a>=1", ["b[c]"], index_url="https://i/", pre=True, extra_options="--no-deps"
    ).recipe.steps[1:]
    assert isinstance(step, Run)
    options = ("--index-url=https://i/", "--pre", "--no-deps")
    assert step.argv == ("python3", "-m", "pip", "install", *options, "--", "a>=1", "b[c]")


def test_commands_are_one_step_each():
    assert len(BASE.run_commands("a", ["b", "c"]).recipe.steps) == 4


def test_settings():
    image = BASE.env({"A": "1"}).workdir("/w").user("1000:1000").entrypoint(["a"]).cmd([])
    assert image.recipe.steps[1:] == (
        Config(env=(("A", "1"),)),
        Config(workdir="/w"),
        Config(user="1000:1000"),
        Config(entrypoint=("a",)),
        Config(cmd=()),
    )


def test_local_paths_become_absolute_without_being_looked_at(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    image = BASE.add_local_file("none", "/a").add_local_dir("./b/../c", "/c", ignore=["*.pyc"])
    assert image.recipe.steps[1:] == (
        Copy(str(tmp_path / "none"), "/a"),
        Copy(str(tmp_path / "c"), "/c", ("*.pyc",)),
    )


def test_python_source_is_found_without_being_imported(monkeypatch, tmp_path):
    (tmp_path / "one.py").write_text("raise SystemExit")
    (tmp_path / "two").mkdir()
    (tmp_path / "two/__init__.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    one, two, env = BASE.add_local_python_source("one", "two").recipe.steps[1:]
    assert isinstance(one, Copy) and isinstance(two, Copy)
    assert (one.source, one.target) == (str(tmp_path / "one.py"), "/root/one.py")
    assert (two.source, two.target) == (str(tmp_path / "two"), "/root/two")
    assert env == Config(env=(("PYTHONPATH", "/root"),))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Image.debian_slim("three"),
        lambda: Image.debian_slim(3.11),  # type: ignore[arg-type]
        lambda: Image.from_registry(""),
        lambda: Image.from_registry("a b"),
        lambda: BASE.apt_install("-o Debug=1"),
        lambda: BASE.apt_install("git; rm -rf /"),
        lambda: BASE.apt_install(3),  # type: ignore[arg-type]
        lambda: BASE.pip_install("-r x"),
        lambda: BASE.pip_install(""),
        lambda: BASE.pip_install("a", extra_options="'"),
        lambda: BASE.env({"A": "\0"}),
        lambda: BASE.workdir("relative"),
        lambda: BASE.user("a b"),
        lambda: BASE.user("0:0:0"),
        lambda: BASE.entrypoint("sh"),
        lambda: BASE.add_local_file("a", "relative"),
        lambda: BASE.add_local_file("", "/a"),
        lambda: BASE.add_local_python_source("no_such_module_at_all"),
        lambda: BASE.add_local_python_source("os.path"),
        lambda: BASE.run_commands("a\0b"),
    ],
)
def test_wrong_arguments_are_refused_at_once(wrong):
    with pytest.raises(InvalidError):
        wrong()


def test_repr_reads_like_a_dockerfile_and_shows_no_values():
    shown = repr(Image.debian_slim().apt_install("git").env({"TOKEN": "hunter2"}).run_commands("make"))
    assert "RUN make" in shown
    assert "hunter2" not in shown


# --------------------------------------------------------------------------------------------- keys


def test_a_name_is_the_same_in_every_process(store):
    image = Image.debian_slim("3.11").apt_install("git").run_commands("echo \udcff").env({"A": "ä"})
    code = (
        "from openmodal.image import Image; from openmodal.build import DEFAULTS, names; from openmodal.build.layers import Layers;"
        "i = Image.debian_slim('3.11').apt_install('git').run_commands('echo \\udcff').env({'A': 'ä'});"
        "print(names.chain(i.recipe, Layers('/nowhere'), DEFAULTS)[-1])"
    )
    for seed in ("0", "1"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == name(image, store)


def test_the_content_of_a_file_counts_and_not_where_it_is(tmp_path, store):
    for folder, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text(text)
    a, b, c = (name(BASE.add_local_dir(tmp_path / x, "/x"), store) for x in "abc")
    assert a == b != c


def test_times_groups_and_umask_do_not_count_and_the_executable_bit_does(tmp_path, store):
    file = tmp_path / "file"
    file.write_text("x")
    image = BASE.add_local_file(file, "/file")
    before = name(image, store)
    os.utime(file, (1, 1))
    file.chmod(0o664)
    assert name(image, store) == before
    file.chmod(0o755)
    assert name(image, store) != before


def test_ignored_files_do_not_count(tmp_path, store):
    (tmp_path / "a.py").write_text("x")
    image = BASE.add_local_dir(tmp_path, "/x", ignore=["**/*.pyc", ".git"])
    before = name(image, store)
    (tmp_path / "a.pyc").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").write_text("x")
    assert name(image, store) == before
    (tmp_path / "b.py").touch()
    assert name(image, store) != before


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path, store):
    file = tmp_path / "file"
    image = BASE.add_local_file(file, "/file")
    file.write_text("old")
    os.utime(file, ns=(10**18, 10**18))
    before = name(image, store)
    file.write_text("new")
    os.utime(file, ns=(10**18, 10**18))
    assert name(image, store) != before


def test_what_is_no_file_is_refused(tmp_path, store):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidError, match="fifo"):
        name(BASE.add_local_file(tmp_path / "fifo", "/x"), store)
    with pytest.raises(InvalidError, match="missing"):
        name(BASE.add_local_dir(tmp_path / "missing", "/x"), store)
