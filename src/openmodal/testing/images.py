"""Images: what needs an engine. Recipes themselves are tested as pure values, elsewhere."""

from __future__ import annotations

import os
import pickle
import secrets
import time
from pathlib import Path

import pytest

from openmodal.engines import Engine
from openmodal.errors import Error, ImageBuildError, ImageError, InvalidError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.secret import Secret
from openmodal.testing.faces import Face
from openmodal.testing.fixtures import Create, promise, python_starts


def unique() -> str:
    """A command that no cache knows."""
    return f": {secrets.token_hex(8)}"


class TestImages:
    def test_build_makes_it_ready_and_may_be_repeated(self, face: Face, engine: Engine, image: Image) -> None:
        build = face(image.run_commands(unique()).build)
        build(engine=engine)
        build(engine=engine)

    def test_steps_run_in_order_on_top_of_each_other(self, create: Create, image: Image) -> None:
        changed = image.run_commands(
            "echo one > /list", "echo two >> /list; rm /etc/group", "mkdir /new; mv /list /new/"
        )
        sandbox = create(image=changed)
        assert sandbox.filesystem.read_text("/new/list") == "one\ntwo\n"
        assert not sandbox.filesystem.exists("/list")
        assert not sandbox.filesystem.exists("/etc/group")
        assert create(image=image).filesystem.exists("/etc/group"), "the image it is made of is as it was"

    def test_a_folder_replaced_in_a_later_step_shows_nothing_old(self, create: Create, image: Image) -> None:
        changed = image.run_commands("mkdir /d; touch /d/old", "rm -r /d; mkdir /d; touch /d/new")
        assert [info.name for info in create(image=changed).filesystem.list_files("/d")] == ["new"]

    def test_env_and_workdir_hold_for_steps_and_sandboxes(self, create: Create, image: Image) -> None:
        changed = image.env({"NAME": "value"}).workdir("/made/for/it").run_commands("echo $NAME > file")
        process = create(image=changed).exec("sh", "-c", "pwd; echo $NAME; cat file")
        assert process.stdout.read() == "/made/for/it\nvalue\nvalue\n"

    def test_later_env_beats_earlier(self, create: Create, image: Image) -> None:
        changed = image.env({"NAME": "one"}).env({"NAME": "two"})
        assert create(image=changed).exec("sh", "-c", "echo $NAME").stdout.read() == "two\n"

    @promise("users")
    def test_user_holds_for_commands_and_not_for_steps(self, create: Create, image: Image) -> None:
        changed = image.user("agent").run_commands("id -u > /built-by")
        sandbox = create(image=changed)
        assert sandbox.filesystem.read_text("/built-by") == "0\n"
        assert sandbox.exec("sh", "-c", "echo $(id -un) $HOME").stdout.read() == "agent /home/agent\n"
        assert sandbox.exec("id", "-u", user="root").stdout.read() == "0\n"

    def test_entrypoint_holds_for_the_main_command(self, create: Create, image: Image) -> None:
        sandbox = create("a", "b", image=image.entrypoint(["echo", "said:"]))
        sandbox.wait()
        assert sandbox.stdout.read() == "said: a b\n"

    def test_cmd_is_the_main_command_of_sandboxes_that_are_given_none(self, create: Create, image: Image) -> None:
        """It was promised, and never ran."""
        saying = image.cmd(["sh", "-c", "echo ran; exit 3"])
        sandbox = create(image=saying)
        assert sandbox.wait() == 3
        assert sandbox.stdout.read() == "ran\n"
        other = create("echo", "other", image=saying)
        other.wait()
        assert other.stdout.read() == "other\n", "arguments take its place"

    def test_cmd_is_what_the_entrypoint_is_given(self, create: Create, image: Image) -> None:
        said = image.entrypoint(["echo", "said:"])
        for changed, expected in ((said.cmd(["a"]), "said: a\n"), (said.cmd([]), "said:\n")):
            sandbox = create(image=changed)
            sandbox.wait()
            assert sandbox.stdout.read() == expected

    def test_the_command_of_a_dockerfile_or_base_is_not_run(self, create: Create, image: Image) -> None:
        """A sandbox without arguments stays, whatever the image was made for."""
        for changed in (
            image.dockerfile_commands('CMD ["false"]'),
            image.dockerfile_commands('ENTRYPOINT ["false"]'),
            image.entrypoint(["false"]),
            image.cmd(["false"]).entrypoint([]),
            image.cmd(["false"]).cmd([]),
        ):
            sandbox = create(image=changed)
            assert sandbox.exec("echo", "stays").stdout.read() == "stays\n"
            assert sandbox.poll() is None

    def test_local_files_are_added_with_their_content(self, create: Create, image: Image, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("first")
        (tmp_path / "tool").write_text("#!/bin/sh\necho ran")
        (tmp_path / "tool").chmod(0o700)
        added = image.add_local_file(tmp_path / "file", "/data/").add_local_file(str(tmp_path / "tool"), "/bin/tool")
        sandbox = create(image=added)
        assert sandbox.filesystem.read_text("/data/file") == "first"
        assert sandbox.exec("tool").stdout.read() == "ran\n"
        (tmp_path / "file").write_text("changed")
        again = image.add_local_file(tmp_path / "file", "/data/").add_local_file(str(tmp_path / "tool"), "/bin/tool")
        assert create(image=again).filesystem.read_text("/data/file") == "changed", "the content decides"

    def test_local_files_are_looked_at_once(self, create: Create, engine: Engine, image: Image, tmp_path: Path) -> None:
        """Each create walked every folder that was added, also after build()."""
        (tmp_path / "file").write_text(first := secrets.token_hex(8))
        added = image.add_local_dir(tmp_path, "/data")
        added.build(engine=engine)
        (tmp_path / "file").write_text("changed")
        assert create(image=added).filesystem.read_text("/data/file") == first
        derived = pickle.loads(pickle.dumps(added)).env({"NAME": "value"})
        assert create(image=derived).filesystem.read_text("/data/file") == first, "an image that is made of it, too"

    def test_times_of_local_files_are_kept(self, create: Create, image: Image, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        os.utime(tmp_path / "file", (1_000_000_000, 1_000_000_000))
        sandbox = create(image=image.add_local_dir(tmp_path, "/one").add_local_file(tmp_path / "file", "/two"))
        times = sandbox.exec("stat", "-c", "%Y", "/one/file", "/two").stdout.read()
        assert times == "1000000000\n1000000000\n"

    def test_local_folders_are_added_but_for_what_is_ignored(
        self, create: Create, image: Image, tmp_path: Path
    ) -> None:
        for name in ("keep/a.py", "keep/a.pyc", ".git/config", "b.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(name)
        (tmp_path / "link").symlink_to("b.txt")
        sandbox = create(image=image.add_local_dir(tmp_path, "/app", ignore=[".git", "**/*.pyc"]))
        found = sandbox.exec("sh", "-c", "cd /app && find . | sort").stdout.read().split()
        assert found == [".", "./b.txt", "./keep", "./keep/a.py", "./link"]
        assert sandbox.filesystem.read_text("/app/link") == "b.txt"

    def test_a_dockerfile_is_followed(self, create: Create, image: Image, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("copied")
        lines = ["ENV NAME=value", "WORKDIR /work", "COPY data here/", "RUN echo $NAME > made", 'CMD ["cat", "made"]']
        sandbox = create(image=image.dockerfile_commands(lines, context_dir=tmp_path))
        assert sandbox.filesystem.read_text("/work/here/data") == "copied"
        assert sandbox.exec("sh", "-c", "pwd; cat made").stdout.read() == "/work\nvalue\n"

    @promise("build_secrets")
    def test_steps_see_their_secrets_and_sandboxes_do_not(
        self, face: Face, create: Create, engine: Engine, image: Image
    ) -> None:
        value = secrets.token_hex(8)
        script = f"echo {value} | sed s/{value}/$TOKEN/ | cmp - /expected && echo right > /found; {unique()}"
        secret = Secret.from_dict({"TOKEN": value[::-1]})
        built = image.run_commands(f"echo {value[::-1]} > /expected").run_commands(script, secrets=[secret])
        face(built.build)(engine=engine)
        sandbox = create(image=built)
        assert sandbox.filesystem.read_text("/found") == "right\n"
        assert sandbox.exec("sh", "-c", "echo $TOKEN").stdout.read() == "\n"
        with pytest.raises(ImageBuildError) as caught:
            face(image.run_commands(f"echo $TOKEN; {unique()}; exit 3", secrets=[secret]).build)(engine=engine)
        assert "***" in caught.value.output
        assert value[::-1] not in f"{caught.value}{caught.value.output}"

    def test_a_failing_step_tells_step_and_output(self, face: Face, engine: Engine, image: Image) -> None:
        broken = image.run_commands(unique(), "echo some output; echo the reason >&2; exit 3", "echo never")
        for _ in range(2):
            with pytest.raises(ImageBuildError) as caught:
                face(broken.build)(engine=engine)
            assert "exit 3" in caught.value.step
            assert "some output" in caught.value.output
            assert "the reason" in caught.value.output
            assert "3" in str(caught.value)

    def test_a_failing_step_leaves_nothing_half_made(self, create: Create, engine: Engine, image: Image) -> None:
        marker = secrets.token_hex(8)
        step = f"echo x > /made-{marker}; [ -e /allowed ]"
        with pytest.raises(ImageBuildError):
            image.run_commands(step).build(engine=engine)
        allowed = image.run_commands("touch /allowed").run_commands(step)
        assert create(image=allowed).filesystem.exists(f"/made-{marker}")

    def test_an_image_that_cannot_be_built_makes_no_sandbox(self, create: Create, engine: Engine, image: Image) -> None:
        before = [sandbox.id for sandbox in Sandbox.list(engine=engine)]
        with pytest.raises(ImageBuildError):
            create(image=image.run_commands("exit 1"))
        assert [sandbox.id for sandbox in Sandbox.list(engine=engine)] == before

    def test_a_step_that_is_killed_is_a_failure(self, engine: Engine, image: Image) -> None:
        with pytest.raises(ImageBuildError, match=r"137|signal"):
            image.run_commands("kill -9 $$").build(engine=engine)

    def test_a_local_file_that_is_missing_is_told(self, engine: Engine, image: Image, tmp_path: Path) -> None:
        with pytest.raises((ImageError, InvalidError), match="nothing-here"):
            image.add_local_file(tmp_path / "nothing-here", "/x").build(engine=engine)

    def test_empty_lists_add_no_step(self, image: Image) -> None:
        same = image.run_commands().apt_install([]).pip_install([]).env({}).run_commands([]).dockerfile_commands([])
        assert same == image

    def test_background_processes_of_a_step_end_with_it(self, create: Create, image: Image) -> None:
        changed = image.run_commands(f"{unique()}; setsid sleep 54321 & echo x > /made")
        assert create(image=changed).filesystem.read_text("/made") == "x\n"

    def test_many_at_once_build_once(self, face: Face, engine: Engine, create: Create, image: Image) -> None:
        changed = image.run_commands(f"{unique()}; sleep 0.3; head -c 16 /dev/urandom | base64 > /token")
        for call in [face.start(face(changed.build), engine=engine) for _ in range(6)]:
            call.result(60)
        tokens = {create(image=changed).filesystem.read_text("/token") for _ in range(2)}
        assert len(tokens) == 1

    @promise("many_processes")
    def test_many_processes_build_once(self, engine_name: str, image: Image) -> None:
        changed = image.run_commands(f"{unique()}; sleep 0.3; head -c 16 /dev/urandom | base64 > /token")
        source = """
            with openmodal.Sandbox.create(image=image, engine=argv[0], timeout=60) as sandbox:
                print(sandbox.filesystem.read_text("/token"))
        """
        children = [python_starts(source, engine_name, image=changed) for _ in range(5)]
        outputs = [child.communicate(timeout=600)[0] for child in children]
        assert [child.returncode for child in children] == [0] * 5
        assert len(set(outputs)) == 1
        assert outputs[0].strip()

    @promise("many_processes")
    def test_a_builder_that_is_killed_leaves_the_step_to_the_next(
        self, create: Create, engine_name: str, image: Image, tmp_path: Path
    ) -> None:
        (tmp_path / "data").write_text(secrets.token_hex(8))
        changed = image.add_local_file(tmp_path / "data", "/data").run_commands(
            "echo building; sleep 1; cp /data /done"
        )
        source = """
            from openmodal._dual import run_sync
            from openmodal.engines import choose
            def report(news):
                if news.text.strip() == "building":
                    os.kill(os.getpid(), 9)
            run_sync(choose(argv[0]).prepare(image.recipe, report))
        """
        with python_starts(source, engine_name, image=changed) as child:
            child.communicate(timeout=600)
            assert child.returncode == -9, "it was killed in the middle of the step"
        sandbox = create(image=changed)
        assert sandbox.filesystem.read_text("/done") == sandbox.filesystem.read_text("/data")

    @pytest.mark.slow
    def test_debian_slim_has_python_and_pip(self, create: Create) -> None:
        sandbox = create(image=Image.debian_slim())
        assert sandbox.exec("python3", "-c", "print(6 * 7)").stdout.read() == "42\n"
        assert "pip" in sandbox.exec("python3", "-m", "pip", "--version").stdout.read()
        assert sandbox.exec("bash", "-c", "echo hello").stdout.read() == "hello\n"

    @pytest.mark.slow
    @pytest.mark.timeout(600)
    def test_a_dockerfile_from_python_is_followed_with_and_without_a_registry(
        self, create: Create, tmp_path: Path
    ) -> None:
        (tmp_path / "Dockerfile").write_text("FROM python:3.13-slim\nRUN python3 -c 'print(6 * 7)' > /made\n")
        sandbox = create(image=Image.from_dockerfile(tmp_path / "Dockerfile"))
        assert sandbox.filesystem.read_text("/made") == "42\n"

    def test_a_dockerfile_stands_on_the_image_that_is_given_for_its_base(
        self, create: Create, image: Image, tmp_path: Path
    ) -> None:
        (tmp_path / "Dockerfile").write_text("FROM registry.invalid/x:1 AS one\nRUN echo made > /made\nFROM one\n")
        made = Image.from_dockerfile(tmp_path / "Dockerfile", bases={"registry.invalid/x:1": image})
        assert create(image=made).filesystem.read_text("/made") == "made\n"

    def test_a_base_that_cannot_be_had_is_told_with_its_line(self, engine: Engine, tmp_path: Path) -> None:
        (tmp_path / "Dockerfile").write_text("# comment\nFROM registry.invalid/x:1\n")
        with pytest.raises(Error, match=r"Dockerfile, line 2: registry\.invalid/x:1 .*bases="):
            Image.from_dockerfile(tmp_path / "Dockerfile").build(engine=engine)

    def test_what_builds_an_image_is_in_nobodys_list(self, face: Face, engine: Engine, image: Image) -> None:
        """A program that ends all that is listed must not end other people's builds."""
        before = {sandbox.id for sandbox in Sandbox.list(engine=engine)}
        build = face.start(face(image.run_commands(f"{unique()}; sleep 0.5")).build, engine=engine)
        listed: set[str] = set()
        while not build.done():
            listed |= {sandbox.id for sandbox in Sandbox.list(engine=engine)}
            time.sleep(0.02)
        build.result()
        assert listed <= before

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["apt_install", "pip_install"])
    def test_a_package_that_does_not_exist_is_told(self, engine: Engine, how: str) -> None:
        with pytest.raises(ImageBuildError, match="openmodal-no-such-package"):
            getattr(Image.debian_slim(), how)("openmodal-no-such-package").build(engine=engine)

    @pytest.mark.slow
    def test_packages_are_installed(self, create: Create) -> None:
        sandbox = create(image=Image.debian_slim().apt_install("tree").pip_install("iniconfig"))
        assert sandbox.exec("tree", "--version").returncode == 0
        assert sandbox.exec("python3", "-c", "import iniconfig").returncode == 0

    def test_a_base_that_does_not_exist_is_told(self, engine: Engine) -> None:
        with pytest.raises(Error, match="no-such-registry"):
            Image.from_registry("no-such-registry.invalid/nothing:1").build(engine=engine)


__all__ = ["TestImages"]
