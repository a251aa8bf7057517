"""Flags as docker's commands take them: `-itd`, `-eA=1`, `--rm=false`, `--name x`, `--name=x`.

Not click: its import takes a third of the time that a command may take.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from openmodal.docker_cli.failures import UsageError

_TRUE = {"1", "t", "T", "TRUE", "true", "True"}
_FALSE = {"0", "f", "F", "FALSE", "false", "False"}


class Given:
    """What a command was given: its flags, and the words that are none."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.values: dict[str, list[str]] = {}

    def on(self, name: str) -> bool:
        """Whether a switch is on."""
        return self.text(name) == "true"

    def text(self, name: str, default: str = "") -> str:
        """A flag's value; of several the last."""
        return self.values.get(name, [default])[-1]

    def all(self, name: str) -> list[str]:
        """All values of a flag that may be repeated."""
        return self.values.get(name, [])

    def number(self, name: str) -> float | None:
        """A flag's value as a number."""
        if name not in self.values:
            return None
        try:
            return float(self.text(name))
        except ValueError:
            raise UsageError(f"invalid argument {self.text(name)!r} for --{name}: write a number") from None

    def at_least(self, count: int, command: str) -> list[str]:
        """The words, which have to be so many."""
        if len(self.words) < count:
            s = "" if count == 1 else "s"
            raise UsageError(f'"docker {command}" requires at least {count} argument{s}')
        return self.words


class Flags:
    """The flags of one command. Each is a word of `switches` or `texts`: its long name, or both
    names with a comma between them."""

    def __init__(self, command: str, *, switches: str = "", texts: str = "") -> None:
        self.command = command
        self._long: dict[str, bool] = {}
        self._short: dict[str, str] = {}
        for words, takes in ((switches, False), (texts, True)):
            for word in words.split():
                name, _, letter = word.partition(",")
                self._long[name] = takes
                if letter:
                    self._short[letter] = name

    def parse(self, arguments: Sequence[str], *, command_follows: bool = False) -> Given:
        """Read a command line. `command_follows`: what comes behind the first word is no flag of
        ours.

        Raises:
            UsageError: a flag is unknown, or lacks its value.
        """
        given, rest = Given(), list(arguments)
        while rest:
            word = rest.pop(0)
            if word == "--":
                given.words += rest
                break
            if word.startswith("--"):
                name, equals, value = word[2:].partition("=")
                self._take(given, name, f"--{name}", [value] if equals else None, rest)
            elif word.startswith("-") and word != "-":
                self._letters(given, word[1:], rest)
            elif command_follows:
                given.words += [word, *rest]
                break
            else:
                given.words.append(word)
        return given

    def _letters(self, given: Given, letters: str, rest: list[str]) -> None:
        """`-it`, `-w/srv`, `-w=/srv`, `-w /srv`."""
        while letters:
            letter, letters = letters[0], letters[1:]
            name = self._short.get(letter, "")
            if not name:
                raise self._unknown(f"shorthand flag: {letter!r} in -{letter}{letters}")
            if self._long[name]:
                self._take(given, name, f"-{letter}", [letters.removeprefix("=")] if letters else None, rest)
                return
            self._take(given, name, f"-{letter}", None, rest)

    def _take(self, given: Given, name: str, shown: str, value: Iterable[str] | None, rest: list[str]) -> None:
        if name == "help":
            raise UsageError(
                f"`docker {self.command} --help` of Docker tells what the flags mean; see docs/integrations/docker.md"
            )
        if name not in self._long:
            raise self._unknown(f"flag: {shown}")
        if self._long[name]:
            if value is None and not rest:
                raise UsageError(f"flag needs an argument: {shown}")
            given.values.setdefault(name, []).extend([rest.pop(0)] if value is None else value)
            return
        (said,) = value or ["true"]
        if said not in _TRUE | _FALSE:
            raise UsageError(f"invalid argument {said!r} for {shown}: write true or false")
        given.values[name] = ["true" if said in _TRUE else "false"]

    def _unknown(self, what: str) -> UsageError:
        return UsageError(f"unknown {what}; docs/integrations/docker.md has the flags of `docker {self.command}`")
