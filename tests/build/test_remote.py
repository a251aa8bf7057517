"""Images built elsewhere: what is ordered, and what is found again, with Debian's docker-registry and a builder that only pushes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from openmodal._spec import Debian, Layered, Progress, Recipe, Referenced, Run
from openmodal.build import context, remote
from openmodal.build.layers import Layers
from openmodal.build.names import architecture
from openmodal.build.push import Pusher
from openmodal.build.reference import Reference, parse
from openmodal.build.told import Listener, News, Told
from openmodal.engines.kubernetes import images
from openmodal.errors import ImageBuildError, InvalidError, RegistryError, UnsupportedError
from openmodal.image import Image
from tests.build.test_registry import docker_registry


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield parse(f"{host}/openmodal")


class Elsewhere:
    """A builder that takes orders, and pushes an image of one file for each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = Layers(folder / "other")
        self.files: list[dict[str, bytes]] = []
        self.opened = self.open = 0
        self.fails = False

    @contextmanager
    def __call__(self) -> Iterator[Elsewhere]:
        self.opened += 1
        self.open += 1
        yield self
        self.open -= 1

    def make(self, order: remote.Order, told: Told) -> str:
        with tarfile.open(fileobj=io.BytesIO(b"".join(order.content()))) as tar:
            found = {item.name: file.read() for item in tar if (file := tar.extractfile(item))}
        self.files.append(found)
        told.hear(News("start", 2, "RUN"))
        if self.fails:
            raise told.failure("exit code: 3")
        told.hear(News("done", 2, "RUN"))
        return self._push(order.target)

    def _push(self, target: Reference) -> str:
        layer = f"layer-{len(self.files)}"
        root = self._store.folder(layer)
        root.mkdir(parents=True)
        (root / "number").write_text(str(len(self.files)))
        with closing(Pusher(target)) as registry:
            return registry.image(self._store, Layered(target.target.removeprefix("om-"), layers=(layer,), user="ada"))

    @property
    def dockerfiles(self) -> list[str]:
        return [files[context.DOCKERFILE].decode() for files in self.files]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Elsewhere:
    return Elsewhere(tmp_path)


def look(reference: Reference) -> Referenced:
    return images.seen(reference, architecture())


class Client:
    """A machine that has its images built elsewhere."""

    def __init__(self, elsewhere: Elsewhere, store: Layers, target: Reference) -> None:
        self.news: list[Progress] = []
        self._parts = elsewhere, store, target

    def prepare(self, recipe: Recipe) -> Referenced:
        elsewhere, store, target = self._parts
        return remote.prepare(elsewhere, store, recipe, target, self.news.append, look, architecture())


@pytest.fixture
def client(elsewhere: Elsewhere, store: Layers, target: Reference) -> Client:
    return Client(elsewhere, store, target)


def test_an_image_is_built_once_and_found_from_any_machine(
    client: Client, elsewhere: Elsewhere, tmp_path: Path, target: Reference
) -> None:
    (tmp_path / "file").write_text("content")
    recipe = Image.debian_slim("3.13").add_local_file(tmp_path / "file", "/srv/file").run_commands("make it").recipe
    made = client.prepare(recipe)
    assert "FROM docker.io/library/python:3.13-slim\n" in elsewhere.dockerfiles[0]
    assert b"content" in elsewhere.files[0].values()
    assert made.reference.startswith(f"{target.host}/openmodal@sha256:")
    assert made.user == "ada", "the image's configuration is the registry's"
    started = [news.text for news in client.news if news.event == "start"]
    assert started == ["COPY file /srv/file"], "the first instruction's title is the step as the user wrote it"
    other = Client(elsewhere, Layers(tmp_path / "another machine"), target)
    assert other.prepare(recipe) == made
    assert (elsewhere.opened, len(elsewhere.files)) == (1, 1)


def test_a_dockerfile_in_between_stands_on_what_was_built_before(
    client: Client, elsewhere: Elsewhere, target: Reference
) -> None:
    image = Image.debian_slim().run_commands("first").dockerfile_commands("RUN second").run_commands("third")
    client.prepare(image.recipe)
    bases, commands = zip(*(text.split("\n", 1) for text in elsewhere.dockerfiles), strict=True)
    assert ["first" in commands[0], "RUN second" in commands[1], "third" in commands[2]] == [True] * 3
    assert bases[0] == "FROM docker.io/library/python:3.13-slim"
    assert bases[1].startswith(f"FROM {target.host}/openmodal:om-")
    assert bases[2].startswith(f"FROM {target.host}/openmodal:om-") and bases[2] != bases[1]


