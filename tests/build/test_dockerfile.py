"""Dockerfiles become the same steps; what would leave the context, or cannot be kept, is refused with its line (H11)."""

from __future__ import annotations

import os
import socket
import stat
import tarfile
from pathlib import Path

import msgspec
import pytest

from openmodal import _config
from openmodal._spec import Dockerfile, Recipe, Registry
from openmodal.build import lookup
from openmodal.build.debian import version_of
from openmodal.build.mapped import mapped
from openmodal.errors import Error, InvalidError, RegistryError, UnsupportedError
from openmodal.image import Image
from tests.build.conftest import Built, Tree

pytestmark = pytest.mark.root


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "src/deep").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "b.txt").write_text("b")
    (folder / "src/main.py").write_text("main")
    (folder / "src/deep/er.pyc").write_text("pyc")
    return folder


@pytest.fixture
def dockerfile(made: Built, busybox: Image, context: Path):
    """Build lines on top of busybox."""

    def build(*lines: str) -> Tree:
        return made(busybox.dockerfile_commands(*lines, context_dir=context))

    return build


@pytest.fixture
def whole(made: Built, context: Path, tmp_path: Path, busybox: Image):
    """Build a whole Dockerfile, where busybox is in the context."""

    def build(text: str, **arguments: str) -> Tree:
        if not (context / "busybox").exists():
            (tmp_path / "busybox").rename(context / "busybox")
        (context / "Dockerfile").write_text(text)
        return made(Image.from_dockerfile(context / "Dockerfile", build_args=arguments))

    return build


def test_variables_and_settings(dockerfile):
    tree = dockerfile(
        "ARG V=1",
        'ENV A=x$V B="two words" \\',
        "    C='$A'",
        "ENV D old style",
        "ENV A=new E=$A ${Z:-F}=f",
        "WORKDIR /one",
        "WORKDIR two",
        "RUN echo $V $A $B $C $D $E $F > out",
        "USER ada",
        'ENTRYPOINT ["/e", "$A"]',
        "CMD run $A",
        "EXPOSE 80",
        "LABEL a=b",
        "HEALTHCHECK CMD true",
    )
    assert tree.text("/one/two/out") == "1 new two words $A old style x1 f\n"
    root = tree.root
    assert (root.user, root.workdir, root.entrypoint) == ("ada", "/one/two", ("/e", "$A"))
    assert root.cmd == ("/bin/sh", "-c", "run $A")
    assert "V" not in dict(root.env)


def test_run_in_all_its_forms(dockerfile):
    tree = dockerfile(
        'RUN ["touch", "/a b"]',
        "RUN <<EOF",
        "echo one > /one",
        "echo two > /two",
        "EOF",
        "RUN cat <<X > /three && cat <<'Y' > /four",
        "$((1+2))",
        "X",
        "$HOME",
        "Y",
        "RUN <<EOF",
        "#!/bin/busybox sh",
        "echo $0 > /five",
        "EOF",
        'SHELL ["/bin/busybox", "sh", "-ec"]',
        "RUN false || echo \\",
        "  six > /six",
    )
    assert "/a b" in tree
    assert [tree.text(f"/{name}") for name in ("one", "two", "three", "four")] == ["one\n", "two\n", "3\n", "$HOME\n"]
    assert tree.text("/five").startswith("/tmp/")
    assert tree.text("/six") == "six\n"


def test_commands_run_as_the_user_of_the_file(dockerfile):
    tree = dockerfile("RUN chmod 777 /", "USER 1000:1001", "RUN id -u > /who; id -g >> /who")
    assert tree.text("/who") == "1000\n1001\n"


def test_a_cache_is_kept_and_is_no_part_of_the_layer(made, busybox, context):
    cache = "RUN --mount=type=cache,target=/var/cache/x "
    first = made(busybox.dockerfile_commands(cache + "echo kept > /var/cache/x/file", context_dir=context))
    second = made(busybox.dockerfile_commands(cache + "cat /var/cache/x/file > /out", context_dir=context))
    assert second.text("/out") == "kept\n"
    assert "/var/cache/x" not in first
    assert "/var" not in first


