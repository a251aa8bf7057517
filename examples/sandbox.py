"""Four agents at the same time, each in a sandbox of its own, doing what coding agents do all day.

    openmodal --local run examples/sandbox.py

Each one commits to a git repository and clones it, installs a package from its sources and runs that package's tests,
gets on with an error, and finds its files again. The first run builds the image; after that it is cached.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import openmodal

app = openmodal.App("sandbox-test")
image = openmodal.Image.debian_slim().apt_install("git").pip_install("pytest", "requests")

GIT = """
git config --global user.name agent && git config --global user.email agent@example.com
git init --quiet --initial-branch main /srv/origin && cd /srv/origin
echo 'print("hello from the clone")' > hello.py
git add hello.py && git commit --quiet --message 'First commit'
git clone --quiet /srv/origin /workspace
"""

PACKAGE_TESTS = """
cd /tmp && pip download --quiet --no-deps --no-binary pathspec pathspec
tar --extract --file pathspec-*.tar.gz && cd pathspec-*/
pip install --quiet . && python3 -m pytest --quiet tests
"""


@dataclass
class Result:
    """What became of an agent."""

    name: str
    create: float
    total: float
    error: str = ""


class WrongError(Exception):
    """Something in a sandbox is not as it should be."""


def sh(sandbox: openmodal.Sandbox, script: str) -> str:
    """Run a script and return its output; it has to succeed."""
    proc = sandbox.exec("bash", "-e", "-c", script)
    if proc.returncode != 0:
        last_lines = (proc.stdout.read() + proc.stderr.read()).strip()[-500:]
        raise WrongError(f"exit code {proc.returncode} of: {script.strip()}\n{last_lines}")
    return proc.stdout.read()


def expect(what: str, found: object, wanted: object) -> None:
    """Check a result."""
    if found != wanted:
        raise WrongError(f"{what}: expected {wanted!r}, found {found!r}")


def work(sandbox: openmodal.Sandbox, number: int) -> None:
    """An agent's day."""
    sh(sandbox, f"echo 'agent {number}' > /root/id.txt")

    sh(sandbox, GIT)
    expect("the clone's log", sh(sandbox, "git -C /workspace log --format=%s"), "First commit\n")
    expect("the clone's program", sh(sandbox, "python3 /workspace/hello.py"), "hello from the clone\n")

    tests = sh(sandbox, PACKAGE_TESTS)
    expect("the package's tests", " passed" in tests, True)
    expect("the image's package", sh(sandbox, "python3 -c 'import requests; print(requests.codes.ok)'"), "200\n")

    failed = sandbox.exec("bash", "-c", "echo 'no such luck' >&2; exit 3")
    expect("an exit code", (failed.returncode, failed.stderr.read()), (3, "no such luck\n"))

    sh(sandbox, "sleep 3")
    expect("a file of an earlier command", sandbox.filesystem.read_text("/root/id.txt"), f"agent {number}\n")


def run_agent(number: int) -> Result:
    """Create a sandbox, work in it, end it."""
    start = time.monotonic()
    name, create, error = f"Agent {number}", 0.0, ""
    try:
        with openmodal.Sandbox.create(image=image, app=app, timeout=300) as sandbox:
            create = time.monotonic() - start
            name = f"Agent {number} ({sandbox.id})"
            work(sandbox, number)
    except (WrongError, openmodal.Error) as problem:
        error = str(problem)
    return Result(name, create, time.monotonic() - start, error)


@app.local_entrypoint()
def main(agents: int = 4) -> None:
    """Run so many agents at the same time."""
    print(f"Launching {agents} sandboxes in parallel...\n", flush=True)
    start = time.monotonic()
    failures = 0
    with ThreadPoolExecutor(max_workers=agents) as pool:
        for result in pool.map(run_agent, range(agents)):
            if result.error:
                failures += 1
                print(f"{result.name}: FAILED after {result.total:.1f}s: {result.error}", flush=True)
            else:
                print(f"{result.name}: create={result.create:.1f}s total={result.total:.1f}s", flush=True)
    if failures:
        sys.exit(f"\n{failures} of {agents} agents failed")
    print(f"\nAll {agents} agents passed in {time.monotonic() - start:.1f}s")
