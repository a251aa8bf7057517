"""Images that a real registry has, which asks for a password, by the stock client."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from openmodal._spec import Layered
from openmodal.build.layers import Layers
from openmodal.build.push import push
from openmodal.build.reference import Reference
from tests.build.test_push import guarded, image, login, store
from tests.build.test_secrets import holding
from tests.serve.conftest import environment, opened

__all__ = ["guarded", "image", "store"]

pytestmark = pytest.mark.embedded

PROGRAM = """
import sys, modal
app = modal.App.lookup("registry", create_if_missing=True)
secret = modal.Secret.from_dict({"REGISTRY_USERNAME": "ada", "REGISTRY_PASSWORD": sys.argv[2]})
image = modal.Image.from_registry(sys.argv[1], secret=secret)
image.build(app)
print("built")
"""


def test_a_registry_is_told_the_credentials_of_a_secret(
    guarded: str, image: Layered, store: Layers, tmp_path: Path
) -> None:
    login(tmp_path, guarded, "secret")
    name = push(store, image, Reference(guarded, "x", "latest")).reference
    (tmp_path / "config.json").unlink()
    with opened(tmp_path) as door:
        for password, words in (("wrong-password", "gives no access"), ("secret", "built")):
            program = [sys.executable, "-c", PROGRAM, name, password]
            variables = environment("1.6", door.variables)
            done = subprocess.run(program, env=variables, capture_output=True, text=True, check=False)
            assert words in done.stdout + done.stderr
    # The log of the door is there.
    assert "build failed" in (tmp_path / "log").read_text()
    assert tmp_path / "log" not in holding(tmp_path, "wrong-password")