def test_copy(dockerfile):
    tree = dockerfile(
        "COPY a.txt /exact",
        "COPY a.txt b.txt /folder/",
        "WORKDIR /w",
        "COPY src .",
        "COPY *.txt ./globbed/",
        "COPY --chmod=4750 --chown=ada a.txt /owned",
        "COPY --chown=5:6 src /numbers",
        "COPY <<EOF /doc",
        "hello $V 'quoted' \"too\"",
        "EOF",
        "COPY . /all",
        "ADD a.txt /added",
        "COPY a.txt /folder",
    )
    assert tree.text("/exact") == tree.text("/added") == tree.text("/folder/a.txt") == "a"
    assert tree.text("/folder/b.txt") == tree.text("/w/globbed/b.txt") == "b"
    assert tree.text("/w/main.py") == tree.text("/all/src/main.py") == "main"
    owned = tree.stat("/owned")
    assert (stat.S_IMODE(owned.st_mode), owned.st_uid, owned.st_gid) == (0o4750, 1000, 1001)
    assert (tree.stat("/numbers/main.py").st_uid, tree.stat("/numbers").st_gid) == (5, 6)
    assert tree.text("/doc") == "hello  'quoted' \"too\"\n"


def test_dockerignore_holds_from_every_folder(dockerfile, context):
    (context / ".dockerignore").write_text("# comment\n**/*.pyc\nb.txt\nsrc/*\n!src/main.py\n")
    tree = dockerfile("COPY . /all", "COPY src /src")
    assert "/all/b.txt" not in tree
    assert "/all/src/deep" not in tree
    assert "/src/deep/er.pyc" not in tree
    assert tree.text("/src/main.py") == tree.text("/all/src/main.py") == "main"
    with pytest.raises(InvalidError, match=r"b\.txt"):
        dockerfile("COPY b.txt /b")


def test_several_stages(whole):
    tree = whole(
        "ARG WHO=world\nFROM scratch AS tools\nCOPY busybox /\n"
        "FROM tools AS build\nARG WHO\nARG TARGETARCH\nRUN mkdir /out && echo hello $WHO $TARGETARCH > /out/text && touch /out/x\n"
        "RUN chown 7:8 /out/text\n"
        'FROM scratch\nCOPY --from=build /out /srv\nCOPY --from=1 --chown=1:1 /out/text /bin/busybox /two/\nCMD ["/x"]\n',
        WHO="me",
    )
    assert tree.text("/srv/text").startswith("hello me ")
    assert (tree.stat("/srv/text").st_uid, tree.stat("/two/text").st_uid) == (7, 1)
    assert "/bin" not in tree
    assert "/two/busybox" in tree
    assert tree.root.cmd == ("/x",)


def test_a_changed_file_of_the_context_changes_the_image(made, busybox, context, store):
    image = busybox.dockerfile_commands("COPY a.txt /a", context_dir=context)
    assert made(image).text("/a") == "a"
    (context / "b.txt").write_text("changed")
    assert lookup(image.recipe, store) is None
    layers = made(image).root.layers
    (context / "a.txt").write_text("new")
    assert made(image).text("/a") == "new"
    assert made(image).root.layers != layers


REFUSED = {
    "COPY ../outside /x": "leaves the build context",
    "COPY src/../../outside /x": "leaves the build context",
    "ADD ../../../root/canary /x": "leaves the build context",
    "COPY none /x": "no 'none'",
    "COPY outside-link /x": "leaves the build context",
    "COPY outside-folder/secret /x": "leaves the build context",
    "COPY a.txt b.txt /x": "needs a folder",
    "COPY --from=../x /a /b": "not the name of an image",
    "COPY --from=7 /a /b": "no such stage",
    "COPY --from=0 --exclude=x /a /b": "no such stage",
    "COPY *.txt /x": "needs a folder",
    "COPY [a /x": "no pattern",
    "COPY a.txt <<EOF /x\nEOF": "needs a folder",
    "COPY --parents a.txt /x": "--parents",
    "COPY --chown=nobody-here a.txt /x": "nobody-here",
    "COPY --chown=65536 a.txt /x": "65536",
    "COPY --chown=1:70000 a.txt /x": "70000",
    "COPY --chmod=u+x a.txt /x": "--chmod",
    "COPY a.txt": "source and a target",
    "ADD http://169.254.169.254/latest /x": "curl",
    "ADD https://example.com/x /x": "curl",
    "ADD git@example.com:x.git /x": "git",
    "ADD packed /x": "tar",
    "ADD --checksum=sha256:0 a.txt /x": "--checksum",
    "ADD --keep-git-dir=true a.txt /x": "--keep-git-dir",
    "RUN --mount=type=bind,source=/,target=/host ls": "type=bind",
    "RUN --mount=type=secret,id=x ls": "type=secret",
    "RUN --mount=type=ssh ls": "type=ssh",
    "RUN --mount=type=tmpfs,target=/x ls": "type=tmpfs",
    "RUN --mount=target=/x ls": "type=bind",
    "RUN --mount=type=cache ls": "target",
    "RUN --mount=type=cache,target=/x,uid=1000 ls": "uid",
    "RUN --mount=type=cache,target=/x,from=y ls": "from",
    "RUN --network=none ls": "--network",
    "RUN --network=host ls": "--network",
    "RUN --device=x ls": "--device",
    "RUN --security=insecure ls": "--security",
    "ONBUILD RUN x": "ONBUILD",
    "FROM scratch": "FROM",
    "USER 0:0:0": "USER",
    "SHELL /bin/sh": "SHELL",
    "NONSENSE x": "NONSENSE",
    "ENV A": "",
    "RUN a\0b": "NUL",
    "RUN " + "x" * (2 << 20): "1048576",
}


