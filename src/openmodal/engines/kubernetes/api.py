"""The API server: requests, watches, and the handshake of an exec. Blocking; the engine calls it
through `Blocking`.

lightkube reads the kubeconfig (contexts, certificates, tokens, credential plugins, a pod's own
account) and makes the HTTP client. Bodies are plain JSON: of a pod we read a dozen fields, for
which lightkube's models would cost an import of 200 ms.
"""

from __future__ import annotations

import base64
import functools
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import msgspec

from openmodal.errors import EngineError, UnsupportedError, extra

try:
    import httpx2
    from lightkube.config import client_adapter, kubeconfig
    from lightkube.core.exceptions import ConfigError
except ModuleNotFoundError as missing:
    raise UnsupportedError(
        f"the kubernetes engine needs the package {missing.name}; {extra('kubernetes')}"
    ) from missing

Json = dict[str, Any]
Query = list[tuple[str, str | int | float | bool | None]]

_MERGE = "application/merge-patch+json"
_METADATA = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1"
_OLD_PROTOCOL = "v4.channel.k8s.io"
_PROTOCOLS = f"v5.channel.k8s.io, {_OLD_PROTOCOL}"
_PATIENCE = 60.0  # seconds for a server that says "too many requests"
_RESTART = 30.0  # seconds for which a server that answered before may be away
SAY_AFTER = 5.0  # seconds of waiting that nobody needs to hear of
_log = logging.getLogger("openmodal")
_NO_CLASS = re.compile(r'RuntimeClass "([^"]+)" not found')
_TIMEOUT = httpx2.Timeout(30.0, connect=10.0)


class ApiError(EngineError):
    """What the API server refused; `status` is HTTP's, `reason` Kubernetes'."""

    def __init__(self, text: str, status: int, reason: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason


class Unreachable(EngineError):
    """The API server cannot be reached at the moment."""


class Api:
    """One API server, with one namespace. Safe from many threads; not to be used after a fork."""

    def __init__(self, http: httpx2.Client, namespace: str) -> None:
        self._http = http
        self._worked = False
        self._protocols = _PROTOCOLS
        self.namespace = namespace
        # The uids of pods whose addresses this process has tried in vain: the first is news.
        self.out_of_reach: set[str] = set()

    # -------------------------------------------------------------------------------------- objects

    def create(self, path: str, body: Json) -> Json:
        """Make an object; ApiError 409 if its name is taken."""
        return self.request("POST", path, body)

    def get(self, path: str, **query: str) -> Json:
        """An object or a list; ApiError 404 if there is none."""
        return self.request("GET", path, query=query)

    def exists(self, path: str) -> bool:
        """Whether there is such an object; what is in it, however much, does not travel."""
        try:
            self._answer("GET", path, None, {}, accept=_METADATA.format(""))
        except ApiError as error:
            if error.status != 404 or 'namespaces "' in str(error):
                raise
            return False
        return True

    def metadata(self, path: str, **query: str) -> list[Json]:
        """The metadata of each object of a list: a tenth of what a whole pod has to say."""
        answer = self._answer("GET", path, None, query, accept=_METADATA.format("List"))
        return [item["metadata"] for item in msgspec.json.decode(answer.content)["items"] or ()]

    def replace(self, path: str, body: Json) -> Json:
        """Replace an object of that `resourceVersion`; ApiError 409 if somebody was faster."""
        return self.request("PUT", path, body)

    def patch(self, path: str, body: Json) -> Json:
        """Change an object, by a merge patch; one with a `resourceVersion` fails with 409 if somebody was faster."""
        return self.request("PATCH", path, body)

    def delete(self, path: str, *, grace: int | None = None) -> bool:
        """Delete an object; False if it was not there."""
        body = {"propagationPolicy": "Background"} | ({} if grace is None else {"gracePeriodSeconds": grace})
        try:
            self.request("DELETE", path, body)
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    def text(self, path: str, **query: str) -> bytes:
        """A log."""
        return self._answer("GET", path, None, query, accept="*/*").content

    def request(self, method: str, path: str, body: Json | None = None, query: Mapping[str, str] | None = None) -> Json:
        """Ask the API server; the answer's JSON."""
        answer: Json = msgspec.json.decode(self._answer(method, path, body, query or {}).content)
        return answer

    def pods(self, rest: str = "") -> str:
        """The path of the pods of our namespace, or of something below."""
        return self.path("pods", rest)

    def path(self, kind: str, rest: str = "", group: str = "api/v1") -> str:
        """The path of objects of our namespace, or of something below."""
        return f"/{group}/namespaces/{self.namespace}/{kind}" + (f"/{rest}" if rest else "")

    def _answer(
        self, method: str, path: str, body: Json | None, query: Mapping[str, str], accept: str = "application/json"
    ) -> httpx2.Response:
        headers = {"Content-Type": _MERGE if method == "PATCH" else "application/json", "Accept": accept}
        content = None if body is None else msgspec.json.encode(body)

        def ask() -> httpx2.Response:
            with told(self._http.base_url):
                return self._patiently(method, path, content=content, headers=headers, params=dict(query))

        response = _unhurried(ask)
        if response.status_code >= 400:
            raise refusal(response, f"{method} {path}")
        return response

    def _patiently(self, method: str, path: str, **parts: Any) -> httpx2.Response:
        """A server that answered before is perhaps only restarting; what may be said twice is said again for a while."""
        give_up = time.monotonic() + (_RESTART if self._worked and method != "POST" else 0.0)
        while True:
            try:
                response = self._http.request(method, path, **parts)
            except httpx2.TransportError:
                if time.monotonic() >= give_up:
                    raise
                time.sleep(0.3)
            else:
                self._worked = True
                return response

    # -------------------------------------------------------------------------------------- streams

    def changed(self, path: str, name: str, version: str, seconds: float) -> Json | None:
        """The object, as soon as it is no longer of that version; None after so many seconds. 404 if it was deleted."""
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        timeout = httpx2.Timeout(seconds + 30, connect=10.0)
        with told(self._http.base_url), self._http.stream("GET", path, params=query, timeout=timeout) as response:
            if response.status_code >= 400:
                response.read()
                raise refusal(response, f"watch {path}")
            for line in response.iter_lines():
                event: Json = msgspec.json.decode(line)
                if event["type"] == "DELETED":
                    raise ApiError(f"{name} was deleted", 404, "NotFound")
                if event["type"] == "ERROR":  # the version is too old: look at it as it is now
                    return self.get(f"{path}/{name}")
                if event["type"] in ("ADDED", "MODIFIED"):
                    return dict(event["object"])
        return None

    def upgrade(self, path: str, query: Query) -> httpx2.Response:
        """Open a WebSocket; the response's network stream is its connection, and closing the
        response closes it.

        Raises:
            ConnectionError: there is no such pod, or it does not run.
        """
        response = self._handshake(path, query, self._protocols)
        if response.status_code in (400, 403):  # before 1.30 it does not know version 5, and may refuse who offers it
            response.close()
            response = self._handshake(path, query, _OLD_PROTOCOL)
            if response.status_code == 101:
                self._protocols = _OLD_PROTOCOL
        if response.status_code == 101:
            return response
        with closing(response):
            response.read()
        error = refusal(response, "exec")
        if response.status_code in (401, 403):
            raise error
        raise ConnectionRefusedError(str(error)) from error

    def _handshake(self, path: str, query: Query, protocols: str) -> httpx2.Response:
        headers = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Protocol": protocols,
        }
        with told(self._http.base_url):
            request = self._http.build_request("GET", path, params=httpx2.QueryParams(query), headers=headers)
            return self._http.send(request, stream=True)


