"""Wrong arguments: each raises InvalidError that names the argument and the remedy, before anything is created."""

from __future__ import annotations

from typing import Any

import pytest

from openmodal.app import App
from openmodal.engines import Engine, lacking
from openmodal.errors import EngineError, InvalidError, UnsupportedError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.secret import Secret
from openmodal.testing.fixtures import PROMISES, Create, SandboxClass
from openmodal.volume import HostDirectory, Volume

CREATE: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "timeout zero": ((), {"timeout": 0}, "timeout"),
    "timeout negative": ((), {"timeout": -1}, "timeout"),
    "timeout text": ((), {"timeout": "300"}, "timeout"),
    "timeout bool": ((), {"timeout": True}, "timeout"),
    "timeout nan": ((), {"timeout": float("nan")}, "timeout"),
    "timeout infinite": ((), {"timeout": float("inf")}, "timeout"),
    "timeout none": ((), {"timeout": None}, "timeout"),
    "timeout of many years": ((), {"timeout": 1e300}, "timeout"),
    "timeout that no float holds": ((), {"timeout": 10**5000}, "timeout"),
    "on_idle odd": ((), {"on_idle": "stop", "idle_timeout": 5}, "on_idle"),
    "on_idle without idle_timeout": ((), {"on_idle": "pause"}, "idle_timeout"),
    "on_idle with lease": ((), {"on_idle": "pause", "idle_timeout": 5, "lease": 5}, "lease"),
    "snapshot_on_end odd": ((), {"snapshot_on_end": "a/b"}, "snapshot_on_end"),
    "id empty": ((), {"id": ""}, "id"),
    "id capitals": ((), {"id": "My-Id"}, "id"),
    "id long": ((), {"id": "x" * 41}, "id"),
    "id hyphens": ((), {"id": "a--b"}, "id"),
    "id path": ((), {"id": "../a"}, "id"),
    "id line": ((), {"id": "a\n"}, "id"),
    "id number": ((), {"id": 7}, "id"),
    "lease zero": ((), {"lease": 0}, "lease"),
    "owner text": ((), {"owner": "me"}, "owner"),
    "idle_timeout nan": ((), {"idle_timeout": float("nan")}, "idle_timeout"),
    "idle_timeout infinite": ((), {"idle_timeout": float("inf")}, "idle_timeout"),
    "idle_timeout zero": ((), {"idle_timeout": 0}, "idle_timeout"),
    "idle_timeout text": ((), {"idle_timeout": "1"}, "idle_timeout"),
    "app text": ((), {"app": "my-app"}, "App"),
    "image text": ((), {"image": "debian"}, "from_registry"),
    "name empty": ((), {"name": ""}, "name"),
    "name with a slash": ((), {"name": "a/b"}, "name"),
    "name number": ((), {"name": 7}, "name"),
    "name too long": ((), {"name": "x" * 64}, "name"),
    "name that ends in a newline": ((), {"name": "x\n"}, "name"),
    "tags list": ((), {"tags": ["a"]}, "tags"),
    "tags numbers": ((), {"tags": {"a": 1}}, "tags"),
    "tags odd": ((), {"tags": {"a b": "c"}}, "tags"),
    "tags reserved": ((), {"tags": {"openmodal-run": "x"}}, "reserved"),
    "env list": ((), {"env": ["A=b"]}, "env"),
    "env number": ((), {"env": {"A": 1}}, "env"),
    "env name": ((), {"env": {"A=B": "c"}}, "env"),
    "env name empty": ((), {"env": {"": "c"}}, "env"),
    "env NUL": ((), {"env": {"A": "a\0b"}}, "NUL"),
    "secrets not in a list": ((), {"secrets": Secret({"A": "b"})}, "secrets"),
    "secrets dict": ((), {"secrets": [{"A": "b"}]}, "secrets"),
    "workdir empty": ((), {"workdir": ""}, "workdir"),
    "workdir number": ((), {"workdir": 7}, "workdir"),
    "cpu zero": ((), {"cpu": 0}, "cpu"),
    "cpu text": ((), {"cpu": "2"}, "cpu"),
    "cpu nan": ((), {"cpu": float("nan")}, "cpu"),
    "cpu absurd": ((), {"cpu": 1e300}, "cpu"),
    "memory absurd": ((), {"memory": 1 << 40}, "memory"),
    "memory that no float holds": ((), {"memory": 10**5000}, "memory"),
    "disk absurd": ((), {"disk": 1 << 24}, "disk"),
    "memory too small": ((), {"memory": 1}, "memory"),
    "memory text": ((), {"memory": "1GB"}, "memory"),
    "memory fraction": ((), {"memory": 512.5}, "memory"),
    "memory bool": ((), {"memory": True}, "memory"),
    "disk negative": ((), {"disk": -1}, "disk"),
    "networks text": ((), {"outbound_cidr_allowlist": "192.0.2.0/24"}, "list"),
    "networks with host bits": ((), {"outbound_cidr_allowlist": ["192.0.2.1/24"]}, "192.0.2.0/24"),
    "networks with a name": ((), {"outbound_cidr_allowlist": ["example.com"]}, "outbound_cidr_allowlist"),
    "networks number": ((), {"outbound_cidr_allowlist": [7]}, "string"),
    "domains text": ((), {"outbound_domain_allowlist": "example.com"}, "list"),
    "domains with a URL": ((), {"outbound_domain_allowlist": ["https://example.com"]}, "without scheme"),
    "domains with a port": ((), {"outbound_domain_allowlist": ["example.com:443"]}, "port"),
    "domains with an address": ((), {"outbound_domain_allowlist": ["192.0.2.1"]}, "address"),
    "domains all": ((), {"outbound_domain_allowlist": ["*"]}, "example.com"),
    "lists and no network": ((), {"outbound_cidr_allowlist": [], "block_network": True}, "block_network"),
    "allow_degraded unknown": ((), {"allow_degraded": ["everything"]}, "limits, network, seccomp"),
    "allow_degraded text": ((), {"allow_degraded": "limits"}, "allow_degraded"),
    "unknown keyword": ((), {"timeot": 3}, "did you mean timeout"),
    "unknown keyword without a like": ((), {"xyzzy": 3}, "xyzzy"),
    "a keyword of docker": ((), {"mem_limit": "1g"}, "memory="),
    "a keyword of modal": ((), {"region": "eu"}, "engine="),
    "argument number": (("sleep", 5), {}, "argument 2"),
    "argument NUL": (("sleep", "a\0b"), {}, "NUL"),
    "argument list": ((["sleep", "5"],), {}, "argument 1"),
    "argument bytes": ((b"sleep",), {}, "argument 1"),
    "argument empty": (("",), {}, "command"),
    "argument too large": (("echo", "x" * 131_072), {}, "stdin"),
    "arguments too large": (("echo", *["x" * 131_071] * 16), {}, "stdin"),
}

