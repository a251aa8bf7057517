"""The program of an interpreter: it runs in a sandbox, in the Python there (3.8 or newer).

It reads requests, one line of JSON each, from its standard input, or, in a fork, from a connection.
What the code writes goes to where its own output goes, and after it the answer: a mark (see
`openmodal._talk`) with JSON in it. It is never imported by OpenModal; it is sent as text.
"""

from __future__ import annotations

import ast
import gc
import io
import json
import linecache
import os
import signal
import socket
import sys
import traceback
from typing import IO, Any

MOST = 1 << 16  # characters of a result, and of an error's text
ACCEPT_SECONDS = 60.0


def shortened(text: str) -> str:
    """A text that is not endless."""
    return text if len(text) <= MOST else text[: MOST // 2] + " … " + text[-MOST // 2 :]


def shown(value: object) -> str | None:
    """A value's repr, which may fail: it is the user's code."""
    return None if value is None else shortened(repr(value))


def described(error: BaseException) -> dict[str, str]:
    """An exception, with the part of its traceback that is the user's."""
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename == evaluate.__code__.co_filename:
        frames = frames.tb_next
    lines = traceback.format_exception(type(error), error, frames)
    return {"name": type(error).__name__, "value": shortened(str(error)), "traceback": shortened("".join(lines))}


def evaluate(code: str, number: int, space: dict[str, Any]) -> object:
    """Run code; the value of its last line, if that is an expression."""
    name = f"<run {number}>"
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    tree = ast.parse(code, name)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        exec(compile(tree, name, "exec"), space)
        return None
    del tree.body[-1]
    exec(compile(tree, name, "exec"), space)
    return eval(compile(ast.Expression(last.value), name, "eval"), space)


def open_streams() -> None:
    """Open the standard streams that code has closed, as `exit` closes stdin.

    Nothing written stays in them, so it comes in the order in which it was written.
    """
    if getattr(sys.stdin, "closed", False):
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    for name, fd in (("stdout", 1), ("stderr", 2)):
        if getattr(getattr(sys, name, None), "closed", False):
            raw = open(fd, "wb", buffering=0, closefd=False)  # noqa: SIM115
            setattr(sys, name, io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True))


class Interpreter:
    """The names that code made, and where requests come from and answers go."""

    def __init__(self, requests: IO[str], answers: IO[bytes]) -> None:
        self.requests, self.answers = requests, answers
        self.space: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
        self.number = 0
        self.frozen = False

    def serve(self) -> None:
        while line := self.requests.readline():  # a fork reads from elsewhere
            request = json.loads(line)
            self.answer(request["mark"], getattr(self, "on_" + request["do"])(request))

    def answer(self, mark: str, content: dict[str, Any]) -> None:
        self.flush()
        self.answers.write(f"\x1e{mark}:{json.dumps(content)}\x1e".encode())
        self.answers.flush()

    def flush(self) -> None:
        for name in ("stdout", "stderr"):
            try:
                getattr(sys, name).flush()
            except (AttributeError, OSError, ValueError):  # the code closed or replaced it
                pass

    def on_hello(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"pid": os.getpid()}

    def on_run(self, request: dict[str, Any]) -> dict[str, Any]:
        self.number += 1
        open_streams()
        answer: dict[str, Any] = {"result": None, "error": None}
        try:
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                answer["result"] = shown(evaluate(request["code"], self.number, self.space))
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
        except BaseException as error:  # noqa: BLE001  (all of it is the code's)
            answer["error"] = described(error)
        return answer

    def on_fork(self, request: dict[str, Any]) -> dict[str, Any]:
        """Fork so many times; each child is found at a port, and knows a token."""
        if not self.frozen:  # what is here stays shared: no collection touches it
            gc.collect()
            gc.freeze()
            self.frozen = True
        self.flush()
        listener = socket.create_server(("127.0.0.1", 0), backlog=request["count"])
        for _ in range(request["count"]):
            between = os.fork()
            if not between:
                if os.fork():  # the child is nobody's: who forked it does not wait for it
                    os._exit(0)
                self.move(listener, request["token"])
                return {"pid": os.getpid()}
            os.waitpid(between, 0)
        port = listener.getsockname()[1]
        listener.close()
        return {"port": port}

    def move(self, listener: socket.socket, token: str) -> None:
        """In a child: go on at the connection that knows the token."""
        listener.settimeout(ACCEPT_SECONDS)
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                os._exit(1)
            connection.settimeout(None)
            requests = connection.makefile("r", encoding="utf-8", newline="\n")
            if requests.readline() == token + "\n":
                break
        listener.close()
        # What it was forked from is seen to end when it ends: nothing of its streams is held here.
        self.requests.close()
        self.answers.close()
        for fd in (1, 2):
            os.dup2(connection.fileno(), fd)
        self.requests, self.answers = requests, connection.makefile("wb")
        connection.close()  # when both files are closed


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = open(os.dup(0), encoding="utf-8", newline="\n")  # noqa: SIM115
    answers = open(os.dup(1), "wb")  # noqa: SIM115
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    Interpreter(requests, answers).serve()


if __name__ == "__main__":
    main()
