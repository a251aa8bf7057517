"""What all tests share: where their state lives, which skips are failures, and the leak check after
every test.

With `-n` (pytest-xdist) each worker has a state folder and a folder of temporary files of its own,
so that its leak check knows what is its own; what lies in the machine's shared places is looked at
once, when all are done.
"""

from __future__ import annotations

import fcntl
import gc
import itertools
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from openmodal.engines.embedded import network
from tests import leaks
from tests.leaks import no_leaks  # noqa: F401  (an autouse fixture)
from tests.selection import leave_out

ROOT = Path(__file__).resolve().parent.parent
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
BEFORE = pytest.StashKey[leaks.Ledger]()


# Tests change this machine's firewall and create at once.
network.LOOK_SECONDS = 0.0


def _own_environment() -> None:
    """Tests see no sandbox of the user, and workers none of each other. Children inherit all of it."""
    given = os.environ.get("OPENMODAL_HOME")
    if WORKER or not given:
        os.environ["OPENMODAL_HOME"] = str(_state(Path(given) if given else _default_state()))
    if WORKER:
        os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix=leaks.TEMPORARY)
    # The leak check knows by it which processes are of this run. A worker's begins with the run's.
    run = os.environ["OPENMODAL_TEST_RUN"] if WORKER else uuid.uuid4().hex
    os.environ["OPENMODAL_TEST_RUN"] = f"{run}{WORKER}."


def _default_state() -> Path:
    return (Path("/var/lib") if os.geteuid() == 0 else Path.home() / ".cache") / "openmodal-test"


def _state(base: Path) -> Path:
    """A folder that no other run of the tests uses now. It stays: the cache of images in it saves minutes the next time."""
    for number in itertools.count():
        folder = base.with_name(f"{base.name}{number or ''}")
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        lock = os.open(folder / "tests.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return folder  # the lock is held until this process ends
    raise AssertionError


_own_environment()
# Child interpreters find the package as pytest does (pyproject.toml: pythonpath), installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
# They start quicker when they need not compile it each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A shell has its background jobs, and nohup its program, ignore these; children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# The user's own choice of engine, and a Docker daemon that happens to run, must not change what is
# tested: `--local` means the embedded engine here, but for the tests in tests/docker, which find
# the daemon by a name of their own.
os.environ.pop("OPENMODAL_ENGINE", None)
os.environ.setdefault("OPENMODAL_TEST_DOCKER", os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
os.environ["DOCKER_HOST"] = "unix:///nonexistent/docker.sock"

FEATURES = ("embedded", "docker", "kubernetes", "gvisor", "browser", "machine", "network", "root", "user", "linters")
"""Markers whose tests may be skipped where the machine cannot run them, unless OPENMODAL_MUST_WORK names them."""


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[BEFORE] = leaks.take()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Look at the places that workers share, when all of them have ended."""
    if WORKER:
        shutil.rmtree(tempfile.gettempdir())
    elif session.config.getoption("numprocesses", None) and (left := leaks.left_since(session.config.stash[BEFORE])):
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        assert reporter
        reporter.write_line("the run left behind:\n  " + "\n  ".join(left), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


DAEMONS = ("docker", "kubernetes")
"""Folders of tests for which a daemon or a set of pods is kept up: each is one worker's."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, a class or a file of functions is one worker's work, and so is a folder with a daemon; in the order of the items."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    config.option.loadscopereorder = False
    return Scheduler(config, log)


def _scope(nodeid: str) -> str:
    folder = nodeid.split("/")[1]
    return folder if folder in DAEMONS else nodeid.rpartition("::")[0]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long begins first: else one worker would be at it when the others have nothing left."""
    leave_out(config, items, _is_one_gigabyte_too_many)
    leave_out(config, items, _is_two_gigabytes_of_packages)
    long = {_scope(item.nodeid) for item in items if item.get_closest_marker("slow")}
    if config.getoption("numprocesses", None) or WORKER:
        items.sort(key=lambda item: (_scope(item.nodeid) not in DAEMONS, _scope(item.nodeid) not in long))


def _is_one_gigabyte_too_many(item: pytest.Item) -> bool:
    """It costs a busy machine a minute, and goes through one engine: that it becomes no memory is the SDK's, the same for all."""
    most_direct = "embedded" in item.path.parts and "[blocking" in item.name
    return "test_one_gigabyte" in item.name and not most_direct


def _is_two_gigabytes_of_packages(item: pytest.Item) -> bool:
    """OPENMODAL_PROGRAMS=all runs them (tests/programs.py)."""
    return "test_a_big_program" in item.name and os.environ.get("OPENMODAL_PROGRAMS") != "all"


def pytest_collection_finish() -> None:
    """Thousands of items are no garbage until the end: without this, each full collection looks at all of them again."""
    gc.collect()
    gc.freeze()


def pytest_itemcollected(item: pytest.Item) -> None:
    """A folder named like a feature marks its tests: tests/embedded, tests/docker …"""
    for feature in set(item.path.relative_to(ROOT).parts) & set(FEATURES):
        item.add_marker(feature)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> None:
    leaks.forget_after(request.config, fixturedef)


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> None:
    leaks.forget_after(request.config, fixturedef)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # A test that names its own needs may be skipped where they are not there, whatever folder it is in.
    features = {str(name) for mark in item.iter_markers("feature") for name in mark.args}
    features = features or {mark.name for mark in item.iter_markers() if mark.name in FEATURES}
    _fail_if_skipped(report, features)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself (`importorskip`) is a skip, too."""
    report = yield
    _fail_if_skipped(report, {part for part in collector.path.parts if part in FEATURES})
    return report


_LACKS = " engine lacks "
"""What the contract suite says of promises that an engine declares not to keep: those may be skipped."""


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport, features: set[str]) -> None:
    must_work = {name.strip() for name in os.environ.get("OPENMODAL_MUST_WORK", "").split(",")}
    if report.skipped and not hasattr(report, "wasxfail") and (broken := sorted(features & must_work)):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if _LACKS in reason:
            return
        report.outcome = "failed"
        report.longrepr = f"not run, but OPENMODAL_MUST_WORK says that {', '.join(broken)} works here: {reason}"
