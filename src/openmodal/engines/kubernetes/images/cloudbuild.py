"""Builds by Google's Cloud Build, through its REST API: the context goes to a bucket, Docker's
builder makes and pushes the image there.

Written after https://cloud.google.com/build/docs/api/reference/rest and
https://cloud.google.com/storage/docs/json_api. Bucket and account are those that `openmodal setup
gcp --cloud-build` makes; project and region are in the registry's name.
"""

from __future__ import annotations

import gzip
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any
from urllib.parse import quote

import httpx2
import msgspec

from openmodal.build.reference import Reference
from openmodal.build.remote import Order
from openmodal.build.told import Listener, Told
from openmodal.engines.kubernetes.google import gcloud
from openmodal.engines.kubernetes.google.gcp import Wish
from openmodal.errors import EngineError, InvalidError

Json = dict[str, Any]

_DOCKER = "gcr.io/cloud-builders/docker"
_SECONDS = 3600
_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
_ATTEMPTS = 6
_FIRST, _LONGEST = 1.0, 10.0  # seconds between two looks at a build
_PIECE = 1 << 20
_HOST = re.compile(r"([a-z0-9-]+)-docker\.pkg\.dev")
_ERROR = re.compile(r"(?:Step #\d+: )?(?:#\d+ )?ERROR: (.*)")
_OVER = ("SUCCESS", "FAILURE", "INTERNAL_ERROR", "TIMEOUT", "CANCELLED", "EXPIRED")


def place(target: Reference) -> Wish:
    """Where a registry is, which is where its images are built.

    Raises:
        InvalidError: it is none of Artifact Registry.
    """
    found = _HOST.fullmatch(target.host)
    project, _, rest = target.repository.partition("/")
    if not found or not rest:
        raise InvalidError(
            f"builder = 'cloudbuild' pushes to Artifact Registry: set `registry` to REGION-docker.pkg.dev/PROJECT/NAME, not {target.host}"
        )
    return Wish(project, found[1], repository=rest.partition("/")[0])