EXEC: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "nothing": ((), {}, "command"),
    "empty": (("",), {}, "command"),
    "number": (("sleep", 5), {}, "argument 2"),
    "list": ((["ls", "-l"],), {}, "argument 1"),
    "bytes": ((b"ls",), {}, "argument 1"),
    "None": (("ls", None), {}, "argument 2"),
    "NUL": (("echo", "a\0b"), {}, "NUL"),
    "half a surrogate pair": (("echo", "\ud800"), {}, "surrogate"),
    "unknown keyword": (("ls",), {"xyzzy": "/"}, "xyzzy"),
    "a keyword of subprocess": (("ls",), {"cwd": "/"}, "workdir="),
    "a shell by keyword": (("ls | wc",), {"shell": True}, '"-c"'),
    "misspelt keyword": (("ls",), {"workdr": "/"}, "did you mean workdir"),
    "timeout zero": (("ls",), {"timeout": 0}, "timeout"),
    "timeout negative": (("ls",), {"timeout": -0.5}, "timeout"),
    "timeout text": (("ls",), {"timeout": "1"}, "timeout"),
    "timeout nan": (("ls",), {"timeout": float("nan")}, "timeout"),
    "timeout infinite": (("ls",), {"timeout": float("inf")}, "timeout"),
    "timeout absurd": (("ls",), {"timeout": 1e300}, "timeout"),
    "workdir empty": (("ls",), {"workdir": ""}, "workdir"),
    "workdir path": (("ls",), {"workdir": 7}, "workdir"),
    "env list": (("ls",), {"env": ["A=b"]}, "env"),
    "env number": (("ls",), {"env": {"A": 1}}, "env"),
    "env name": (("ls",), {"env": {"A=B": "c"}}, "env"),
    "env value too large": (("ls",), {"env": {"A": "x" * 131_070}}, "131072"),
    "env too many": (("ls",), {"env": {f"VARIABLE_{n}": "x" for n in range(100_000)}}, "2097152"),
    "max_output negative": (("ls",), {"max_output": -1}, "max_output"),
    "max_output text": (("ls",), {"max_output": "1GB"}, "max_output"),
    "max_output bool": (("ls",), {"max_output": True}, "max_output"),
    "max_output fraction": (("ls",), {"max_output": 1e6}, "max_output"),
    "keep odd": (("ls",), {"keep": "middle"}, "keep"),
    "keep a number": (("ls",), {"keep": 64}, "keep.*max_output"),
    "keep of all": (("ls",), {"max_output": None, "keep": "tail"}, "keep"),
    "a tail beyond memory": (("ls",), {"max_output": (8 << 20) + 1, "keep": "tail"}, "8388608"),
    "secrets not in a list": (("ls",), {"secrets": Secret({"A": "b"})}, "secrets"),
    "secrets text": (("ls",), {"secrets": ["token"]}, "secrets"),
    "user number": (("ls",), {"user": 0}, "user"),
    "user NUL": (("ls",), {"user": "a\0b"}, "NUL"),
    "stdout text": (("ls",), {"stdout": "pipe"}, "stdout"),
    "stderr text": (("ls",), {"stderr": "devnull"}, "stderr"),
    "argument too large": (("echo", "x" * 131_072), {}, "stdin"),
    "arguments too large": (("echo", *["x" * 131_071] * 16), {}, "stdin"),
}

