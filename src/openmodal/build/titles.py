"""Steps in words, as they would be written in a Dockerfile: for progress, errors and `repr`."""

from __future__ import annotations

import json
import os
import re
import shlex

from openmodal._spec import AnyStep, Config, Copy, Dockerfile, Origin, Run
from openmodal.build import origin

_WIDTH = 200


def title(step: AnyStep) -> str:
    """One line, shortened if it is long."""
    text = " ".join(_full(step).split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _full(step: AnyStep) -> str:
    if isinstance(step, Origin):
        beginning = origin.of(step)
        return beginning.title if beginning else ""
    match step:
        case Dockerfile():
            return f"Dockerfile {os.path.basename(step.path)}" if step.path else "Dockerfile commands"
        case Run():
            return f"RUN {command(step.argv)}"
        case Copy():
            return f"COPY {os.path.basename(step.source.rstrip('/'))} {step.target}"
        case Config():
            return _config(step)


def command(argv: tuple[str, ...]) -> str:
    """A shell's line as written, other commands quoted; without apt's options."""
    line = argv[2] if len(argv) == 3 and argv[1] == "-c" else shlex.join(argv)
    return re.sub(r"(?<=apt-get)( -o \S+)+", "", line)


def _config(step: Config) -> str:
    # Only names: somebody may have put a secret into a value in spite of all.
    parts = ["ENV " + " ".join(f"{name}=…" for name, _ in step.env)] if step.env else []
    parts += [f"WORKDIR {step.workdir}"] if step.workdir is not None else []
    parts += [f"USER {step.user}"] if step.user is not None else []
    parts += [f"ENTRYPOINT {json.dumps(step.entrypoint)}"] if step.entrypoint is not None else []
    parts += [f"CMD {json.dumps(step.cmd)}"] if step.cmd is not None else []
    return "; ".join(parts) or "ENV"
