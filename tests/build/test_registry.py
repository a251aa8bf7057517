"""The registry client against Debian's docker-registry, and against registries that lie (H13, R19, R50)."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest

from openmodal.build import Options, build, credentials, reference
from openmodal.build.layers import Layers
from openmodal.build.reference import parse
from openmodal.build.registry import Client
from openmodal.build.told import runs_nothing
from openmodal.build.unpack import Limits, unpack
from openmodal.errors import Error, InvalidError, RegistryError, UnsupportedError
from openmodal.image import Image

pytestmark = pytest.mark.root
OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(files: dict[str, str]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return output.getvalue()


def zstd(data: bytes) -> bytes:
    from openmodal.build.streams import _module

    result: bytes = _module().compress(data)
    return result


class Content:
    """An image as a registry has it, to be served as it is or with a lie."""

    def __init__(self, tars: list[bytes], packers: list[Any], config: dict[str, Any] | None = None) -> None:
        self.blobs: dict[str, bytes] = {}
        self.layers = [self.blob(pack(data)) for data, pack in zip(tars, packers, strict=True)]
        self.config = self.blob(
            json.dumps(
                {
                    "architecture": "amd64",
                    "os": "linux",
                    "config": config or {},
                    "rootfs": {"type": "layers", "diff_ids": [sha(data) for data in tars]},
                }
            ).encode()
        )

    def blob(self, data: bytes) -> dict[str, Any]:
        self.blobs[sha(data)] = data
        return {"mediaType": "application/octet-stream", "digest": sha(data), "size": len(data)}

    def manifest(self, **changes: Any) -> bytes:
        return json.dumps({"schemaVersion": 2, "config": self.config, "layers": self.layers} | changes).encode()


def plain(data: bytes) -> bytes:
    return data


def example() -> Content:
    tars = [layer({"etc/one": "1", "etc/gone": "x"}), layer({"etc/.wh.gone": "", "two": "2"}), layer({"three": "3"})]
    config = {"Env": ["A=1", "B=x=y"], "WorkingDir": "/w", "User": "7:8", "Entrypoint": ["/e"], "Cmd": ["c"]}
    return Content(tars, [gzip.compress, zstd, plain], config)


def pull(store: Layers, name: str, options: Options = Options()) -> Any:  # noqa: B008  (frozen)
    def run(request: Any) -> int:
        raise AssertionError

    return build(Image.from_registry(name).recipe, store, run, lambda progress: None, options)


# -------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("python", "registry-1.docker.io/library/python:latest"),
        ("python:3.13-slim", "registry-1.docker.io/library/python:3.13-slim"),
        ("docker.io/library/python:3", "registry-1.docker.io/library/python:3"),
        ("owner/name", "registry-1.docker.io/owner/name:latest"),
        ("ghcr.io/a/b/c:d", "ghcr.io/a/b/c:d"),
        ("localhost:5000/x:y", "localhost:5000/x:y"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
        ("x@sha256:" + "0" * 64, "registry-1.docker.io/library/x@sha256:" + "0" * 64),
        ("x:tag@sha256:" + "0" * 64, "registry-1.docker.io/library/x@sha256:" + "0" * 64),
    ],
)
def test_names_are_read_as_docker_does(text: str, expected: str):
    assert str(parse(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "UPPER",
        "a/../b",
        "a:b:c",
        "a@sha256:12",
        "a@md5:" + "0" * 32,
        "a:",
        "a@",
        "-x",
        "a//b",
        "a.b/",
        "h:999999/x y",
    ],
)
def test_other_names_are_refused(text: str):
    with pytest.raises(InvalidError):
        parse(text)


@pytest.mark.parametrize(
    "text", ["sha256:../../x", "sha256:" + "0" * 63, "sha512:" + "0" * 128, "sha256:" + "A" * 64, ""]
)
def test_digests_that_are_none_are_refused(text: str):
    with pytest.raises(RegistryError):
        reference.checked_digest(text)


# --------------------------------------------------------------------------------- a real registry


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def docker_registry(folder: Path, auth: str = "") -> Iterator[str]:
    program = shutil.which("docker-registry")
    if program is None:
        pytest.fail("needs Debian's docker-registry")
    port = free_port()
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n{auth}"
    )
    process = subprocess.Popen([program, "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    with docker_registry(tmp_path) as host:
        yield host


def push(host: str, content: Content, tag: str = "latest", kind: str = f"{OCI}manifest.v1+json", **headers: str) -> str:
    """A small pusher; returns the manifest's digest."""
    with httpx2.Client(base_url=f"http://{host}", headers=headers) as http:
        for digest, data in content.blobs.items():
            place = http.post("/v2/team/app/blobs/uploads/").headers["Location"]
            put = http.put(f"{place}&digest={digest}" if "?" in place else f"{place}?digest={digest}", content=data)
            assert put.status_code == 201, put.text
        body = content.manifest(mediaType=kind)
        put = http.put(f"/v2/team/app/manifests/{tag}", content=body, headers={"Content-Type": kind})
        assert put.status_code == 201, put.text
        return sha(body)


