"""The little that doors keep, in a folder of theirs: a file for each thing, replaced by renaming.

    recipes/<image id>       an image as a recipe
    dockerfiles/<digest>     what recipes name
    files/<sha256>           what clients uploaded; <sha256>.x if it is executable
    trees/<mount id>/        those files under their names, for COPY
    secrets/<secret id>      variables (0600)
    names/<kind>/<name>      the id of what has that name
    key                      what proofs are signed with

Doors of one folder need nothing more of each other. What is not used for a week is collected, but
for what has a name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from openmodal._files import key, made, place
from openmodal._hidden import Hidden, names_of
from openmodal._spec import Recipe
from openmodal.errors import AlreadyExistsError, InvalidError, NotFoundError
from openmodal.serve import ids

_TREE = re.compile(r"\bmo-[a-z2-7]+")
_DOCKERFILE = re.compile(r"/dockerfiles/([a-z2-7]+)")
_SNAPSHOT = '"kind":"snapshot"'
_WEEK = 7 * 24 * 3600.0
_MONTH = 30 * 24 * 3600.0
_EXECUTABLE = 0o111
_READABLE_BY_ALL = 0o644
"""COPY keeps modes, and an image may have another user. The folders above keep others out."""


FORCED = "forced"
"""Names of images are the ids of those that `force_build` built in their stead."""


class SecretValues(msgspec.Struct, frozen=True):
    """A secret's variables, and its name; "" for none."""

    name: str
    variables: dict[str, str]
    created: float


class KeptSecrets(Hidden):
    """Variables of secrets that are kept, for a step of an image; they are read when it runs."""

    def __init__(self, kept: Kept, names: Iterable[str], secret_ids: Iterable[str]) -> None:
        super().__init__(dict.fromkeys(names, ""))
        self._kept = kept
        self.ids = tuple(secret_ids)

    @property
    def variables(self) -> Mapping[str, str]:
        found = self._kept.variables(self.ids)
        if missing := [name for name in self.names if name not in found]:
            raise NotFoundError(f"a secret that a step of the image needs has no {missing[0]} any more; add it")
        return {name: found[name] for name in self.names}

    @property
    def _compared(self) -> object:
        return self.names, self.ids


