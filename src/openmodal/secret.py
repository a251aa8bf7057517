"""Secret: environment variables that are shown nowhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from openmodal import _args
from openmodal.errors import InvalidError


class Secret:
    """Variables that commands see and nothing else does: not in `repr`, not in state files, not in an image."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = dict(_args.variables("a secret", variables))

    @classmethod
    def from_dict(cls, variables: Mapping[str, str]) -> Secret:
        """A secret of these variables."""
        return cls(variables)

    @classmethod
    def from_local_environ(cls, names: Iterable[str]) -> Secret:
        """A secret of the variables `names` of this process.

        Raises:
            InvalidError: one of them is not set.
        """
        missing = [name for name in names if name not in os.environ]
        if missing:
            raise InvalidError(f"the variable {missing[0]} is not set here; export it, or use Secret.from_dict")
        return cls({name: os.environ[name] for name in names})

    @classmethod
    def from_dotenv(cls, path: str | os.PathLike[str] = ".env") -> Secret:
        """A secret of the lines `NAME=value` of a file; `#` starts a comment line, quotes around a
        value are removed.

        Raises:
            InvalidError: there is no such file, or a line is not of that form.
        """
        try:
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except OSError as error:
            raise InvalidError(
                f"the secret's file {os.fspath(path)!r} cannot be read: {error.strerror}; check the path"
            ) from None
        return cls(dict(_line(path, n, line) for n, line in enumerate(lines, 1) if line.strip()[:1] not in ("", "#")))

    @property
    def variables(self) -> dict[str, str]:
        """A copy of the variables, for engines."""
        return dict(self._variables)

    def __repr__(self) -> str:
        return f"<Secret of {len(self._variables)} variables>"


def merged(secrets: Iterable[Secret]) -> dict[str, str]:
    """The variables of `secrets=`, of which a later one beats the others."""
    found: dict[str, str] = {}
    if isinstance(secrets, Secret):
        raise InvalidError("secrets must be a list of openmodal.Secret; put the secret into [ ]")
    for secret in secrets:
        if not isinstance(secret, Secret):
            raise InvalidError(f"secrets must hold openmodal.Secret, not {type(secret).__name__}; use Secret.from_dict")
        found.update(secret.variables)
    return found


def _line(path: str | os.PathLike[str], number: int, line: str) -> tuple[str, str]:
    name, equals, value = line.strip().removeprefix("export ").partition("=")
    if not equals or len(name.split()) != 1:  # also `export A B=c`, which means something else to a shell
        raise InvalidError(f"line {number} of {os.fspath(path)!r} is not of the form NAME=value; mend it")
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    return name.strip(), value