def check_example(store: Layers, root: Any) -> None:
    from openmodal.build.merged import Merged

    merged = Merged(store.folders(root))
    assert [merged.read(path) for path in ("/etc/one", "/two", "/three")] == [b"1", b"2", b"3"]
    assert merged.find("/etc/gone") is None
    assert root.env == (("A", "1"), ("B", "x=y"))
    assert (root.workdir, root.user, root.entrypoint, root.cmd) == ("/w", "7:8", ("/e",), ("c",))


@pytest.mark.parametrize("kind", [f"{OCI}manifest.v1+json", DOCKER])
def test_an_image_is_pulled_by_tag_and_by_digest(registry: str, store: Layers, kind: str):
    digest = push(registry, example(), kind=kind)
    by_tag = pull(store, f"{registry}/team/app")
    check_example(store, by_tag)
    assert pull(store, f"{registry}/team/app@{digest}") == by_tag
    assert list((store.path / "tmp").iterdir()) == []


def test_a_pulled_image_needs_no_registry_any_more(tmp_path: Path, store: Layers):
    with docker_registry(tmp_path) as host:
        push(host, example())
        root = pull(store, f"{host}/team/app")
    assert pull(store, f"{host}/team/app") == root


def test_an_index_leads_to_this_machine_s_image(registry: str, store: Layers):
    digest = push(registry, example())
    manifest = {"mediaType": f"{OCI}manifest.v1+json", "digest": digest, "size": 1}
    platforms = [{"architecture": "s390x", "os": "linux"}, {"architecture": "amd64", "os": "linux"}]
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{OCI}index.v1+json",
            "manifests": [manifest | {"platform": p} for p in platforms],
        }
    )
    url = f"http://{registry}/v2/team/app/manifests/index"
    assert httpx2.put(url, content=index, headers={"Content-Type": f"{OCI}index.v1+json"}).status_code == 201
    check_example(store, pull(store, f"{registry}/team/app:index"))


def test_missing_images_and_registries_are_named(registry: str, store: Layers):
    with pytest.raises(RegistryError, match=r"has no .*team/none:1; check name and tag"):
        pull(store, f"{registry}/team/none:1")


def test_a_dockerfile_gets_the_shell_of_its_base_and_no_base_with_instructions_of_its_own(
    registry: str, store: Layers, tmp_path: Path
):
    """Both were left out without a word."""
    tars = [layer({"a": "1"})]
    push(registry, Content(tars, [plain], {"Shell": ["/bin/other", "-c"]}), "shell")
    push(registry, Content(tars, [plain], {"OnBuild": ["COPY . /app"]}), "onbuild")
    (tmp_path / "Dockerfile").write_text(f"FROM {registry}/team/app:shell\nCMD run\n")
    image = Image.from_dockerfile(tmp_path / "Dockerfile")
    assert build(image.recipe, store, runs_nothing, lambda progress: None).cmd == ("/bin/other", "-c", "run")
    (tmp_path / "Dockerfile").write_text(f"FROM {registry}/team/app:onbuild\n")
    with pytest.raises(UnsupportedError, match=r"line 1: .*ONBUILD"):
        build(image.recipe, store, runs_nothing, lambda progress: None)


