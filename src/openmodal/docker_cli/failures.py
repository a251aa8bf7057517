"""What a command fails with: one line on stderr and an exit code, which are docker's."""

from __future__ import annotations


class Failure(Exception):
    """A command is not done; the text says why."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


class UsageError(Failure):
    """The command line is wrong; nothing was done."""

    def __init__(self, text: str) -> None:
        super().__init__(text, 125)


def daemon_says(text: str, code: int = 1) -> Failure:
    """A failure in the words that tools look for."""
    return Failure(f"Error response from daemon: {text}", code)


def no_such_container(word: str) -> Failure:
    """Nothing has that id or name."""
    return daemon_says(f"No such container: {word}")


def no_such_image(word: str) -> Failure:
    """No image has that id or name here."""
    return daemon_says(f"No such image: {word}")