class Api:
    """Google's services, asked with an access token that is fetched anew when it has expired."""

    def __init__(
        self,
        token: Callable[[], str] = gcloud.token,
        *,
        builds: str = "https://cloudbuild.googleapis.com",
        storage: str = "https://storage.googleapis.com",
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.builds = builds
        self.storage = storage
        self.pause = pause
        self._token = token
        self._headers: dict[str, str] = {}
        self._http = httpx2.Client(timeout=_TIMEOUT)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def json(self, method: str, url: str, what: str, body: Json | None = None) -> Json:
        """Ask, and return the answer's JSON."""
        content = None if body is None else msgspec.json.encode(body)
        answer = self.ask(method, url, what, content, {"Content-Type": "application/json"})
        return dict(msgspec.json.decode(answer.content or b"{}"))

    def ask(
        self,
        method: str,
        url: str,
        what: str,
        content: bytes | IO[bytes] | None = None,
        headers: dict[str, str] | None = None,
        fine: tuple[int, ...] = (),
    ) -> httpx2.Response:
        """Ask until there is an answer. `what` completes the sentence "Google Cloud does not let
        you …".

        A build that is ordered is not ordered again when nobody knows whether it was.
        """
        reason = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                self.pause(min(_LONGEST, 0.5 * 2**attempt))
            if not self._headers:
                self._headers = {"Authorization": f"Bearer {self._token()}"}
            try:
                body = _pieces(content) if content is not None and not isinstance(content, bytes) else content
                response = self._http.request(method, url, content=body, headers={**(headers or {}), **self._headers})
            except httpx2.TransportError as error:
                reason = str(error) or type(error).__name__
                if method == "POST":
                    break
                continue
            if response.status_code == 401:
                self._headers, reason = {}, "it does not accept the access token; run `gcloud auth login`"
            elif response.status_code == 429 or (response.status_code >= 500 and method != "POST"):
                reason = f"it answers {response.status_code}"
            elif response.status_code < 300 or response.status_code in fine:
                return response
            else:
                raise _refusal(response, what)
        raise EngineError(f"Google Cloud cannot be asked to {what}: {reason}")


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while data := file.read(_PIECE):
        yield data


def _refusal(response: httpx2.Response, what: str) -> EngineError:
    try:
        text = str(msgspec.json.decode(response.content)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        text = response.text[:200].strip()
    said = f"({response.status_code}: {' '.join(text.split())})"
    if response.status_code >= 500:
        return EngineError(f"Google Cloud fails to {what} {said}; try again later")
    return EngineError(
        f"Google Cloud does not let you {what} {said}; "
        "`openmodal setup gcp --cloud-build` makes what it needs, and docs/gcp.md lists the roles"
    )


@contextmanager
def builder(target: Reference, api: Api | None = None) -> Iterator[CloudBuild]:
    """Cloud Build, for images of a registry."""
    api = api or Api()
    try:
        yield CloudBuild(api, place(target))
    finally:
        api.close()


class CloudBuild:
    """A builder that takes orders."""

    def __init__(self, api: Api, wish: Wish) -> None:
        self._api = api
        self._wish = wish
        self._path = f"{api.builds}/v1/projects/{wish.project}/locations/{wish.region}/builds"
        self._bucket = f"{api.storage}/storage/v1/b/{wish.bucket}/o"

    def make(self, order: Order, told: Told) -> str:
        """See `remote.Maker`."""
        name = f"source/{secrets.token_hex(16)}.tgz"
        try:
            self._send(name, order)
            ordered = self._api.json("POST", self._path, "start a build", request(self._wish, order, name))
            return self._follow(str(ordered["metadata"]["build"]["id"]), told)
        finally:
            with suppress(EngineError):
                self._api.ask("DELETE", f"{self._bucket}/{quote(name, safe='')}", "delete the source", fine=(404,))

    def _send(self, name: str, order: Order) -> None:
        """The context as a compressed tar, which is what Cloud Build unpacks."""
        with tempfile.TemporaryFile() as file:
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as compressed:
                for piece in order.content():
                    compressed.write(piece)
            url = f"{self._api.storage}/upload/storage/v1/b/{self._wish.bucket}/o?uploadType=media&name={quote(name, safe='')}"
            headers = {"Content-Type": "application/gzip", "Content-Length": str(file.tell())}
            self._api.ask("POST", url, f"write to the bucket {self._wish.bucket}", file, headers)

    def _follow(self, id: str, told: Told) -> str:
        """Tell its log until it is over, and return the image's digest; a build that nobody waits for any more is cancelled."""
        log = _Log(self._api, f"{self._bucket}/{quote(f'log-{id}.txt', safe='')}?alt=media", Listener(told.hear))
        url, pause = f"{self._path}/{id}", _FIRST
        try:
            while (build := self._api.json("GET", url, "see the build"))["status"] not in _OVER:
                pause = _FIRST if log.read() else min(_LONGEST, pause * 1.5)
                self._api.pause(pause)
        except BaseException:
            with suppress(EngineError):
                self._api.json("POST", f"{url}:cancel", "cancel the build", {})
            raise
        while log.read():
            pass
        if build["status"] != "SUCCESS":
            raise _failure(build, log, told)
        return str(build["results"]["images"][0]["digest"])


class _Log:
    """The log of a build: an object of the bucket, which grows."""

    def __init__(self, api: Api, url: str, listener: Listener) -> None:
        self._api = api
        self._url = url
        self._listener = listener
        self._at = 0
        self._rest = b""
        self.error = ""

    def read(self) -> bool:
        """Tell what is new; whether there was something."""
        headers = {"Range": f"bytes={self._at}-"}
        answer = self._api.ask("GET", self._url, "read the log", headers=headers, fine=(404, 416))
        if answer.status_code not in (200, 206):  # there is none yet, or no more of it
            return False
        new = answer.content if answer.status_code == 206 else answer.content[self._at :]
        self._at += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            self._listener.plain(text)
            if not self.error and (found := _ERROR.match(text)):  # what comes after it follows from it
                self.error = found[1]
        return bool(new)


def _failure(build: Json, log: _Log, told: Told) -> Exception:
    """The error for a build that failed: a step of the user's, or Cloud Build itself."""
    detail = str(build.get("failureInfo", {}).get("detail") or build.get("statusDetail") or log.error)
    if build["status"] == "FAILURE":
        return told.failure(log.error or detail)
    return EngineError(f"Cloud Build ended the build: {build['status']} {detail}; its log is {build.get('logUrl', '')}")


def request(wish: Wish, order: Order, source: str) -> Json:
    """What Cloud Build is asked for. It expands `$` in arguments, unless there are two."""
    options = [f"--build-arg={name}={value}" for name, value in order.part.args]
    options += ["--no-cache"] if order.part.again else []
    arguments = ["build", "--progress=plain", f"--file={order.part.dockerfile}", f"--tag={order.target}", *options, "."]
    step = {
        "name": _DOCKER,
        "env": ["DOCKER_BUILDKIT=1"],
        "args": [argument.replace("$", "$$") for argument in arguments],
    }
    return {
        "source": {"storageSource": {"bucket": wish.bucket, "object": source}},
        "steps": [step],
        "images": [str(order.target)],
        "timeout": f"{_SECONDS}s",
        "serviceAccount": f"projects/{wish.project}/serviceAccounts/{wish.builds}",
        "logsBucket": f"gs://{wish.bucket}",
        "options": {"logging": "GCS_ONLY"},
    }