_MISSING = Volume.from_name("contract-missing", create_if_missing=True)

ASKING: dict[str, tuple[dict[str, Any], str]] = {
    "gpus": ({"gpu": 1}, "gpu="),
    "gvisor": ({"runtime": "gvisor"}, "runtime='gvisor'"),
    "host_folders": ({"volumes": {"/here": HostDirectory("/srv")}}, "folders of this machine"),
    "ids": ({"id": "chosen"}, "id="),
    "idle_pause": ({"on_idle": "pause", "idle_timeout": 60}, "on_idle="),
    "idle_timeout": ({"idle_timeout": 60}, "idle_timeout="),
    "lease": ({"lease": 60}, "lease="),
    "network_allowlists": ({"outbound_domain_allowlist": ["example.com"], "block_network": False}, "allow lists"),
    "network_block": ({"block_network": True}, "block_network="),
    "ports": ({"ports": [80]}, "ports="),
    "network_shared": ({"network": "shop", "block_network": False}, "network"),
    "network_lists": ({"outbound_cidr_allowlist": ["203.0.113.0/24"], "block_network": False}, "allow lists"),
    "owner": ({"owner": "process"}, "lease="),
    "snapshot_on_end": ({"snapshot_on_end": "kept"}, "snapshot_on_end="),
    "volume_sub_paths": ({"volumes": {"/part": _MISSING.with_mount_options(sub_path="a")}}, "sub_path="),
    "volumes": ({"volumes": {"/all": _MISSING}}, "volumes"),
}
"""What asks for a promise, and a word of the refusal."""


