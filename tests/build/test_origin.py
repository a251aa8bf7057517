"""What an image begins with, and names and keys that stay the same from version to version: else every cache is made again."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from openmodal._spec import AnyStep, Config, Copy, Debian, Dockerfile, Layered, Origin, Recipe, Registry, Run, Scratch
from openmodal.build import Options, names, origin
from openmodal.build.steps import configured
from openmodal.build.titles import title
from openmodal.errors import InvalidError

COPY = Copy("/here/a", "/srv/a", content="c" * 64)
RUN = Run(("/bin/sh", "-c", "true"), env=(("A", "b"),), caches=("/root/.cache/pip",))
SETTINGS = Config(env=(("X", "y"),), workdir="/srv", cmd=("a",))
BASED = Dockerfile(lines=("FROM a",), content="d" * 64, bases=(("a", Recipe((Registry("b"),))),))

NAMES = {
    (Debian(),): ("e1faf69cfa12effc7699", "cf237f2037b89f93f7fb"),
    (Debian("3.11"), RUN, SETTINGS): ("db485876f19d8e13b1c7", "709992eeb28669a7ec4c"),
    (Registry("docker.io/library/busybox:1"), COPY): ("47e090efb9e9bbf097b4", "baf314711fac2f71fc4d"),
    (Scratch(), COPY, RUN): ("7e12a30a408a255b604d", "26a7aaa4cb803be3b226"),
    (BASED,): ("d6862efcceb548a9416b", "daf995d776228d0bea53"),
}
"""As every version has named these images for amd64, and for arm64 with `base="registry"`."""


@pytest.mark.parametrize("steps", NAMES, ids=lambda steps: type(steps[0]).__name__)
def test_an_image_has_the_name_that_it_always_had(steps, store):
    for options, expected in zip((Options(cpu="amd64"), Options("registry", cpu="arm64")), NAMES[steps], strict=True):
        assert names.chain(Recipe(steps), store, options)[-1].startswith(expected)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Debian(), ("FROM debian with Python", "docker.io/library/python:3.13-slim", "3.13")),
        (Debian("3.11"), ("FROM debian with Python 3.11", "docker.io/library/python:3.11-slim", "3.11")),
        (Registry("busybox"), ("FROM busybox", "busybox", "")),
        (Scratch(), ("FROM scratch", "", "")),
    ],
)
def test_a_beginning_tells_what_it_is(step, said):
    found = origin.of(step)
    assert found == origin.first(Recipe((step, RUN))) == origin.Beginning(*said)
    assert title(step) == said[0]


def test_each_kind_of_beginning_is_known():
    """A new one that `of` does not know would be refused as if nothing were below."""
    kinds = {kind for kind in get_args(AnyStep) if origin.of(kind(*kind.__struct_fields__))}
    assert kinds == set(get_args(Origin))


@pytest.mark.parametrize("steps", [(), (RUN,), (COPY,), (SETTINGS,), (Dockerfile(lines=("RUN a",)),)])
def test_other_steps_begin_nothing(steps):
    with pytest.raises(InvalidError, match="an image begins with"):
        origin.first(Recipe(steps))


def test_a_dockerfile_says_itself_what_it_begins_with():
    assert origin.first(Recipe((Dockerfile(path="/a/Dockerfile"),))) is None


def test_an_image_of_a_registry_alone_is_used_as_it_is():
    assert origin.as_it_is(Recipe((Registry("busybox"),))) == "busybox"
    for steps in ((Registry("busybox"), RUN), (Debian(),), (Scratch(),), ()):
        assert origin.as_it_is(Recipe(steps)) == ""


def test_an_image_that_an_earlier_version_noted_is_found(store):
    store.folder("a" * 64).mkdir(parents=True)
    (store.path / "images").mkdir()
    noted = {
        "key": "k",
        "layers": ["a" * 64],
        "env": [["A", "b"]],
        "workdir": "/srv",
        "user": "7",
        "entrypoint": [],
        "cmd": ["c"],
    }
    (store.path / "images/name.json").write_text(json.dumps(noted | {"shell": [], "onbuild": []}))
    found = Layered("k", (("A", "b"),), "/srv", "7", cmd=("c",), layers=("a" * 64,))
    assert store.image("name") == found
    assert configured(found, SETTINGS).key.startswith("0a6b0c6c069d35617986")
