"""The stages of a Dockerfile: what each begins with, and which ones the last one needs. Pure."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from openmodal.build.names import architecture
from openmodal.errors import InvalidError

SCRATCH = "scratch"


@dataclass
class Stage:
    """A stage of a Dockerfile.

    `base` is the image or stage that its FROM names, without variables, or "scratch"; "" for lines
    without FROM. `copies` are the names in its `COPY --from=`. `line` and `end` are the lines of
    its FROM, counted from 1, and `words` the words.
    """

    number: int
    name: str
    base: str
    line: int = 0
    end: int = 0
    words: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()


class Stages:
    """All stages, and the variables that are known before the first of them."""

    def __init__(self, ast: Any, given: Mapping[str, str]) -> None:
        from e2b_dockerfile_utils import ShellLex

        self.variables = {**_platform(), **{name: given[name] for name in _platform() if name in given}}
        self.all: list[Stage] = []
        self.lines = Stage(-1, "", "")
        self._lexer: Any = functools.partial(ShellLex, ast.escape_token, env=self.variables, skip_unset_env=False)
        for instruction in ast.instructions:
            if instruction.name == "FROM":
                self._begin(instruction)
            elif instruction.name == "ARG" and not self.all:
                self._argument(instruction.args, given)
            elif instruction.name in ("COPY", "ADD"):
                (self.all[-1] if self.all else self.lines).copies += tuple(_from_flags(instruction.flags))

    def _argument(self, words: list[str], given: Mapping[str, str]) -> None:
        for word in words:
            name, equals, value = word.partition("=")
            if name in given or equals:
                self.variables[name] = given[name] if name in given else self._expanded(value)

    def _begin(self, instruction: Any) -> None:
        words = [self._expanded(word) for word in instruction.args]
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].lower() != "as") or not words[0]:
            raise InvalidError(f"line {instruction.start_line}: FROM takes an image, and perhaps AS and a name")
        name = words[2].lower() if len(words) == 3 else ""
        place = (instruction.start_line, instruction.end_line)
        self.all.append(Stage(len(self.all), name, words[0], *place, (*instruction.flags, *words)))

    def _expanded(self, word: str) -> str:
        return str(self._lexer().process_word(word))

    def named(self, name: str, before: int) -> Stage | None:
        """The stage that a name or number means in stage number `before`."""
        found = [stage for stage in self.all[:before] if name.lower() == stage.name or name == str(stage.number)]
        return found[-1] if found else None

    def begun_with(self, stage: Stage) -> Stage | None:
        """The stage that another one begins with, for which a number is no name."""
        return None if stage.base.isdigit() else self.named(stage.base, stage.number)

    def needed(self) -> list[Stage]:
        """The stages that the last one needs. As in Docker, no others are built."""
        wanted = {len(self.all) - 1}
        for stage in reversed(self.all):
            if stage.number in wanted:
                others = (self.begun_with(stage), *(self.named(name, stage.number) for name in stage.copies))
                wanted |= {other.number for other in others if other}
                # Which stage a variable means is known when it is reached.
                wanted |= set(range(stage.number)) if any("$" in name for name in stage.copies) else set()
        return [stage for stage in self.all if stage.number in wanted]

    def images(self) -> Iterator[tuple[str, Stage]]:
        """The images that needed stages begin with or copy from, if known before a build."""
        for stage in (*self.needed(), self.lines):
            if stage.base not in ("", SCRATCH) and not self.begun_with(stage):
                yield stage.base, stage
            for name in stage.copies:
                if not self.named(name, stage.number) and not name.isdigit() and "$" not in name:
                    yield name, stage


def _from_flags(flags: list[str]) -> Iterator[str]:
    return (flag.removeprefix("--from=") for flag in flags if flag.startswith("--from="))


def _platform() -> dict[str, str]:
    platform = {"OS": "linux", "ARCH": architecture(), "VARIANT": ""}
    named = {f"{kind}{name}": value for kind in ("TARGET", "BUILD") for name, value in platform.items()}
    return {**named, "TARGETPLATFORM": f"linux/{architecture()}", "BUILDPLATFORM": f"linux/{architecture()}"}