class TestMistakes:
    @pytest.mark.parametrize("mistake", CREATE)
    def test_create_refuses(
        self, sandboxes: SandboxClass, engine: Engine, image: Image, app: App, mistake: str
    ) -> None:
        args, options, word = CREATE[mistake]
        given: dict[str, Any] = {"app": app, "image": image, "engine": engine, **options}
        before = [sandbox.id for sandbox in Sandbox.list(engine=engine)]
        with pytest.raises(InvalidError, match=word) as caught:
            sandboxes.create(*args, **given)
        assert isinstance(caught.value, ValueError)
        assert "\n" not in str(caught.value)
        assert [sandbox.id for sandbox in Sandbox.list(engine=engine)] == before

    @pytest.mark.parametrize("function", ["exec", "spawn"])
    def test_exec_and_spawn_refuse(self, sandbox: Sandbox, function: str) -> None:
        for mistake, (args, options, word) in EXEC.items():
            with pytest.raises(InvalidError, match=word) as caught:
                getattr(sandbox, function)(*args, **options)
            assert "\n" not in str(caught.value), mistake
        assert sandbox.exec("true").returncode == 0

    @pytest.mark.parametrize("stdin", [7, ["x"], {"a": "b"}, 1.5])
    def test_exec_refuses_a_stdin_that_is_none(self, sandbox: Sandbox, stdin: object) -> None:
        with pytest.raises(InvalidError, match="stdin"):
            sandbox.exec("cat", stdin=stdin)  # type: ignore[call-overload]

    def test_spawn_has_no_stdin_keyword(self, sandbox: Sandbox) -> None:
        with pytest.raises(InvalidError, match="stdin"):
            sandbox.spawn("cat", stdin="x")  # type: ignore[call-overload]

    @pytest.mark.parametrize(
        "option",
        [
            {"ports": [0]},
            {"readiness_probe": object()},
            {"runtime": "no-such-runtime"},
        ],
        ids=lambda option: next(iter(option)),
    )
    def test_what_cannot_be_done_is_refused_and_not_ignored(self, create: Create, option: dict[str, Any]) -> None:
        with pytest.raises((UnsupportedError, InvalidError), match=next(iter(option))):
            create(**option)

    def test_gpus_are_given_or_refused_and_never_ignored(self, create: Create, engine: Engine) -> None:
        for wrong in (0, -1, True, 1.5, "", "A100:0", "A 100", ["A100"]):
            with pytest.raises(InvalidError, match="gpu"):
                create(gpu=wrong)
        if "gpus" in lacking(engine):
            for asked in (1, "any", "A100:2"):
                with pytest.raises(UnsupportedError, match="gpu"):
                    create(gpu=asked)

    def test_what_the_engine_lacks_is_refused_before_anything_is_built(
        self, create: Create, engine: Engine, image: Image
    ) -> None:
        long = image.run_commands("sleep 3600")
        for name, (arguments, word) in ASKING.items():
            if name in lacking(engine):
                with pytest.raises((UnsupportedError, EngineError), match=word):
                    create(image=long, **arguments)

    def test_the_engine_lacks_nothing_that_has_no_name(self, engine: Engine) -> None:
        assert engine.lacks <= PROMISES.keys()

    def test_wait_refuses_timeouts_that_cannot_be(self, sandbox: Sandbox) -> None:
        for timeout in (0, -1, "1", float("nan"), float("inf"), 1e300, 10**5000):
            with pytest.raises(InvalidError, match="timeout"):
                sandbox.wait(timeout=timeout)  # type: ignore[arg-type]

    def test_finding_refuses_what_cannot_be(self, sandboxes: SandboxClass, engine: Engine) -> None:
        with pytest.raises(InvalidError):
            sandboxes.from_id(7, engine=engine)  # type: ignore[arg-type]
        with pytest.raises(InvalidError):
            sandboxes.from_name("a/b", "c", engine=engine)
        with pytest.raises(InvalidError):
            sandboxes.list(tags=["a"], engine=engine)  # type: ignore[arg-type]

    @pytest.mark.parametrize("engine_argument", ["no-such-engine", "no.such.module:Engine"])
    def test_an_engine_that_does_not_exist_is_refused(
        self, sandboxes: SandboxClass, app: App, image: Image, engine_argument: str
    ) -> None:
        with pytest.raises(InvalidError, match="engine"):
            sandboxes.create(app=app, image=image, engine=engine_argument)


__all__ = ["TestMistakes"]