@pytest.mark.parametrize("line", REFUSED, ids=lambda line: line[:40].replace("\0", "NUL"))
def test_what_cannot_or_must_not_be_done_is_refused(line, dockerfile, context, made, store):
    """H11: files of elsewhere, other kinds of mounts."""
    outside = context.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("canary")
    (context / "outside-link").symlink_to("../outside/secret")
    (context / "outside-folder").symlink_to(outside)
    with tarfile.open(context / "packed", "w:gz") as tar:
        tar.add(outside)
    with pytest.raises((InvalidError, UnsupportedError)) as caught:
        dockerfile(line)
    assert REFUSED[line] in str(caught.value)
    assert not made.requests


def test_a_wildcard_does_not_go_through_a_link_out_of_the_context(dockerfile, context):
    """H11."""
    outside = context.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("canary")
    (context / "outside-folder").symlink_to(outside)
    tree = dockerfile("COPY outside-fold*/secret a.txt /x/", "COPY */secret a.txt /x/")
    assert "/x/a.txt" in tree
    assert "/x/secret" not in tree


def test_the_error_names_the_line(dockerfile):
    with pytest.raises(InvalidError, match="line 3"):
        dockerfile("ENV A=1", "", "COPY ../x /")


@pytest.mark.parametrize(
    "text",
    ["", "RUN true", "ARG A=1", "FROM --platform=plan9/mips scratch", "FROM a b", "FROM $NONE", "FROM scratch AS"],
)
def test_a_file_that_begins_wrongly_is_refused(text, whole):
    with pytest.raises(Error):
        whole(text)


def test_a_link_inside_a_copied_folder_stays_a_link(dockerfile, context):
    (context / "src/link").symlink_to("/etc/shadow")
    tree = dockerfile("COPY src /src")
    assert stat.S_ISLNK(tree.stat("/src/link").st_mode)


def test_a_missing_file_is_an_error(made):
    with pytest.raises(
        InvalidError,
        match=r"^the Dockerfile '/nowhere/Dockerfile' cannot be read: No such file or directory; check the path$",
    ):
        made(Image.from_dockerfile("/nowhere/Dockerfile"))