class Kept:
    """A door's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("recipes", "dockerfiles", "files", "trees", "secrets", "names"):
            made(folder / name)

    def key(self) -> bytes:
        """The key of the doors of this folder, made once."""
        return key(self.folder / "key")

    # -------------------------------------------------------------------------------------- recipes

    def keep_recipe(self, recipe: Recipe) -> str:
        """Keep a recipe and return the id of its image, which is its digest. Of the secrets of its
        steps the names count, and the ids are kept."""
        id = f"im-{ids.letters(msgspec.json.encode(recipe, enc_hook=names_of))}"
        place(self.folder / "recipes" / id, msgspec.json.encode(recipe, enc_hook=_ids_of))
        return id

    def recipe(self, image_id: str) -> Recipe:
        """The recipe of an image.

        Raises:
            NotFoundError: there is none.
        """
        path = self._thing("recipes", image_id, "im-", "image")
        return msgspec.json.decode(path.read_bytes(), type=Recipe, dec_hook=self._secrets)

    def _secrets(self, kind: type, written: dict[str, list[str]]) -> Hidden:
        return KeptSecrets(self, written["names"], written["ids"])

    def use(self, image_id: str, tree_ids: Iterable[str]) -> None:
        """An image and trees are used, and stay for another week."""
        for path in (self.folder / "recipes" / image_id, *(self.folder / "trees" / id for id in tree_ids)):
            with suppress(FileNotFoundError):
                os.utime(path)

    def keep_dockerfile(self, text: str) -> Path:
        """Keep a Dockerfile, which a recipe names, and return where."""
        path = self.folder / "dockerfiles" / ids.letters(text)
        place(path, text.encode())
        return path

    # ---------------------------------------------------------------------------------------- files

    def has_file(self, digest: str) -> bool:
        """Whether a file of that SHA-256 is here; it is then used, and stays for another week."""
        path = self._file(digest)
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def new_file(self) -> Iterator[IO[bytes]]:
        """A file to write to, for `keep_file`. It goes with the block unless it was kept."""
        with tempfile.NamedTemporaryFile(dir=self.folder / "files", prefix=".", delete=False) as file:
            try:
                yield file
            finally:
                Path(file.name).unlink(missing_ok=True)

    def keep_file(self, file: IO[bytes], digest: str) -> None:
        """Keep what was written under its SHA-256.

        Raises:
            InvalidError: it has another.
        """
        file.flush()
        file.seek(0)
        found = hashlib.file_digest(cast("Any", file), "sha256").hexdigest()
        if found != digest:
            raise InvalidError(f"the file that was sent has the SHA-256 {found} and not {digest}; send it again")
        os.fchmod(file.fileno(), _READABLE_BY_ALL)
        if not self.has_file(digest):
            with suppress(FileExistsError):  # another brought it meanwhile
                os.link(file.name, self._file(digest))

    def keep_bytes(self, data: bytes, digest: str) -> None:
        """Keep these bytes, as `keep_file`."""
        with self.new_file() as file:
            file.write(data)
            self.keep_file(file, digest)

    def file(self, digest: str) -> Path:
        """A file that was sent.

        Raises:
            NotFoundError: it was not.
        """
        if not self.has_file(digest):
            raise NotFoundError(f"the file {digest} was not sent; send it first")
        return self._file(digest)

    def keep_tree(self, files: Mapping[str, tuple[str, int]]) -> str:
        """Keep files under their names, and return the id of that tree.

        Args:
            files: path → SHA-256 and mode; all of them are here.

        Raises:
            NotFoundError: one is not.
            InvalidError: a path leads out of the tree.
        """
        id = f"mo-{ids.letters(msgspec.json.encode(sorted((path, *what) for path, what in files.items())))}"
        tree = self.folder / "trees" / id
        if not tree.exists():
            unnamed = Path(tempfile.mkdtemp(dir=self.folder / "trees", prefix="."))
            try:
                for path, (digest, mode) in files.items():
                    self._plant(unnamed, path, digest, mode)
                for folder, _, _ in os.walk(unnamed):
                    os.chmod(folder, _READABLE_BY_ALL | _EXECUTABLE)
                unnamed.rename(tree)
            except OSError:
                if not tree.exists():  # else another made it meanwhile
                    raise
            finally:
                shutil.rmtree(unnamed, ignore_errors=True)
        os.utime(tree)
        return id

    def tree(self, id: str) -> Path:
        """The folder of a tree."""
        return self._thing("trees", id, "mo-", "mount")

    def _plant(self, root: Path, path: str, digest: str, mode: int) -> None:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts or not parts:
            raise InvalidError(f"the file name {path!r} leads out of its mount")
        source, target = self._file(digest), root.joinpath(*parts)
        if not source.exists():
            raise NotFoundError(f"the file {path!r} was not sent; send it first")
        if mode & _EXECUTABLE:
            executable = source.with_name(f"{digest}.x")
            if not executable.exists():
                copy = executable.with_name(f".{os.urandom(8).hex()}")
                shutil.copyfile(source, copy)
                copy.chmod(_READABLE_BY_ALL | _EXECUTABLE)
                copy.rename(executable)
            source = executable
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except FileExistsError:  # under another spelling, such as a//b
            pass
        except OSError as error:
            # ext4 gives a file 65,000 names, and empty ones are in each tree.
            if error.errno != errno.EMLINK:
                raise
            shutil.copy(source, target)

    def _file(self, digest: str) -> Path:
        if len(digest) != 64 or not all(c in "0123456789abcdef" for c in digest):
            raise InvalidError(f"{digest!r} is no SHA-256")
        return self.folder / "files" / digest

    # -------------------------------------------------------------------------------------- secrets

    def keep_secret(self, variables: Mapping[str, str], name: str = "", id: str = "") -> str:
        """Keep a secret, and return its id: a new one unless it has one."""
        id = id or f"st-{ids.letters('secret', name or os.urandom(16))}"
        secret = SecretValues(name, dict(variables), time.time())
        place(self.folder / "secrets" / id, msgspec.json.encode(secret))
        return id

    def secret(self, id: str) -> SecretValues:
        """A secret.

        Raises:
            NotFoundError: there is none.
        """
        path = self._thing("secrets", id, "st-", "secret")
        os.utime(path)
        return msgspec.json.decode(path.read_bytes(), type=SecretValues)

    def variables(self, secret_ids: Iterable[str]) -> dict[str, str]:
        """The variables of secrets, of which a later one beats the others."""
        found: dict[str, str] = {}
        for id in secret_ids:
            found |= self.secret(id).variables
        return found

    def forget_secret(self, id: str) -> None:
        """Remove a secret."""
        self._thing("secrets", id, "st-", "secret").unlink(missing_ok=True)

    # ---------------------------------------------------------------------------------------- names

    def name(self, kind: str, name: str, id: str, *, replace: bool = True) -> None:
        """Give something a name.

        Raises:
            AlreadyExistsError: the name is taken, and is not to be replaced.
        """
        path = made(self.folder / "names" / kind) / _quoted(name)
        try:
            place(path, id.encode(), replace=replace)
        except FileExistsError:
            raise AlreadyExistsError(f"{kind.capitalize()} {name!r} already exists") from None

    def named(self, kind: str, name: str) -> str | None:
        """The id of what has that name; None if nothing has."""
        try:
            return (self.folder / "names" / kind / _quoted(name)).read_text("utf-8")
        except FileNotFoundError:
            return None

    def names(self, kind: str) -> dict[str, str]:
        """Every name, and the id of what has it."""
        found = {name: self.named(kind, name) for name in sorted(self.moments(kind))}
        # None: it was taken away meanwhile.
        return {name: id for name, id in found.items() if id is not None}

    def moments(self, kind: str) -> dict[str, float]:
        """Every name, and when it was given last."""
        folder, found = self.folder / "names" / kind, dict[str, float]()
        for path in folder.iterdir() if folder.exists() else ():
            with suppress(FileNotFoundError):  # another door takes it away
                if not path.name.startswith("."):
                    found[_unquoted(path.name)] = path.stat().st_mtime
        return found

    def forget_name(self, kind: str, name: str) -> None:
        """Take a name away."""
        (self.folder / "names" / kind / _quoted(name)).unlink(missing_ok=True)

    # --------------------------------------------------------------------------------------- inside

    def collect(self) -> None:
        """Remove what nobody used for a week and nobody named, and names of apps after a month."""
        now = time.time()
        named = {*self.names("image").values(), *self.names(FORCED).values()}
        recipes = {path.name: path.read_text("utf-8") for path in self._old("recipes", now - _WEEK)}
        # Of a snapshot, the recipe is the only way to it: the engine says how long it is there.
        self._remove("recipes", {id for id, text in recipes.items() if id not in named and _SNAPSHOT not in text})
        needed = {*self.names("secret").values(), *self._named_by_recipes()}
        for folder in ("files", "trees", "secrets", "dockerfiles"):
            self._remove(folder, {path.name for path in self._old(folder, now - _WEEK)} - needed)
        for name, moment in self.moments("app").items():
            if moment <= now - _MONTH:
                self.forget_name("app", name)
        for plain, forced in self.names(FORCED).items():
            if not all((self.folder / "recipes" / id).exists() for id in (plain, forced)):
                self.forget_name(FORCED, plain)

    def _old(self, folder: str, oldest: float) -> Iterator[Path]:
        for path in (self.folder / folder).iterdir():
            with suppress(FileNotFoundError):  # another door collects, too
                if path.lstat().st_mtime <= oldest:
                    yield path

    def _remove(self, folder: str, names: Iterable[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                _remove(self.folder / folder / name)

    def _named_by_recipes(self) -> Iterator[str]:
        """The trees and Dockerfiles that recipes name."""
        for path in (self.folder / "recipes").iterdir():
            with suppress(FileNotFoundError):  # one that is just being placed
                text = path.read_text("utf-8")
                yield from _TREE.findall(text)
                yield from _DOCKERFILE.findall(text)

    def _thing(self, folder: str, id: str, prefix: str, what: str) -> Path:
        path = self.folder / folder / id
        if not id.startswith(prefix) or "/" in id or not path.exists():
            raise NotFoundError(f"there is no {what} {id!r}")
        return path


def _ids_of(value: object) -> dict[str, tuple[str, ...]]:
    return {"names": names_of(value), "ids": value.ids if isinstance(value, KeptSecrets) else ()}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _quoted(name: str) -> str:
    return name.encode().hex()


def _unquoted(name: str) -> str:
    return bytes.fromhex(name).decode()
