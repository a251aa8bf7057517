"""Cloud Build, against a server with the answers that its documentation has: there is no Google Cloud here."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from openmodal._spec import Copy, Progress, Run
from openmodal.build import Options, context
from openmodal.build.layers import Layers
from openmodal.build.reference import parse
from openmodal.build.remote import Order
from openmodal.build.steps import Builder
from openmodal.build.told import Told, runs_nothing
from openmodal.engines.kubernetes.google import gcloud, googleauth
from openmodal.engines.kubernetes.images import cloudbuild
from openmodal.errors import EngineError, ImageBuildError, InvalidError

TARGET = parse("europe-west4-docker.pkg.dev/proj/agents/openmodal:om-1")
BUILDS = "/v1/projects/proj/locations/europe-west4/builds"
BUCKET = "/storage/v1/b/proj-openmodal-builds/o"
DIGEST = "sha256:" + "a" * 64

LOG = """\
starting build "b-1"

FETCHSOURCE
BUILD
Already have image (with digest): gcr.io/cloud-builders/docker
#0 building with "default" instance using docker driver

#1 [internal] load build definition from .openmodal.Dockerfile
#1 transferring dockerfile: 120B done
#1 DONE 0.0s

#4 [1/3] FROM docker.io/library/python:3.13-slim@sha256:0123
#4 CACHED

#5 [2/3] RUN make
#5 sha256:0123456789
#5 0.312 made: 1 of 2
#5 ...

#7 [internal] load build context
#7 DONE 0.1s

#5 [2/3] RUN make
#5 0.400 made: 2 of 2
"""
GOOD = "#5 DONE 0.4s\n\n#6 [3/3] COPY c0/f /srv/\n#6 CACHED\n\nPUSH\nDONE\n"
BAD = """\
#5 ERROR: process "/bin/sh -c make" did not complete successfully: exit code: 7
------
 > [2/3] RUN make:
