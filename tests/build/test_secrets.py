"""Secrets of steps, and credentials of registries: used, and nowhere afterwards."""

from __future__ import annotations

import pickle
from pathlib import Path

import msgspec
import pytest

from openmodal import Secret
from openmodal._spec import Layered
from openmodal.build import credentials, lookup
from openmodal.build.layers import Layers
from openmodal.build.output import Tail
from openmodal.build.push import push
from openmodal.build.reference import Reference
from openmodal.errors import ImageBuildError, InvalidError, RegistryError
from openmodal.image import Image
from tests.build.conftest import Built
from tests.build.test_push import guarded, image

__all__ = ["guarded", "image"]

VALUE = "correct-horse-battery"
SECRET = Secret.from_dict({"TOKEN": VALUE})


def holding(folder: Path, text: str) -> list[Path]:
    """The files below a folder that have a text, also in their names."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if text in path.name or text.encode() in path.read_bytes()]


@pytest.mark.root
@pytest.mark.parametrize("how", ["run", "lines", "file"])
def test_steps_see_secrets_and_nothing_keeps_them(
    made: Built, busybox: Image, store: Layers, tmp_path: Path, how: str
) -> None:
    used = '[ "$TOKEN" = "$EXPECTED" ] && echo "used $TOKEN" && echo right > /found'
    seen = busybox.env({"EXPECTED": VALUE})
    if how == "run":
        built = seen.run_commands(used, secrets=[SECRET])
    elif how == "lines":
        built = seen.dockerfile_commands(f"RUN {used}", secrets=[SECRET])
    else:
        (tmp_path / "file").mkdir()
        (tmp_path / "file/Dockerfile").write_text(f"FROM base\nRUN {used}\n")
        built = Image.from_dockerfile(tmp_path / "file/Dockerfile", bases={"base": seen}, secrets=[SECRET])
    tree = made(built)
    assert tree.text("/found") == "right\n"
    assert "TOKEN" not in dict(tree.root.env)
    assert "used ***" in "".join(news.text for news in made.news)
    # The negative control: what is in an image's configuration is found in this way.
    assert VALUE in msgspec.json.encode(tree.root).decode()
    assert holding(store.path, VALUE)
    assert not holding(store.path / "layers", VALUE)


@pytest.mark.root
def test_no_file_of_the_store_has_a_secret(made: Built, busybox: Image, store: Layers) -> None:
    made(busybox.run_commands("echo $TOKEN; : > /done", secrets=[SECRET]))
    with pytest.raises(ImageBuildError) as caught:
        made(busybox.run_commands("echo error: $TOKEN; exit 3", secrets=[SECRET]))
    assert "***" in str(caught.value)
    assert VALUE not in f"{caught.value}{caught.value.output}{made.news}{made.requests}"
    assert not holding(store.path, VALUE)


@pytest.mark.root
def test_another_value_is_the_same_step_and_another_name_is_not(made: Built, busybox: Image, store: Layers) -> None:
    step = ("echo x > /x",)
    made(busybox.run_commands(*step, secrets=[SECRET]))
    assert lookup(busybox.run_commands(*step, secrets=[Secret.from_dict({"TOKEN": "other"})]).recipe, store)
    assert lookup(pickle.loads(pickle.dumps(busybox.run_commands(*step, secrets=[SECRET]))).recipe, store)
    assert not lookup(busybox.run_commands(*step, secrets=[Secret.from_dict({"OTHER": VALUE})]).recipe, store)
    assert not lookup(busybox.run_commands(*step).recipe, store)


def test_a_recipe_with_secrets_is_not_written_by_the_way() -> None:
    recipe = Image.debian_slim().pip_install("x", secrets=[SECRET]).recipe
    with pytest.raises(TypeError):
        msgspec.json.encode(recipe)
    assert VALUE not in repr(recipe)


def test_a_secret_is_masked_however_it_is_cut() -> None:
    text = f"before {VALUE[:5]} {VALUE} behind\nlast {VALUE}"
    for size in (1, 2, 3, 7, 100):
        told: list[str] = []
        tail = Tail(told.append, [VALUE, VALUE[:9], "x"])
        for start in range(0, len(text), size):
            tail.write(text[start : start + size].encode())
        tail.close()
        assert "".join(told) == f"before {VALUE[:5]} *** behind\nlast ***"
        assert tail.last == "last ***"


@pytest.mark.root
def test_a_registry_is_told_the_credentials_of_a_secret(
    guarded: str, image: Layered, store: Layers, made: Built, tmp_path: Path
) -> None:
    login = {"REGISTRY_USERNAME": "ada", "REGISTRY_PASSWORD": "secret"}
    (tmp_path / "config.json").write_text(f'{{"auths": {{"{guarded}": {{"username": "ada", "password": "secret"}}}}}}')
    name = push(store, image, Reference(guarded, "x", "latest")).reference
    (tmp_path / "config.json").unlink()
    made.store = Layers(tmp_path / "other")
    for wrong in (None, Secret.from_dict(login | {"REGISTRY_PASSWORD": "wrong"})):
        with pytest.raises(RegistryError):
            made(Image.from_registry(name, secret=wrong))
    assert made(Image.from_registry(name, secret=Secret.from_dict(login))).root.env == image.env
    assert not holding(made.store.path, "REGISTRY_PASSWORD")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "REGISTRY_USERNAME and REGISTRY_PASSWORD"),
        ({"REGISTRY_USERNAME": "ada"}, "REGISTRY_USERNAME and REGISTRY_PASSWORD"),
        ({"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}, "aws ecr get-login-password"),
    ],
)
def test_a_secret_without_credentials_is_refused(variables: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        Image.from_registry("private", secret=Secret.from_dict(variables))


def test_a_key_of_google_s_is_a_password() -> None:
    login = credentials.of(credentials.checked({"SERVICE_ACCOUNT_JSON": "{}", "OTHER": "x"}))
    assert login
    assert (login.user, login.password) == ("_json_key", "{}")
