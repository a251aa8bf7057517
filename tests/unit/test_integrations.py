"""What adapters of frameworks share: compose files as sandboxes, and our errors as theirs."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from openmodal.errors import InvalidError, SandboxNotRunningError, SandboxTimeoutError, UnsupportedError
from openmodal.image import Image
from openmodal.integrations import errors_as, versions
from openmodal.integrations.compose import from_compose


def of_service(folder: str = "/task", **service: Any) -> Any:
    return from_compose({"services": {"box": {"image": "alpine", **service}}}, folder)["box"]


def test_a_service_of_an_image_is_a_sandbox_of_it() -> None:
    plan = of_service()
    assert (plan.image, plan.argv, plan.options) == (Image.from_registry("alpine"), (), {"env": {}})


@pytest.mark.parametrize(
    ("build", "dockerfile", "context"),
    [
        (".", "/task/Dockerfile", "/task"),
        ("sub", "/task/sub/Dockerfile", "/task/sub"),
        ({"context": "/else"}, "/else/Dockerfile", "/else"),
        ({"dockerfile": "a/Dockerfile"}, "/task/a/Dockerfile", "/task"),
    ],
)
def test_a_service_that_is_built_has_its_dockerfile_and_context(build: Any, dockerfile: str, context: str) -> None:
    assert of_service(build=build).image == Image.from_dockerfile(dockerfile, context_dir=context)


@pytest.mark.parametrize(
    ("service", "options"),
    [
        ({"cpus": 1.5}, {"cpu": 1.5}),
        ({"mem_limit": "512m"}, {"memory": 512}),
        ({"mem_limit": "2GB"}, {"memory": 2048}),
        ({"mem_limit": 64 << 20}, {"memory": 64}),
        ({"deploy": {"resources": {"limits": {"cpus": "2", "memory": "1.5g"}}}}, {"cpu": 2.0, "memory": 1536}),
        ({"network_mode": "none"}, {"block_network": True}),
        ({"network_mode": "bridge"}, {}),
        ({"environment": {"A": 1, "B": "$$x"}}, {"env": {"A": "1", "B": "$x"}}),
        ({"environment": ["A=1=2", "HERE", "NOT_HERE"]}, {"env": {"A": "1=2", "HERE": "here"}}),
        ({"x-openmodal": {"runtime": "gvisor", "memory": 99}, "mem_limit": "1g"}, {"runtime": "gvisor", "memory": 99}),
        ({"init": True, "tty": True, "x-default": True, "ports": [], "volumes": None}, {}),
    ],
)
def test_what_a_service_says_is_an_argument(
    service: dict[str, Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE", "here")
    monkeypatch.delenv("NOT_HERE", raising=False)
    assert of_service(**service).options == {"env": {}, **options}


def test_command_entrypoint_user_and_folder_are_the_images_and_the_main_command() -> None:
    alpine = Image.from_registry("alpine")
    assert of_service(command="tail -f '/dev/null'").argv == ("tail", "-f", "/dev/null")
    assert of_service(command=["a", "b c"]).argv == ("a", "b c")
    plan = of_service(entrypoint=["run"], user=1000, working_dir="/srv")
    assert plan.image == alpine.workdir("/srv").user("1000").entrypoint(["run"]).cmd([])


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ({"ports": ["80:80"]}, "ports"),
        ({"volumes": ["a:/a"]}, "volumes"),
        ({"healthcheck": {"test": "true"}}, "healthcheck"),
        ({"privileged": True}, "privileged"),
        ({"network_mode": "host"}, "network_mode 'host'"),
        ({"image": "a:${TAG}"}, r"the variable \$\{"),
        ({"command": "echo $$$HOME"}, r"the variable \$HOME"),
        ({"build": {"context": ".", "args": {"A": "b"}}}, "args"),
        ({"deploy": {"resources": {"reservations": {"devices": [{"driver": "nvidia"}]}}}}, "reservations of devices"),
    ],
)
def test_what_a_sandbox_has_not_is_refused_by_its_name(service: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedError, match=f"'box' has {said}"):
        of_service(**service)


def test_several_services_share_a_network_but_for_those_that_have_none() -> None:
    services = {
        "web": {
            "image": "a",
            "depends_on": {"db": {"condition": "service_started"}},
            "hostname": "www",
            "x-default": True,
        },
        "db": {"image": "b"},
        "judge": {"image": "c", "network_mode": "none", "depends_on": ["web"]},
    }
    plans = from_compose({"services": services}, "/")
    assert [*plans] == ["db", "web", "judge"], "each after those that it depends on"
    assert [plan.chosen for plan in plans.values()] == [False, True, False]
    assert [plan.options.get("network_alias") for plan in plans.values()] == [("db",), ("web", "www"), None]
    assert plans["judge"].options["block_network"]
    assert not any("block_network" in plans[name].options for name in ("web", "db"))
    inside = from_compose({"services": services, "networks": {"default": {"internal": True}}}, "/")
    assert all(plan.options["block_network"] for plan in inside.values())


def test_what_no_services_can_be_is_refused() -> None:
    with pytest.raises(InvalidError, match="no services"):
        from_compose({}, "/")
    with pytest.raises(InvalidError, match="depend on each other, or on one that is not there: a, b"):
        from_compose({"services": {"a": {"image": "b", "depends_on": ["b"]}, "b": {"depends_on": ["a"]}}}, "/")
    healthy = {"image": "b", "depends_on": {"b": {"condition": "service_healthy"}}}
    with pytest.raises(UnsupportedError, match="another condition on 'b' than service_started"):
        from_compose({"services": {"a": healthy, "b": {"image": "b"}}}, "/")
    with pytest.raises(UnsupportedError, match="networks of the compose file has inner"):
        from_compose({"services": {"a": {"image": "b"}}, "networks": {"inner": {"internal": True}}}, "/")


def test_wrong_values_are_the_users() -> None:
    with pytest.raises(InvalidError, match="neither build nor image"):
        of_service(image=None)
    with pytest.raises(InvalidError, match="'much'"):
        of_service(mem_limit="much")


def test_errors_are_a_frameworks_by_the_first_entry_that_fits(tmp_path: Path) -> None:
    class Theirs(Exception):
        pass

    with (
        pytest.raises(Theirs, match="why") as caught,
        errors_as({SandboxNotRunningError: Theirs, TimeoutError: KeyError}),
    ):
        raise SandboxTimeoutError("why")
    assert isinstance(caught.value.__cause__, SandboxTimeoutError)
    with pytest.raises(InvalidError), errors_as({SandboxNotRunningError: Theirs}):
        raise InvalidError("other")


README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.parametrize("framework", versions.FRAMEWORKS, ids=lambda framework: framework.package)
def test_the_readme_names_the_version_of_a_framework_that_was_tested(framework: versions.Framework) -> None:
    rows = [line for line in README.read_text("utf-8").splitlines() if line.startswith("| ")]
    last_cells = [row.split("|")[-2] for row in rows]
    assert any(framework.package in cell and framework.tested in cell for cell in last_cells), framework


def test_doctor_tells_of_the_frameworks_that_are_here_and_of_those_in_other_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = {"inspect_ai": "0.3.285", "harbor": "99.0"}

    def version(package: str) -> str:
        if package not in here:
            raise metadata.PackageNotFoundError(package)
        return here[package]

    monkeypatch.setattr(metadata, "version", version)
    found = {check.name: check for check in versions.checks()}
    assert {name: check.ok for name, check in found.items()} == {
        "framework inspect_ai": True,
        "framework harbor": False,
    }
    harbor = found["framework harbor"]
    assert "99.0" in harbor.text
    assert harbor.remedy.startswith("if it does not work: pip install 'harbor==")
    assert not harbor.required
