"""Images of a real registry, which asks for a password: Debian's docker-registry on loopback, of which the daemon pulls."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openmodal._dual import run_sync
from openmodal._spec import Root
from openmodal.engines.docker.daemon import Daemon, MissingError
from openmodal.engines.docker.engine import Docker
from openmodal.errors import RegistryError, UnsupportedError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.secret import Secret
from tests.build.test_push import guarded, login

__all__ = ["guarded"]

Prepare = Callable[[Image], Root]


@pytest.fixture
def prepare(engine: Docker, daemon: Daemon) -> Iterator[Prepare]:
    """Makes an image, whose name is gone afterwards: the registry's address is another in each run."""
    names: list[str] = []

    def make(image: Image) -> Root:
        root = run_sync(engine.prepare(image.recipe, lambda progress: None))
        names.append(f"openmodal:{root.key}")
        return root

    yield make
    with daemon.open() as api:
        for name in names:
            api.delete(f"/images/{name}")


@pytest.fixture
def published(daemon: Daemon, image: Image, engine: Docker, guarded: str) -> Iterator[str]:
    """The name of the suite's image in the registry; the daemon does not know it any more."""
    root = run_sync(engine.prepare(image.recipe, lambda progress: None))
    name, tag = f"{guarded}/team/app", "v1"
    auth = {"username": "ada", "password": "secret", "serveraddress": guarded}
    headers = {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()}
    with daemon.open() as api:
        api.post(f"/images/openmodal:{root.key}/tag", repo=name, tag=tag)
        assert not [said for said in api.send(f"/images/{name}/push", None, headers, tag=tag) if "error" in said]
        api.delete(f"/images/{name}:{tag}")
        yield f"{name}:{tag}"
        with contextlib.suppress(MissingError):
            api.delete(f"/images/{name}:{tag}")


def test_without_its_password_it_is_refused(published: str, prepare: Prepare) -> None:
    with pytest.raises(RegistryError, match="cannot be pulled by Docker"):
        prepare(Image.from_registry(published))


def test_an_image_is_pulled_with_dockers_credentials(
    published: str, guarded: str, prepare: Prepare, engine: Docker, tmp_path: Path
) -> None:
    login(tmp_path, guarded, "secret")
    image = Image.from_registry(published).env({"ADDED": "too"})
    root = prepare(image)
    assert {"FROM_IMAGE": "image", "ADDED": "too"}.items() <= dict(root.env).items()
    assert root.workdir == "/srv"
    with Sandbox.create(image=image, engine=engine, timeout=60, block_network=True) as sandbox:
        assert sandbox.exec("sh", "-c", "echo $FROM_IMAGE $ADDED; pwd").stdout.read() == "image too\n/srv\n"


def test_a_dockerfile_stands_on_images_of_it(
    published: str, guarded: str, prepare: Prepare, engine: Docker, tmp_path: Path
) -> None:
    login(tmp_path, guarded, "secret")
    (tmp_path / "Dockerfile").write_text(
        f"FROM {published} AS first\nRUN echo built > /srv/file\nFROM {published}\nCOPY --from=first /srv/file /srv/copy\n",
        encoding="ascii",
    )
    (tmp_path / "context").mkdir()
    image = Image.from_dockerfile(tmp_path / "Dockerfile", context_dir=tmp_path / "context")
    prepare(image)
    with Sandbox.create(image=image, engine=engine, timeout=60, block_network=True) as sandbox:
        assert sandbox.filesystem.read_text("/srv/copy") == "built\n"


def test_an_image_is_pulled_with_the_credentials_of_a_secret(published: str, prepare: Prepare) -> None:
    secret = Secret.from_dict({"REGISTRY_USERNAME": "ada", "REGISTRY_PASSWORD": "secret"})
    assert dict(prepare(Image.from_registry(published, secret=secret)).env)["FROM_IMAGE"] == "image"


def test_secrets_of_steps_are_refused_before_anything_is_made(engine: Docker) -> None:
    image = Image.from_registry("never-asked-for").run_commands("true", secrets=[Secret.from_dict({"A": "1"})])
    with pytest.raises(UnsupportedError, match="gives no secrets to steps"):
        image.build(engine=engine)
