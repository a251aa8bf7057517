"""The Docker daemon: where it is, and how it is asked over its HTTP API. Knows nothing of
sandboxes, and needs no `docker` command.

Found as Docker's own command line finds it: DOCKER_HOST (with DOCKER_TLS_VERIFY and
DOCKER_CERT_PATH), DOCKER_CONTEXT, the current context of Docker's configuration, the usual socket.
What the API refuses is an `ApiError` here; engine and builder make sense of it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from openmodal.errors import EngineError, UnsupportedError, reason

if TYPE_CHECKING:
    import httpx2

DEFAULT = "unix:///var/run/docker.sock"
_API = "/v1.40"  # of Docker 19.03: every daemon since speaks it, and Podman
_PATIENCE = 300.0  # seconds for one answer: a busy machine takes its time to start a container
_REMEDY = "start Docker, set DOCKER_HOST, or use --engine embedded"


class ApiError(EngineError):
    """The daemon refused. `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the Docker daemon refused: {message}")
        self.status = status
        self.message = message


class MissingError(ApiError):
    """There is no such container, image or network."""


class ConflictError(ApiError):
    """The name is taken, or the container is not in the state for it."""


class Daemon(msgspec.Struct, frozen=True):
    """A daemon's address: "unix:///path" or "tcp://host:port". `certificates` has ca.pem, cert.pem and key.pem for TLS."""

    host: str
    certificates: str = ""
    verify: bool = True

    @property
    def path(self) -> str:
        """The path of its unix socket, or ""."""
        return self.host.removeprefix("unix://") if self.host.startswith("unix://") else ""

    @contextmanager
    def open(self, patience: float | None = None) -> Iterator[Api]:
        """Ask it things during the block. `patience`: seconds for one answer; if that is over,
        TimeoutError is raised."""
        import httpx2

        try:
            with self._client() as client:
                client.timeout = _PATIENCE if patience is None else patience
                yield Api(client, self)
        except EngineError as error:
            if patience is None or not isinstance(error.__cause__, httpx2.TimeoutException):
                raise
            raise TimeoutError(f"the Docker daemon has not answered within {patience:g} s") from error

    def take(self, path: str, body: object = None, *, speaks: bool) -> Taken:
        """Ask for a path whose connection then belongs to the caller, as a stream of bytes.

        `speaks`: the other side begins; what it says first may have come with the answer, so it is
        waited for here.

        Raises:
            ApiError: it is refused.
        """
        stack = ExitStack()
        try:
            client = stack.enter_context(self._client())
            with self._failures():
                headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
                response = stack.enter_context(client.stream("POST", _API + path, json=body, headers=headers))
                _check(response)
                stream = response.extensions["network_stream"]
                first = stream.read(1 << 16, _PATIENCE) if speaks else b""
            sock: socket.socket = stream.get_extra_info("socket")
            sock.setblocking(False)
            return Taken(sock, first, stack)
        except BaseException:
            stack.close()
            raise

    def answers(self) -> bool:
        """Whether somebody listens at its address; tries once, for a moment."""
        try:
            self._knock()
        except OSError:
            return False
        return True

    def _knock(self) -> None:
        if self.path:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(1.0)
                sock.connect(self.path)
            return
        host, _, port = self.host.removeprefix("tcp://").partition(":")
        socket.create_connection((host, int(port or 2375)), 1.0).close()

    def _client(self) -> httpx2.Client:
        import httpx2

        if self.path:
            self._check_socket()
            transport = httpx2.HTTPTransport(uds=self.path, verify=False)  # no certificates are read for a unix socket
            return httpx2.Client(transport=transport, base_url="http://docker", timeout=_PATIENCE, trust_env=False)
        address = self.host.removeprefix("tcp://")
        if not self.certificates:
            return httpx2.Client(base_url=f"http://{address}", timeout=_PATIENCE, trust_env=False)
        return httpx2.Client(base_url=f"https://{address}", timeout=_PATIENCE, trust_env=False, verify=self._tls())

    def _check_socket(self) -> None:
        """Fail here, in our words: the library leaves a socket behind that it cannot connect."""
        try:
            self._knock()
        except OSError as error:
            raise self._silent(error.strerror or str(error)) from error

    def _silent(self, reason: str) -> EngineError:
        remedy = "add yourself to the group docker" if "ermission denied" in reason else _REMEDY
        return EngineError(f"the Docker daemon at {self.host} does not answer ({reason}); {remedy}")

    def _tls(self) -> Any:
        import ssl

        folder = Path(self.certificates)
        try:
            context = ssl.create_default_context(cafile=folder / "ca.pem" if self.verify else None)
            if (folder / "cert.pem").exists():
                context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        except OSError as error:
            raise EngineError(
                f"the certificates for the Docker daemon in {folder} cannot be read ({reason(error)}); set DOCKER_CERT_PATH to "
                "the folder with ca.pem, cert.pem and key.pem"
            ) from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Connections that fail, as one sentence with the remedy."""
        import httpx2

        try:
            yield
        except httpx2.TransportError as error:
            raise self._silent(str(error)) from error


class Taken:
    """A connection that was taken from HTTP, and what came first; closing it closes all that it stands on."""

    def __init__(self, sock: socket.socket, first: bytes, stack: ExitStack) -> None:
        self.socket = sock
        self.first = first
        self._stack = stack

    def close(self) -> None:
        self._stack.close()


class Api:
    """The daemon's API. Every call may raise ApiError, or EngineError when nothing answers."""

    def __init__(self, client: httpx2.Client, daemon: Daemon) -> None:
        self._client = client
        self._daemon = daemon

    def get(self, path: str, **query: object) -> Any:
        """What is at a path."""
        return self._call("GET", path, None, query).json()

    def read(self, path: str, **query: object) -> bytes:
        """The bytes at a path."""
        return self._call("GET", path, None, query).content

    def post(self, path: str, body: object = None, **query: object) -> Any:
        """Make or do something; what it answers, None if nothing."""
        answer = self._call("POST", path, body, query)
        return _told(answer)

    def delete(self, path: str, **query: object) -> Any:
        """Remove something; what it answers, None if nothing."""
        answer = self._call("DELETE", path, None, query)
        return _told(answer)

    def send(
        self, path: str, content: Iterable[bytes] | None, headers: dict[str, str] | None = None, **query: object
    ) -> Iterator[dict[str, Any]]:
        """Send bytes; the answer is told piece by piece as it comes, one JSON object per line."""
        with (
            self._daemon._failures(),
            self._client.stream("POST", _API + path, content=content, params=_text(query), headers=headers) as answer,
        ):
            _check(answer)
            for line in answer.iter_lines():
                if line.strip():
                    yield json.loads(line)

    def _call(self, method: str, path: str, body: object, query: dict[str, object]) -> httpx2.Response:
        with self._daemon._failures():
            answer = self._client.request(method, _API + path, json=body, params=_text(query))
        _check(answer)
        return answer


def find() -> Daemon:
    """The daemon that this process means.

    Raises:
        UnsupportedError: the address is of a kind that is not supported.
        EngineError: the configuration names a context that is not there.
    """
    if host := os.environ.get("DOCKER_HOST"):
        tls = bool(os.environ.get("DOCKER_TLS_VERIFY") or os.environ.get("DOCKER_TLS"))
        certificates = os.environ.get("DOCKER_CERT_PATH") or str(_folder())
        return _checked(Daemon(host, certificates if tls else "", bool(os.environ.get("DOCKER_TLS_VERIFY"))))
    context = os.environ.get("DOCKER_CONTEXT") or _current_context()
    return Daemon(DEFAULT) if context in ("", "default") else _checked(_of_context(context))


def is_here() -> bool:
    """Whether a daemon answers to this user: at its socket, or wherever it was said to be. Costs one system call where there is none."""
    try:
        return find().answers()
    except (EngineError, UnsupportedError):
        return False


def _checked(daemon: Daemon) -> Daemon:
    if daemon.host.startswith(("unix:///", "tcp://")):
        return daemon
    raise UnsupportedError(
        f"the Docker daemon's address {daemon.host!r} is not supported; use unix:// or tcp:// "
        "(for ssh, forward the socket: ssh -nNT -L /tmp/docker.sock:/var/run/docker.sock HOST)"
    )


def _folder() -> Path:
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")


def _current_context() -> str:
    try:
        return str(json.loads((_folder() / "config.json").read_bytes()).get("currentContext") or "")
    except (OSError, ValueError):  # builds say what is wrong with it; to find the daemon it is not needed
        return ""


def _of_context(name: str) -> Daemon:
    import hashlib

    digest = hashlib.sha256(name.encode()).hexdigest()
    file = _folder() / "contexts" / "meta" / digest / "meta.json"
    try:
        endpoint = json.loads(file.read_bytes())["Endpoints"]["docker"]
        host = str(endpoint["Host"])
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(
            f"the Docker context {name!r} cannot be read from {file}; choose another with DOCKER_CONTEXT"
        ) from error
    certificates = _folder() / "contexts" / "tls" / digest / "docker"
    return Daemon(host, str(certificates) if certificates.is_dir() else "", not endpoint.get("SkipTLSVerify"))


def _check(answer: httpx2.Response) -> None:
    if answer.status_code < 400:
        return
    try:
        message = str(json.loads(answer.read())["message"])
    except (ValueError, KeyError, TypeError):
        message = f"HTTP status {answer.status_code}"
    kind = {404: MissingError, 409: ConflictError}.get(answer.status_code, ApiError)
    raise kind(answer.status_code, " ".join(message.split()))


def _told(answer: httpx2.Response) -> Any:
    """What is in an answer, None if nothing. Podman's service says `OK` in some."""
    return answer.json() if answer.content.lstrip()[:1] in (b"{", b"[") else None


def _text(query: dict[str, object]) -> dict[str, Any]:
    """Parameters as the API takes them: objects in JSON, lists as repeated names."""
    return {
        name: json.dumps(value) if isinstance(value, dict) else int(value) if isinstance(value, bool) else value
        for name, value in query.items()
    }
