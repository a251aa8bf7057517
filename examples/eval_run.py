"""An evaluation: many tasks, each tried in a fresh sandbox and graded there by its tests, with a table of results.

    openmodal --local run examples/eval_run.py --parallel 8

In place of a model, the attempts stand in this file: one that is right, one that is wrong, one that never ends.
"""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import openmodal

app = openmodal.App("eval-run")
image = openmodal.Image.debian_slim().pip_install("pytest")


class Task(NamedTuple):
    """What was asked for is in the tests; `attempt` is what the model wrote."""

    name: str
    attempt: str
    tests: str


PALINDROME = (
    "from solution import f\n\ndef test_it():\n    assert f('Never odd or even')\n    assert not f('palindrome')\n"
)
TASKS = [
    Task(
        "palindrome/right",
        "def f(s):\n    t = [c.lower() for c in s if c.isalpha()]\n    return t == t[::-1]\n",
        PALINDROME,
    ),
    Task("palindrome/wrong", "def f(s):\n    return s == s[::-1]\n", PALINDROME),
    Task("palindrome/stuck", "def f(s):\n    while True: pass\n", PALINDROME),
]


def grade(task: Task) -> str:
    """Put the attempt and its tests into a sandbox and see what pytest says."""
    with openmodal.Sandbox.create(
        image=image, app=app, timeout=120, block_network=True, tags={"kind": "eval"}
    ) as sandbox:
        files = sandbox.filesystem
        files.write_text("/work/solution.py", task.attempt)
        files.write_text("/work/test_solution.py", task.tests)
        try:
            proc = sandbox.exec("python3", "-m", "pytest", "-q", workdir="/work", timeout=5)
        except openmodal.ExecTimeoutError:
            return "timeout"
        return {0: "passed", 1: "failed"}.get(proc.returncode or 0, "error")


@app.local_entrypoint()
def main(parallel: int = 4, rounds: int = 2, as_json: bool = False) -> None:
    """Try every task `rounds` times."""
    tasks = TASKS * rounds
    with ThreadPoolExecutor(max_workers=parallel) as pool:
        outcomes = list(pool.map(grade, tasks))
    by_task = {task.name: Counter(o for t, o in zip(tasks, outcomes, strict=True) if t is task) for task in TASKS}
    if as_json:
        print(json.dumps(by_task))
        return
    for name, outcome in by_task.items():
        print(f"{name:20}" + ", ".join(f"{count} {what}" for what, count in outcome.items()))
    print(f"{outcomes.count('passed')} of {len(tasks)} attempts passed")
