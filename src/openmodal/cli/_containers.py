"""Containers by Docker's own API, without OpenModal: what `openmodal bench --docker` puts beside.

No client program is in between, so this is as fast as Docker can be asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from openmodal.errors import EngineError

if TYPE_CHECKING:
    from openmodal import Image
    from openmodal.engines.docker.daemon import Api


class Container:
    """A container with the words of a sandbox, as far as they are measured."""

    def __init__(self, api: Api, image: str) -> None:
        self._api = api
        made = api.post("/containers/create", {"Image": image, "Entrypoint": [], "Cmd": ["sleep", "600"]})
        self._id = str(made["Id"])
        try:
            api.post(f"/containers/{self._id}/start")
        except BaseException:
            self.terminate()
            raise

    def exec(self, *argv: str) -> None:
        """Run a command to its end."""
        made = self._api.post(f"/containers/{self._id}/exec", {"Cmd": argv, "AttachStdout": True})
        self._api.post(f"/exec/{made['Id']}/start", {"Detach": False})
        if code := self._api.get(f"/exec/{made['Id']}/json")["ExitCode"]:
            raise EngineError(
                f"Docker's {' '.join(argv)!r} ended with {code}; choose an image that has it with --image"
            )

    def terminate(self) -> None:
        """Remove it; nothing, if that is done."""
        from openmodal.engines.docker.daemon import MissingError

        with contextlib.suppress(MissingError):
            self._api.delete(f"/containers/{self._id}", force=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()


@contextmanager
def containers(image: Image) -> Iterator[tuple[Api, str]]:
    """The daemon's API, and the image as the daemon has it: made by our engine, if need be."""
    from openmodal._dual import run_sync
    from openmodal._spec import Referenced
    from openmodal.engines import load
    from openmodal.engines.docker import daemon
    from openmodal.image import ready

    root = run_sync(ready(image, load("docker")))
    assert isinstance(root, Referenced), "the images of that engine are the daemon's"
    with daemon.find().open() as api:
        yield api, root.reference


__all__ = ["Container", "containers"]
