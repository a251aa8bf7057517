"""What a door keeps, and what it does not keep for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from openmodal._spec import Copy, Dockerfile, Recipe, Snapshot
from openmodal.errors import NotFoundError
from openmodal.serve.kept import FORCED, Kept, KeptSecrets


def aged(folder: Path, days: float) -> None:
    moment = time.time() - days * 24 * 3600
    for path in folder.rglob("*"):
        os.utime(path, (moment, moment))


def test_what_nobody_uses_is_collected(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    tree = kept.keep_tree({})
    unused, named = (kept.keep_dockerfile(f"FROM {name}") for name in ("unused", "named"))
    old = kept.keep_recipe(Recipe((Dockerfile(str(unused)),)))
    forced = kept.keep_recipe(Recipe((Dockerfile(str(unused), again="x"),)))
    kept.name(FORCED, old, forced)
    published = kept.keep_recipe(Recipe((Dockerfile(str(named)), Copy(str(kept.tree(tree)), "/"))))
    kept.name("image", "name", published)
    snapshot = kept.keep_recipe(Recipe((Snapshot("key"),)))
    kept.name("app", "app", "ap-x")
    aged(tmp_path, 6)
    kept.collect()
    assert kept.recipe(old).steps
    aged(tmp_path, 8)
    used = kept.keep_recipe(Recipe((Dockerfile(str(unused)),)))
    kept.collect()
    assert used == old
    assert unused.exists()
    aged(tmp_path, 31)
    kept.forget_name(FORCED, old)
    kept.collect()
    for id in (old, forced):
        with pytest.raises(NotFoundError):
            kept.recipe(id)
    assert not unused.exists()
    assert kept.recipe(published).steps
    assert kept.recipe(snapshot).steps
    assert named.exists()
    assert kept.tree(tree).exists()
    assert not kept.names("app")


def test_a_recipe_has_the_ids_of_secrets_and_never_their_values(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    secret = kept.keep_secret({"TOKEN": "correct-horse"})
    recipe = Recipe((Dockerfile("", ("RUN true",), secrets=KeptSecrets(kept, ["TOKEN"], [secret])),))
    id = kept.keep_recipe(recipe)
    assert kept.recipe(id) == recipe
    step = kept.recipe(id).steps[0]
    assert isinstance(step, Dockerfile)
    assert step.secrets.variables == {"TOKEN": "correct-horse"}
    assert "correct-horse" not in (tmp_path / "recipes" / id).read_text()
    other = kept.keep_secret({"TOKEN": "another"})
    again = Recipe((Dockerfile("", ("RUN true",), secrets=KeptSecrets(kept, ["TOKEN"], [other])),))
    assert kept.keep_recipe(again) == id
    kept.forget_secret(other)
    step = kept.recipe(id).steps[0]
    assert isinstance(step, Dockerfile)
    with pytest.raises(NotFoundError):
        _ = step.secrets.variables