def test_the_second_image_shares_the_layers_of_the_first(registry: str, store: Layers):
    content = example()
    push(registry, content)
    first = pull(store, f"{registry}/team/app")
    more = Content([layer({"etc/one": "1", "etc/gone": "x"}), layer({"four": "4"})], [zstd, gzip.compress])
    push(registry, more, tag="more")
    second = pull(store, f"{registry}/team/app:more")
    assert second.layers[-1] == first.layers[-1]


def test_many_pulls_at_once_download_once(registry: str, store: Layers):
    """R19."""
    push(registry, example())
    with ThreadPoolExecutor(8) as pool:
        roots = list(pool.map(lambda _: pull(store, f"{registry}/team/app"), range(8)))
    assert all(root == roots[0] for root in roots)
    assert len(os.listdir(store.path / "layers")) == 3


def test_basic_credentials_come_from_docker_s_configuration(tmp_path: Path, store: Layers):
    with serve(example(), basic="ada:secret") as host:
        folder = tmp_path / "docker"
        folder.mkdir()
        auth = base64.b64encode(b"ada:secret").decode()
        with pytest.raises(RegistryError, match="docker login"):
            pull(store, f"{host}/team/app", Options(docker_config=str(folder)))
        (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
        check_example(store, pull(store, f"{host}/team/app", Options(docker_config=str(folder))))


def test_credential_helpers_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    helper = tmp_path / "docker-credential-test"
    helper.write_text('#!/bin/sh\nread host; echo "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"for $host\\"}"\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {"r.example": "test"}, "credsStore": "none-such"}))
    login = credentials.find("r.example", str(tmp_path))
    assert login is not None
    assert login.token == "for r.example"
    assert "for" not in repr(login)
    with pytest.raises(RegistryError, match="docker-credential-none-such"):
        credentials.find("other.example", str(tmp_path))


# ------------------------------------------------------------------------------ registries that lie


class Liar(ThreadingHTTPServer):
    """Serves one image; `lies` maps a path's pattern to what is answered instead."""

    daemon_threads = True

    def __init__(self, content: Content, lies: dict[str, Any], basic: str, token: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.lies, self.basic, self.token = content, lies, basic, token
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Liar

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.path)
        if self.path.startswith("/token"):
            good = not server.basic or self.headers.get("Authorization") == _basic(server.basic)
            self.answer(200 if good else 401, json.dumps({"token": "T"}).encode())
        elif server.token and self.headers.get("Authorization") != "Bearer T":
            realm = f'Bearer realm="http://127.0.0.1:{server.server_port}/token",service="s",scope="repository:team/app:pull"'
            self.answer(401, WWW_Authenticate=realm)
        elif server.basic and not server.token and self.headers.get("Authorization") != _basic(server.basic):
            self.answer(401, WWW_Authenticate='Basic realm="r"')
        else:
            self.serve()

    def serve(self) -> None:
        for pattern, lie in self.server.lies.items():
            if re.search(pattern, self.path):
                lie(self)
                return
        honest(self)


def honest(handler: Handler) -> None:
    content = handler.server.content
    if "/manifests/" in handler.path:
        handler.answer(200, content.manifest(), Content_Type=f"{OCI}manifest.v1+json")
        return
    data = content.blobs.get(handler.path.rsplit("/", 1)[1])
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if data is None:
        handler.answer(404)
    elif wanted:
        handler.answer(206, data[int(wanted[1]) :])
    else:
        handler.answer(200, data)


def _basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@contextmanager
def serve(
    content: Content, lies: dict[str, Any] | None = None, *, basic: str = "", token: bool = False
) -> Iterator[Any]:
    server = Liar(content, lies or {}, basic, token)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    host = Host(f"127.0.0.1:{server.server_port}")
    host.server = server
    try:
        yield host
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Host(str):  # noqa: SLOT000  (it carries one)
    server: Liar


def manifest(body: bytes, kind: str = f"{OCI}manifest.v1+json") -> Any:
    return lambda handler: handler.answer(200, body, Content_Type=kind)


def redirect(target: str) -> Any:
    return lambda handler: handler.answer(307, Location=target)


def broken(text: str) -> Any:
    return lambda handler: handler.answer(200, text.encode())


def test_tokens_are_fetched_from_the_token_server(tmp_path: Path, store: Layers):
    with serve(example(), token=True, basic="ada:secret") as host:
        (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"username": "ada", "password": "secret"}}}))
        check_example(store, pull(store, f"{host}/team/app", Options(docker_config=str(tmp_path))))
        assert any("scope=repository%3Ateam%2Fapp%3Apull" in path for path in host.server.asked)