------
ERROR: failed to solve: process "/bin/sh -c make" did not complete successfully: exit code: 7
ERROR: build step 0 "gcr.io/cloud-builders/docker" failed: step exited with non-zero status: 1
"""


class Google(BaseHTTPRequestHandler):
    """One build of one project, as far as these tests look at it."""

    state: dict[str, Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if not self._may(path):
            return
        if path.startswith("/upload/"):
            self.state["source"] = body
            self._answer(200, {"name": "x"})
        elif path == BUILDS:
            self.state["request"] = json.loads(body)
            self._answer(200, {"name": "operations/build/proj/x", "metadata": {"build": {"id": "b-1"}}})
        elif path == f"{BUILDS}/b-1:cancel":
            self._answer(200, {"status": "CANCELLED"})
        else:
            self._answer(404, {"error": {"code": 404, "message": path}})

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if not self._may(path):
            return
        if path == f"{BUILDS}/b-1":
            left: list[dict[str, Any]] = self.state["builds"]
            self._answer(200, left.pop(0) if len(left) > 1 else left[0])
        elif unquote(path) == f"{BUCKET}/log-b-1.txt":
            self._log()
        else:
            self._answer(404, {"error": {"code": 404, "message": path}})

    def do_DELETE(self) -> None:
        if self._may(urlsplit(self.path).path):
            self.state["deleted"].append(unquote(urlsplit(self.path).path))
            self._answer(204, None)

    def _may(self, path: str) -> bool:
        self.state["asked"].append(f"{self.command} {unquote(path)}")
        if self.headers["Authorization"] != f"Bearer {self.state['token']}":
            self._answer(401, {"error": {"code": 401, "message": "expired", "status": "UNAUTHENTICATED"}})
            return False
        for prefix, codes in self.state["fails"].items():
            if f"{self.command} {path}".startswith(prefix) and codes:
                self._answer(codes.pop(0), {"error": {"message": f"no {prefix}", "status": "PERMISSION_DENIED"}})
                return False
        return True

    def _log(self) -> None:
        at = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        pieces: list[str] = self.state["log"]
        known = self.state["known"] = self.state["known"] + (pieces.pop(0) if pieces else "")
        new = known.encode()[at:]
        self._answer(206 if new else 416, new)

    def _answer(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *unused: Any) -> None:
        """Not on stderr."""


class Cloud:
    """The server, and a client of it."""

    def __init__(self, state: dict[str, Any], port: int, folder: Path) -> None:
        self.state = state
        self.news: list[Progress] = []
        self.tokens = ["expired", "good"]
        self.pauses: list[float] = []
        self._url = f"http://127.0.0.1:{port}"
        self._folder = folder

    def make(self) -> str:
        (self._folder / "file").write_text("content")
        steps = (Run(argv=("/bin/sh", "-c", "make")), Copy(source=str(self._folder / "file"), target="/srv/"))
        part = next(context.parts(steps, 0, "", ""))
        order = Order(part, "FROM python:3.13-slim\n", TARGET, ("python:3.13-slim",))
        told = Told(Builder(Layers(self._folder / "store"), runs_nothing, self.news.append, Options(), 2), part.titles)
        api = cloudbuild.Api(self._token, builds=self._url, storage=self._url, pause=self._pause)
        with cloudbuild.builder(TARGET, api) as made:
            return made.make(order, told)

    def _token(self) -> str:
        return self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) > 100:
            raise AssertionError("it asks for ever")

    @property
    def asked(self) -> list[str]:
        return list(self.state["asked"])


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    success = {"status": "SUCCESS", "results": {"images": [{"name": str(TARGET), "digest": DIGEST}]}}
    state: dict[str, Any] = {
        "token": "good",
        "builds": [{"status": "QUEUED"}, {"status": "WORKING"}, success],
        "log": ["", LOG[:300], LOG[300:], GOOD],
        "known": "",
        "asked": [],
        "deleted": [],
        "fails": {},
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Recorded", (Google,), {"state": state})) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Cloud(state, server.server_port, tmp_path)
        finally:
            server.shutdown()
            thread.join()


def events(cloud: Cloud) -> list[tuple[str, str]]:
    return [(news.event, news.text) for news in cloud.news if news.event != "output"]


def test_a_build_is_sent_followed_and_known_by_its_digest(cloud: Cloud) -> None:
    assert cloud.make() == DIGEST
    with tarfile.open(fileobj=io.BytesIO(cloud.state["source"]), mode="r:gz") as tar:
        found = {item.name: file.read() for item in tar if (file := tar.extractfile(item))}
    assert found["c0/file"] == b"content"
    assert found[context.DOCKERFILE].startswith(b"FROM python:3.13-slim\nRUN ")
    assert events(cloud) == [
        ("start", "RUN make"),
        ("done", "RUN make"),
        ("start", "COPY file /srv/"),
        ("cached", "COPY file /srv/"),
    ]
    assert "".join(news.text for news in cloud.news if news.event == "output") == "made: 1 of 2\nmade: 2 of 2\n"


def test_a_build_is_asked_for_as_an_account_that_can_do_little_else(cloud: Cloud) -> None:
    cloud.make()
    request = cloud.state["request"]
    assert request["serviceAccount"] == "projects/proj/serviceAccounts/openmodal-builds@proj.iam.gserviceaccount.com"
    assert request["logsBucket"] == "gs://proj-openmodal-builds"
    assert request["options"] == {"logging": "GCS_ONLY"}
    assert request["images"] == [str(TARGET)]
    (source,) = cloud.state["deleted"]
    assert source == f"{BUCKET}/{request['source']['storageSource']['object']}"
    assert "good" not in json.dumps(request), "no token of ours goes to the build"


def test_dollars_in_arguments_are_not_expanded() -> None:
    part = context.Part(0, "FROM x\n", args=(("PRICE", "$5 of ${ALL}"),))
    asked = cloudbuild.request(cloudbuild.place(TARGET), Order(part, "", TARGET, ()), "o")
    assert "--build-arg=PRICE=$$5 of $${ALL}" in asked["steps"][0]["args"]


def test_a_step_that_fails_is_told_with_its_output(cloud: Cloud) -> None:
    cloud.state["log"][-1] = BAD
    cloud.state["builds"][-1] = {"status": "FAILURE", "failureInfo": {"type": "USER_BUILD_STEP", "detail": "step 0"}}
    with pytest.raises(ImageBuildError, match="RUN make, failed with exit code 7; it last printed: made: 2 of 2") as it:
        cloud.make()
    assert (it.value.step, it.value.output) == ("RUN make", "made: 1 of 2\nmade: 2 of 2")
    assert len(cloud.state["deleted"]) == 1


def test_a_failure_of_the_service_is_none_of_the_image(cloud: Cloud) -> None:
    cloud.state["builds"][-1] = {"status": "INTERNAL_ERROR", "statusDetail": "broken", "logUrl": "https://log"}
    with pytest.raises(EngineError, match="INTERNAL_ERROR broken; its log is https://log"):
        cloud.make()


def test_an_access_token_that_expires_is_fetched_anew(cloud: Cloud) -> None:
    cloud.make()
    assert cloud.tokens == ["good"]
    assert cloud.asked[0].startswith("POST /upload/") and cloud.asked[1] == cloud.asked[0]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("POST /upload", "write to the bucket proj-openmodal-builds (403: no POST /upload)"),
        (f"POST {BUILDS}", f"start a build (403: no POST {BUILDS})"),
    ],
)
def test_what_is_denied_is_named_with_the_remedy(cloud: Cloud, what: str, told: str) -> None:
    cloud.state["fails"] = {what: [403] * 9}
    with pytest.raises(EngineError) as caught:
        cloud.make()
    assert told in str(caught.value) and "openmodal setup gcp --cloud-build" in str(caught.value)
    assert "request" not in cloud.state


def test_a_service_that_is_busy_is_asked_again_later_but_no_build_is_ordered_twice(cloud: Cloud) -> None:
    cloud.state["fails"] = {f"GET {BUILDS}/b-1": [503, 429], "POST /upload": [429]}
    assert cloud.make() == DIGEST
    cloud.state["fails"] = {f"POST {BUILDS}": [503] * 9}
    cloud.state["asked"].clear()
    with pytest.raises(EngineError, match="try again later"):
        cloud.make()
    assert cloud.asked.count(f"POST {BUILDS}") == 1


def test_a_build_that_nobody_waits_for_is_cancelled(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Cloud, seconds: float) -> None:
        raise KeyboardInterrupt

    cloud.tokens = ["good"]
    monkeypatch.setattr(Cloud, "_pause", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cloud.make()
    assert f"POST {BUILDS}/b-1:cancel" in cloud.asked
    assert len(cloud.state["deleted"]) == 1


@pytest.mark.parametrize("name", ["docker.io/library/x", "eu.gcr.io/proj/x", "europe-west4-docker.pkg.dev/proj"])
def test_another_registry_is_refused(name: str) -> None:
    with pytest.raises(InvalidError, match="Artifact Registry"):
        cloudbuild.place(parse(name))


def test_looks_at_a_build_become_rarer_while_it_says_nothing(cloud: Cloud) -> None:
    cloud.state["builds"][:1] = [{"status": "WORKING"}] * 12
    cloud.state["log"] = [*[""] * 12, LOG + GOOD]
    cloud.make()
    assert cloud.pauses[1] < cloud.pauses[5] <= max(cloud.pauses) == 10.0


# ------------------------------------------------------------------------------------------- tokens


class Tokens(BaseHTTPRequestHandler):
    """Google's token endpoint: it takes what a service account's key signed."""

    forms: list[str]

    def do_POST(self) -> None:
        self.forms.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        data = json.dumps({"access_token": "ya29.short", "expires_in": 3600, "token_type": "Bearer"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *unused: Any) -> None:
        """Not on stderr."""


def key_file(folder: Path, token_uri: str) -> Path:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    content = {"type": "service_account", "client_email": "a@b", "private_key": pem, "token_uri": token_uri}
    file = folder / "key.json"
    file.write_text(json.dumps({**content, "project_id": "p", "private_key_id": "1"}))
    return file


def test_without_gcloud_the_environments_account_gives_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Recorded", (Tokens,), {"forms": forms})) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            file = key_file(tmp_path, f"http://127.0.0.1:{server.server_port}/token")
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
            monkeypatch.setenv("PATH", str(tmp_path))
            assert gcloud.token() == "ya29.short"
        finally:
            server.shutdown()
            thread.join()
    assert "jwt-bearer" in forms[0]


def test_without_any_login_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # else it looks for the cloud's own address, for seconds
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with pytest.raises(EngineError, match="run `gcloud auth login`, or set GOOGLE_APPLICATION_CREDENTIALS"):
        googleauth.token()
