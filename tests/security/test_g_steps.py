"""G. The network of steps of images. What is reached or not is counted by servers of the test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from openmodal.engines.embedded import Embedded, mirrors, network, uplink
from openmodal.errors import ImageBuildError
from openmodal.image import Image
from openmodal.testing.limits import own_addresses
from tests.embedded.test_network import on_loopback
from tests.security.test_g_network import counting

METADATA, PRIVATE = "169.254.169.254", "10.99.96.1"


@pytest.fixture(autouse=True)
def no_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's configuration names."""
    monkeypatch.setattr(mirrors, "_configuration", lambda: [os.environ.get("OPENMODAL_MIRRORS", "")])


@pytest.fixture
def here() -> Iterator[tuple[int, list[str]]]:
    """A server on all addresses of this machine, which has one of a private network and the clouds' metadata's; and who came."""
    with on_loopback(METADATA), on_loopback(PRIVATE), counting("0.0.0.0") as found:
        yield found


def said(engine: Embedded, image: Image, script: str) -> str:
    """What a step prints; it is made to fail, and so is never taken from the cache."""
    with pytest.raises(ImageBuildError) as caught:
        image.run_commands(f"({script}); exit 1").build(engine=engine)
    return caught.value.output


def reached(engine: Embedded, image: Image, servers: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Which of these answer a step; all are tried at once. A gate accepts what it then refuses, so a connection alone says nothing."""
    ask = "(printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 1)"
    tries = "".join(
        f"({ask} | timeout 20 nc {host} {port} | grep -q . && echo reached {host} {port}) & " for host, port in servers
    )
    lines = [line.split() for line in said(engine, image, f"{tries} wait").splitlines() if line.startswith("reached ")]
    return {(host, int(port)) for _, host, port in lines}


def everywhere(port: int) -> set[tuple[str, int]]:
    """Addresses of this machine, and of whom it only can reach."""
    fixed = ("127.0.0.1", "127.1.2.3", METADATA, PRIVATE, uplink.HOST, network.GATEWAY)
    return {(host, port) for host in (*fixed, *own_addresses())}


def test_a_step_of_an_image_reaches_neither_this_machine_nor_its_networks(
    engine: Embedded, armed: Image, here: tuple[int, list[str]], outbound: tuple[str, int]
) -> None:
    """G2, G4, G5: what a package runs when it is installed is nobody's own code."""
    port, came = here
    assert reached(engine, armed, {*everywhere(port), outbound}) == {outbound}, "the internet is the control"
    assert came == []


def test_a_mirror_that_this_machine_names_is_reached_at_its_port_and_nothing_else(
    engine: Embedded,
    armed: Image,
    here: tuple[int, list[str]],
    outbound: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G2, G4, G5: the control of the test above, too: a step that reaches something is noticed."""
    port, came = here
    mirrors_here = {("127.0.0.1", port), (PRIVATE, port)}
    monkeypatch.setenv("OPENMODAL_MIRRORS", f"http://127.0.0.1:{port}/simple http://user:word@{PRIVATE}:{port}")
    with counting("0.0.0.0") as (other, others):
        servers = {*everywhere(port), *everywhere(other), outbound}
        assert reached(engine, armed, servers) == {*mirrors_here, outbound}
        assert others == []
    assert len(came) == 2


def test_no_configuration_opens_the_clouds_metadata(
    engine: Embedded, armed: Image, here: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """G4: nor the sandboxes' own network. With a mirror beside, so that there is a gate that could."""
    port, came = here
    named = (METADATA, network.GATEWAY, uplink.HOST, "127.0.0.1")
    monkeypatch.setenv("OPENMODAL_MIRRORS", " ".join(f"http://{host}:{port}" for host in named))
    assert reached(engine, armed, [(host, port) for host in named]) == {("127.0.0.1", port)}, "which is the control"
    assert came == ["127.0.0.1"]


def test_a_recipe_names_no_mirror(engine: Embedded, armed: Image, here: tuple[int, list[str]]) -> None:
    """G2: a Dockerfile may be a stranger's."""
    port, came = here
    url = f"http://127.0.0.1:{port}/"
    image = armed.env({"PIP_INDEX_URL": url, "http_proxy": url}).run_commands(f"echo {url} > /etc/pip.conf")
    assert reached(engine, image, [("127.0.0.1", port)]) == set()
    assert came == []


# ------------------------------------------------------------------------------------- what is read


def test_urls_of_a_configuration_are_read_and_comments_are_not() -> None:
    text = """
    deb [signed-by=/x] HTTPS://Mirror.Example/debian bookworm main
    # deb http://commented.example/debian
    ; index-url = http://commented.example/
    // Acquire::http::Proxy "http://commented.example:1";
    Acquire::http::Proxy "http://10.1.2.3:3142/";
    index-url = http://name:pass%40word@127.0.0.1:3141/root/pypi/+simple/
    extra-index-url = file:///opt/pypi ftp://files.example http://bad.example:99999
    """
    expected = {("mirror.example", 443), ("10.1.2.3", 3142), ("127.0.0.1", 3141)}
    assert mirrors.urls(text) == expected


def test_variables_of_package_managers_and_proxies_name_mirrors() -> None:
    code = "from openmodal.engines.embedded import mirrors; print(*mirrors.private())"
    names = ("PIP_INDEX_URL", "UV_INDEX_URL", "npm_config_registry", "https_proxy", "OPENMODAL_MIRRORS", "OTHER_URL")
    variables = {name: f"http://10.1.2.{number}:80{number}" for number, name in enumerate(names)}
    environment = {**os.environ, **variables, "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert {f"10.1.2.{number}:80{number}" for number in range(5)} <= set(done.stdout.split())
    assert "10.1.2.5:805" not in done.stdout


def test_files_of_apt_and_pip_name_mirrors(tmp_path: Path) -> None:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "apt/sources.list.d/x.sources").write_text("URIs: http://10.1.2.3/debian\n")
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://10.1.2.4/simple\n")
    texts = mirrors._texts(tmp_path, mirrors._SYSTEM)
    assert set().union(*map(mirrors.urls, texts)) == {("10.1.2.3", 80), ("10.1.2.4", 443)}
