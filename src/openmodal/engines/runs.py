"""The end of a run, `App.run` or `openmodal run`: its sandboxes end with it."""

from __future__ import annotations

from openmodal._dual import run_sync
from openmodal.engines.contract import Engine
from openmodal.errors import Error


def end(engine: Engine, run: str, *, at_once: int = 8) -> int:
    """End the sandboxes of a run, so many at once; return how many there were.

    `at_once=1` starts no thread, which an interpreter that exits no longer can.

    Raises:
        Error: one could not be ended; all others are.
    """
    ids = [status.id for status in run_sync(engine.list()) if status.run == run]
    failed: list[Error] = []

    def stop(id: str) -> None:
        try:
            run_sync(engine.stop(id))
        except Error as error:
            failed.append(error)

    if at_once == 1 or len(ids) < 2:
        for id in ids:
            stop(id)
    else:
        # Not above: each program imports this module, and few end several sandboxes with a run.
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(stop, ids))
    if failed:
        raise failed[0]
    return len(ids)