def test_a_socket_and_a_fifo_in_the_context_are_left_out_and_told(dockerfile, context, made):
    """One of them anywhere made every COPY fail."""
    os.mkfifo(context / "src/fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(context / "socket"))
        tree = dockerfile("COPY . /all", "COPY a.txt /a")
    assert tree.text("/all/src/main.py") == "main"
    assert "/all/socket" not in tree
    assert "/all/src/fifo" not in tree
    assert any("left out" in news.text and "src/fifo" in news.text for news in made.news)
    with pytest.raises(InvalidError, match="neither file"):
        dockerfile("COPY src/fifo /x")


def test_files_with_the_same_content_and_another_name_do_not_take_each_other_s_place(made, busybox, context):
    """A file added into a folder was known by its content only."""
    (context / "one").write_text("")
    (context / "two").write_text("")
    assert "/d/one" in made(busybox.add_local_file(context / "one", "/d/"))
    assert "/d/two" in made(busybox.add_local_file(context / "two", "/d/"))
    assert "/tmp/one" in made(busybox.dockerfile_commands("COPY one /tmp", context_dir=context))
    assert "/tmp/two" in made(busybox.dockerfile_commands("COPY two /tmp", context_dir=context))


def test_files_and_documents_are_copied_together(dockerfile):
    tree = dockerfile("COPY a.txt <<EOF <<OTHER /d/", "one", "EOF", "two", "OTHER")
    assert [tree.text(f"/d/{name}") for name in ("a.txt", "EOF", "OTHER")] == ["a", "one\n", "two\n"]


def test_excluded_files_are_not_copied(dockerfile):
    tree = dockerfile(
        "COPY --exclude=*.pyc --exclude=b.* --exclude=deep/none . /all", "COPY --exclude=b.txt *.txt /some/"
    )
    assert "/all/b.txt" not in tree
    assert "/some/b.txt" not in tree
    assert "/all/src/deep/er.pyc" in tree
    assert tree.text("/some/a.txt") == "a"
    tree = dockerfile("COPY --exclude=**/*.pyc --exclude=main.py src /s")
    assert "/s/deep" in tree
    assert "/s/deep/er.pyc" not in tree
    assert "/s/main.py" not in tree


def test_copying_from_another_stage_keeps_hard_links(whole):
    tree = whole(
        "FROM scratch AS made\nCOPY busybox /\nRUN mkdir /d && echo x > /d/one && busybox ln /d/one /d/two\n"
        "FROM scratch\nCOPY --from=made /d /d\n"
    )
    assert tree.stat("/d/one").st_ino == tree.stat("/d/two").st_ino


def test_a_proxy_reaches_run_without_arg_and_is_no_part_of_the_image(whole):
    tree = whole("FROM scratch\nCOPY busybox /\nRUN echo $HTTP_PROXY > /x\n", HTTP_PROXY="http://p:1")
    assert tree.text("/x") == "http://p:1\n"
    assert "HTTP_PROXY" not in dict(tree.root.env)


# -------------------------------------------------------------------------------------------- bases


def test_a_name_that_no_registry_gives_is_told_with_file_line_and_remedies(whole):
    with pytest.raises(RegistryError) as caught:
        whole("ARG V=22.04\n\nFROM registry.invalid/ubuntu:$V\n")
    text = str(caught.value)
    assert "Dockerfile, line 3: registry.invalid/ubuntu:22.04" in text
    assert "bases={'registry.invalid/ubuntu:22.04': image}" in text
    assert '[bases] "registry.invalid/ubuntu:22.04" = "host/name:tag"' in text


def test_another_image_stands_for_one_of_a_registry(made, busybox, context, store):
    (context / "Dockerfile").write_text(
        "FROM ubuntu:22.04 AS one\nRUN echo x > /x\nFROM scratch\nCOPY --from=one /x /x\nCOPY --from=tools.invalid/t /etc/passwd /p\n"
    )
    instead = {"docker.io/library/ubuntu:22.04": busybox, "tools.invalid/t": busybox}
    image = Image.from_dockerfile(context / "Dockerfile", bases=instead)
    tree = made(image)
    assert tree.text("/x") == "x\n"
    assert "ada" in tree.text("/p")
    assert lookup(image.recipe, store) == tree.root
    other = {**instead, "docker.io/library/ubuntu:22.04": busybox.env({"A": "1"})}
    assert lookup(Image.from_dockerfile(context / "Dockerfile", bases=other).recipe, store) is None


def test_the_configuration_names_other_places_for_bases(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMODAL_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text('[bases]\n"ubuntu" = "mirror.invalid/ubuntu@sha256:%s"\n' % ("0" * 64))
    (tmp_path / "Dockerfile").write_text("FROM docker.io/ubuntu:latest\nFROM debian AS x\nCOPY --from=0 /a /b\n")
    pinned = Registry(f"mirror.invalid/ubuntu@sha256:{'0' * 64}")
    table = _config.bases()
    assert mapped(Registry("ubuntu"), table) == pinned
    assert mapped(Registry("ubuntu:22.04"), table) == Registry("ubuntu:22.04")
    (step,) = Image.from_dockerfile(tmp_path / "Dockerfile").recipe.steps
    assert isinstance(step, Dockerfile)
    expected = msgspec.structs.replace(step, bases=(("docker.io/ubuntu:latest", Recipe((pinned,))),))
    assert mapped(step, table) == expected
    assert mapped(step, {}) == step


def test_debian_and_python_are_made_of_packages_where_no_registry_is_reached():
    versions = {name: version_of(name) for name in PACKAGES}
    assert versions == PACKAGES


PACKAGES = {
    "python:3.13-slim": "3.13",
    "docker.io/library/python:3.11": "3.11",
    "python:3.11-slim-bookworm": "3.11",
    "python:3.13-slim-bookworm": "",
    "python:3.12-slim": "",
    "python:3.13-alpine": "",
    "python": "",
    "debian": "3.13",
    "debian:bookworm": "3.11",
    "debian:12-slim": "3.11",
    "debian:sid": "",
    "ubuntu:22.04": "",
    "mirror.invalid/library/debian:bookworm": "",
    "Not A Name": "",
}


def test_a_stage_that_nobody_needs_is_not_built(whole):
    tree = whole("FROM nowhere.invalid/x AS test\nRUN exit 1\nFROM scratch\nCOPY busybox /\nRUN echo x > /x\n")
    assert tree.text("/x") == "x\n"