def test_other_images_stand_for_those_of_a_dockerfile(client: Client, elsewhere: Elsewhere, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "ARG V=22\nFROM ubuntu:$V \\\n AS x\nCOPY --from=tools/t /a /b\nFROM x\nRUN make\n"
    )
    bases = {
        "ubuntu:22": Image.from_registry("mirror.example/u:1"),
        "tools/t:latest": Image.from_registry("mirror.example/t"),
    }
    client.prepare(Image.from_dockerfile(tmp_path / "Dockerfile", bases=bases).recipe)
    expected = "ARG V=22\nFROM mirror.example/u:1 as x\n\nCOPY --from=mirror.example/t /a /b\nFROM x\nRUN make\n"
    assert elsewhere.dockerfiles[0].lower() == expected.lower()
    built = Image.from_dockerfile(tmp_path / "Dockerfile", bases={"ubuntu:22": Image.debian_slim()})
    with pytest.raises(UnsupportedError, match="from_registry"):
        client.prepare(built.recipe)


def test_a_base_alone_is_an_image_of_the_registry(client: Client, elsewhere: Elsewhere) -> None:
    client.prepare(Recipe((Debian("3.12"),)))
    assert elsewhere.dockerfiles == ["FROM docker.io/library/python:3.12-slim\n"]


def test_an_image_for_another_cpu_has_another_name_and_is_seen_as_such(
    elsewhere: Elsewhere, store: Layers, target: Reference
) -> None:
    """A Mac has images built for nodes that have not its CPU."""
    other = {"amd64": "arm64", "arm64": "amd64"}[architecture()]
    asked: list[Reference] = []

    def see(reference: Reference) -> Referenced:
        asked.append(reference)
        return Referenced("k", reference=str(reference))

    for cpu in (architecture(), other):
        remote.prepare(elsewhere, store, Recipe((Debian("3.10"),)), target, lambda news: None, see, cpu)
    assert len({str(reference) for reference in asked}) == len(elsewhere.files) == 2
    with pytest.raises(RegistryError, match=f"not for linux/{other}"):
        images.seen(asked[0], other)


def test_a_step_that_fails_leaves_no_image_and_is_built_again(client: Client, elsewhere: Elsewhere) -> None:
    recipe = Recipe((Debian("3.11"), Run(argv=("sh", "-c", "make"))))
    elsewhere.fails = True
    with pytest.raises(ImageBuildError, match="RUN make, failed with exit code 3"):
        client.prepare(recipe)
    elsewhere.fails = False
    client.prepare(recipe)
    assert len(elsewhere.files) == 2


def test_a_file_that_changes_while_it_is_sent_makes_no_image(
    client: Client, elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    make = Elsewhere.make

    def slowly(self: Elsewhere, order: remote.Order, told: Told) -> str:
        digest = make(self, order, told)
        file.write_text("afterwards")
        return digest

    monkeypatch.setattr(Elsewhere, "make", slowly)
    with pytest.raises(ImageBuildError, match="changed while"):
        client.prepare(Image.debian_slim().add_local_file(file, "/file").recipe)


def test_an_image_begins_somewhere(client: Client) -> None:
    with pytest.raises(InvalidError, match="an image begins with"):
        client.prepare(Recipe((Run(argv=("true",)),)))


@pytest.mark.parametrize(
    ("user", "files", "possible"),
    [
        (0, {"kernel/unprivileged_userns_clone": "0\n"}, True),
        (1000, {}, True),
        (1000, {"kernel/unprivileged_userns_clone": "1\n"}, True),
        (1000, {"kernel/unprivileged_userns_clone": "0\n"}, False),
        (1000, {"kernel/apparmor_restrict_unprivileged_userns": "1\n"}, False),
        (1000, {"user/max_user_namespaces": "0\n"}, False),
    ],
)
def test_where_no_sandbox_can_be_no_image_is_built(
    user: int, files: dict[str, str], possible: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("os.geteuid", lambda: user)
    assert remote.possible_here(tmp_path) is possible


def test_buildkits_own_records_become_news() -> None:
    """As `buildctl --progress=rawjson` has them (client/graph.go)."""
    heard: list[News] = []
    listener = Listener(heard.append)
    vertex = {"digest": "sha256:a", "name": "[2/3] RUN make", "inputs": ["sha256:b"]}
    listener.solved({"vertexes": [vertex, {"digest": "sha256:c", "name": "[internal] load build definition"}]})
    listener.solved({"vertexes": [{**vertex, "started": "2026-11-01T10:00:00Z"}]})
    listener.solved({"logs": [{"vertex": "sha256:a", "stream": 1, "data": "aGVsbG8K", "timestamp": "…"}]})
    listener.solved({"statuses": [{"id": "extracting", "current": 3, "vertex": "sha256:a"}]})
    listener.solved({"vertexes": [{**vertex, "started": "x", "completed": "y", "error": "exit code: 1"}]})
    listener.solved(
        {"vertexes": [{"digest": "d", "name": "[3/3] RUN x", "started": "x", "completed": "y", "cached": True}]}
    )
    assert heard == [
        News("start", 2, "RUN make"),
        News("output", 2, "RUN make", "hello\n"),
        News("failed", 2, "RUN make", "exit code: 1"),
        News("start", 3, "RUN x"),
        News("cached", 3, "RUN x"),
    ]