def some(content: Content) -> dict[str, Any]:
    """Lies, each of which must end in a RegistryError and no layer."""
    first = content.layers[0]["digest"]
    bomb = gzip.compress(layer({"zeros": "\0" * (4 << 20)}), 9)
    bombed = Content([gzip.decompress(bomb)], [lambda _: bomb])
    nested = json.dumps({"manifests": [{"digest": "sha256:" + "1" * 64, "size": 1}]}).encode()
    return {
        "wrong bytes": {first: broken("x" * content.layers[0]["size"])},
        "too many bytes": {first: broken("x" * (content.layers[0]["size"] + 1))},
        "wrong configuration": {content.config["digest"]: broken("{}")},
        "path as digest": {"/manifests/": manifest(content.manifest(layers=[{"digest": "sha256:../../x", "size": 1}]))},
        "path as digest of the configuration": {
            "/manifests/": manifest(content.manifest(config={"digest": "../x", "size": 1}))
        },
        "negative size": {"/manifests/": manifest(content.manifest(layers=[{"digest": first, "size": -5}]))},
        "10,000 layers": {"/manifests/": manifest(content.manifest(layers=[content.layers[0]] * 10_000))},
        "no layers": {"/manifests/": manifest(content.manifest(layers=[]))},
        "fewer layers than digests": {"/manifests/": manifest(content.manifest(layers=content.layers[:2]))},
        "layers in another order": {"/manifests/": manifest(content.manifest(layers=content.layers[::-1]))},
        "index and manifest at once": {"/manifests/": manifest(content.manifest(manifests=[]))},
        "index with layers": {"/manifests/": manifest(content.manifest(manifests=[]), f"{OCI}index.v1+json")},
        "another type": {"/manifests/": manifest(content.manifest(), "text/html")},
        "index loop": {"/manifests/": manifest(nested, f"{OCI}index.v1+json")},
        "huge manifest": {"/manifests/": manifest(b" " * (5 << 20))},
        "no JSON": {"/manifests/": manifest(b"{")},
        "deep JSON": {"/manifests/": manifest(b"[" * 100_000)},
        "other platform": {
            "/manifests/": manifest(
                json.dumps(
                    {"manifests": [{"digest": first, "platform": {"os": "plan9", "architecture": "mips"}}]}
                ).encode(),
                f"{OCI}index.v1+json",
            )
        },
        "redirect to the metadata service": {first: redirect("http://169.254.169.254/latest")},
        "redirect to a file": {first: redirect("file:///etc/passwd")},
        "redirect in circles": {first: redirect(f"/v2/team/app/blobs/{first}")},
        "token server inside": {
            "/manifests/": lambda h: h.answer(
                401, WWW_Authenticate='Bearer realm="http://169.254.169.254/",service="x"'
            )
        },
        "unknown authentication": {"/manifests/": lambda h: h.answer(401, WWW_Authenticate="Digest x")},
        "no access": {"/manifests/": lambda h: h.answer(403)},
        "bomb": (bombed, {}),
    }


