"""The frameworks that were tested with OpenModal, and in which version: the one table of them.

`openmodal doctor` compares it with what is installed; a test compares the README with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

from openmodal.engines.check import Check


class Framework(NamedTuple):
    """A framework: its package in the index, the newest version that was tested, and how it is
    used with OpenModal."""

    package: str
    tested: str
    how: str


FRAMEWORKS = (
    Framework("deepagents", "0.7.32", "`openmodal.integrations.deepagents`"),
    Framework("harbor", "0.26.0", "`--env openmodal.integrations.harbor:OpenModalEnvironment`"),
    Framework("inspect_ai", "0.3.285", '`sandbox="openmodal"`'),
    Framework("mcp", "2.3.0", "`openmodal mcp`"),
    Framework("mini-swe-agent", "2.4.6", "`openmodal.integrations.mini_swe_agent`"),
    Framework("modal", "1.6.4", "`openmodal serve`"),
    Framework("nemo-gym", "0.4.0", "its sandbox provider `openmodal`"),
    Framework("openai-agents", "0.24.0", "`openmodal.integrations.openai_agents`"),
    Framework("openenv-core", "0.3.0", "`openmodal.integrations.openenv`"),
    Framework("openhands-sdk", "1.58.2", "`openmodal.integrations.openhands`"),
    Framework("smolagents", "1.26.0", "`openmodal.integrations.smolagents`"),
    Framework("swe-rex", "1.4.0", "`openmodal.integrations.swe_rex`"),
    Framework("verifiers", "0.4.0", "`openmodal serve`, as its Modal runtime"),
)


def checks() -> Iterator[Check]:
    """What is said of each framework that is installed beside OpenModal."""
    for framework in FRAMEWORKS:
        try:
            found = metadata.version(framework.package)
        except metadata.PackageNotFoundError:
            continue
        yield _check(framework, found)


def _check(framework: Framework, found: str) -> Check:
    package, tested, how = framework
    if found == tested:
        return Check(f"framework {package}", True, f"{found} is the version that was tested; use it by {how}")
    return Check(
        f"framework {package}",
        False,
        f"{found} is here, and {tested} was tested; use it by {how}",
        f"if it does not work: pip install '{package}=={tested}'",
    )


__all__ = ["FRAMEWORKS", "Framework", "checks"]