def connect(context: str, namespace: str) -> Api:
    """The API server that the kubeconfig names.

    Raises:
        EngineError: there is no kubeconfig, or it is wrong.
    """
    return _api(os.getpid(), context, os.environ.get("KUBECONFIG", ""), namespace)


@functools.cache
def _api(pid: int, context: str, files: str, namespace: str) -> Api:
    """A process's connections: a forked child makes its own. The other arguments tell when they are to another cluster."""
    try:
        config = kubeconfig.KubeConfig.from_env().get(context or None)
        if config is None:
            raise ConfigError("the kubeconfig has no such context")
        params = client_adapter.ConnectionParams(timeout=_TIMEOUT).httpx_params(config)
    except (ConfigError, OSError, ValueError) as error:
        raise EngineError(
            f"no Kubernetes cluster is configured ({error}); set KUBECONFIG, or run your cluster's login command"
        ) from error
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
    return Api(httpx2.Client(limits=limits, **params), namespace)


def _unhurried(ask: Callable[[], httpx2.Response]) -> httpx2.Response:
    """Ask again for a while, where the server has too many requests."""
    response, attempt, said, begin = ask(), 0, False, time.monotonic()
    while response.status_code == 429 and (waited := time.monotonic() - begin) < _PATIENCE:
        if waited >= SAY_AFTER and not said:
            said = True
            _log.warning("waiting for the Kubernetes API server, which has too many requests (429)")
        time.sleep(_pause(attempt, response.headers.get("Retry-After", "")))
        response, attempt = ask(), attempt + 1
    return response


def _pause(attempt: int, after: str) -> float:
    """Seconds until the next attempt: what the server says, and more each time, but not all clients at the same moment."""
    least = float(after) if after.isdigit() else 0.0
    return least + min(10.0, 0.1 * 2.0**attempt) * random.uniform(0.5, 1.5)


@contextmanager
def told(server: object) -> Iterator[None]:
    """Say which server cannot be reached."""
    try:
        yield
    except httpx2.TransportError as error:
        raise Unreachable(
            f"the Kubernetes API server {server} cannot be reached: {str(error) or type(error).__name__}; "
            "check the network and the kubeconfig, then try again"
        ) from error
    except ConfigError as error:
        raise EngineError(f"the credentials of the kubeconfig cannot be had: {error}; log in again") from error


def refusal(response: httpx2.Response, what: str) -> ApiError:
    """The error for a response: who may not do what, and what to do about it."""
    try:
        status = msgspec.json.decode(response.content)
        text, reason = str(status.get("message", "")), str(status.get("reason", ""))
    except (msgspec.DecodeError, AttributeError):
        text, reason = response.text[:200].strip(), ""
    code = response.status_code
    if code == 401:
        text = "the API server does not know you: the credentials of the kubeconfig are wrong or have expired; log in again"
    elif code == 403 and (missing := _NO_CLASS.search(text)):
        text = (
            f"the cluster has no RuntimeClass {missing[1]!r}; an administrator makes it "
            "(https://gvisor.dev/docs/user_guide/containerd/quick_start/, on GKE `openmodal setup gcp`), or leave out "
            "runtime= and kubernetes.runtime_class"
        )
    elif code == 403 and "quota" not in text:
        text = f"{text or what}; a cluster administrator gives the rights with `openmodal setup kubernetes`"
    elif code == 429:
        text = f"the API server has too many requests ({text or what}); try again later, or create fewer at once"
    elif code == 404 and 'namespaces "' in text:
        text = f"{text}; make it with `openmodal setup kubernetes`"
    return ApiError(text or f"the API server answers {code} to {what}", code, reason)