@pytest.mark.parametrize("name", some(example()))
def test_lies_end_in_an_error_and_no_layer(name: str, store: Layers, monkeypatch: pytest.MonkeyPatch):
    """H13: of every kind."""
    small = Limits(ratio_floor=1 << 20)
    monkeypatch.setattr(
        "openmodal.build.pull.unpack", lambda read, folder, packed, _: unpack(read, folder, packed, small)
    )
    content = example()
    lies = some(content)[name]
    if isinstance(lies, tuple):
        content, lies = lies
    with serve(content, lies) as host, pytest.raises(Error) as caught:
        pull(store, f"{host}/team/app")
    assert type(caught.value).__name__ in ("RegistryError", "Denied", "HostileTar")
    layers = store.path / "layers"
    assert name == "layers in another order" or not layers.exists() or not list(layers.iterdir())
    assert not any((store.path / "tmp").glob("*"))


def test_an_address_inside_is_refused_for_a_registry_outside():
    addresses = {
        "public.example": ["8.8.8.8"],
        "trap.example": ["127.0.0.1"],
        "private.example": ["10.1.2.3"],
        "fine.example": ["1.1.1.1"],
    }
    with Client("public.example", resolver=lambda host: addresses.get(host, [])) as client:
        for host in (
            "trap.example",
            "private.example",
            "127.0.0.1",
            "[::1]",
            "[::ffff:169.254.169.254]",
            "10.0.0.1",
            "0.0.0.0",
        ):
            with pytest.raises(RegistryError, match="refused"):
                client._check_target(f"https://{host}/x")
        client._check_target("https://fine.example/x")
        with pytest.raises(RegistryError, match="not https"):
            client._check_target("http://fine.example/x")


def test_an_interrupted_download_goes_on_where_it_was(store: Layers):
    """R50: half of each blob, then a server error, then the rest."""
    seen: dict[str, int] = {}

    def stutter(handler: Handler) -> None:
        count = seen[handler.path] = seen.get(handler.path, 0) + 1
        data = handler.server.content.blobs[handler.path.rsplit("/", 1)[1]]
        if count == 1:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2])
            handler.close_connection = True
        elif count == 2:
            handler.answer(503, Retry_After="0")
        else:
            assert handler.headers["Range"] == f"bytes={len(data) // 2}-"
            honest(handler)

    content = example()
    with serve(content, {layer["digest"]: stutter for layer in content.layers}) as host:
        check_example(store, pull(store, f"{host}/team/app"))


def test_a_registry_that_is_not_there_is_named(store: Layers, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1\S* cannot be fetched: .*; `openmodal doctor --network`"):
        pull(store, f"127.0.0.1:{free_port()}/team/app")


def test_a_window_of_two_gigabytes_is_refused():
    from openmodal.build.streams import Stream

    frame = bytes([0x28, 0xB5, 0x2F, 0xFD, 0x00, (31 - 10) << 3, 0x01, 0x00, 0x00])
    with pytest.raises(RegistryError, match="too much memory"):
        Stream(io.BytesIO(frame)).read(10)


@pytest.mark.parametrize("pack", [gzip.compress, zstd, plain])
def test_streams_read_several_frames_and_notice_a_cut(pack: Any):
    from openmodal.build.streams import Stream

    data = os.urandom(300_000)
    stream = Stream(io.BytesIO(pack(data) + pack(data)))
    read = b"".join(iter(lambda: stream.read(70_000), b""))
    assert read == data * 2
    assert stream.digest == sha(data * 2)
    if pack is not plain:
        cut = Stream(io.BytesIO(pack(data)[:-9]))
        with pytest.raises(RegistryError, match="cut off"):
            list(iter(lambda: cut.read(1 << 16), b""))
