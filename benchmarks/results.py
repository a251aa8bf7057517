"""Figures, targets, and the one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles


@dataclass
class Row:
    """One step, measured.

    Attributes:
        ours, floor, docker, engine: each measurement, in `unit`: the embedded engine's, the
            floor's, the bare Docker API's, and our Docker engine's.
        target: what the median has to reach; for rates (`more_is_better`) at least, else at most.
        times_floor: the most that the median may be, in medians of the floor.
        engine_target, times_docker: the same for our Docker engine, in `unit` and in medians of the
            bare API.
        note: said beside the figures; `broken`: why the step is wrong whatever its figures.
    """

    name: str
    unit: str = "ms"
    target: float | None = None
    times_floor: float | None = None
    engine_target: float | None = None
    times_docker: float | None = None
    more_is_better: bool = False
    ours: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    docker: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    note: str = ""
    broken: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the floor we need; for rates, how much of the floor's we reach."""
        return median(self.ours) / median(self.floor) if self.ours and self.floor else None

    @property
    def docker_ratio(self) -> float | None:
        """How many times the bare API our Docker engine needs."""
        return median(self.engine) / median(self.docker) if self.engine and self.docker else None

    @property
    def engine_met(self) -> bool:
        """Whether our Docker engine reaches its targets, as far as it was measured."""
        slow = self.engine_target is not None and self.engine and median(self.engine) > self.engine_target
        behind = self.times_docker is not None and (self.docker_ratio or 0) > self.times_docker
        return not slow and not behind

    @property
    def met(self) -> bool | None:
        """Whether the targets are reached; None if there are none."""
        if self.broken or not self.engine_met:
            return False
        if not self.ours or (self.target is None and self.times_floor is None):
            return None
        figure = median(self.ours)
        if self.target is not None and (figure < self.target if self.more_is_better else figure > self.target):
            return False
        return self.times_floor is None or self.ratio is None or self.ratio <= self.times_floor

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "step": self.name,
            "unit": self.unit,
            "ours": summary(self.ours),
            "floor": summary(self.floor),
            "docker": summary(self.docker),
            "engine": summary(self.engine),
            "docker_ratio": self.docker_ratio,
            "ratio": self.ratio,
            "target": self.target,
            "times_floor": self.times_floor,
            "met": self.met,
            "note": self.broken or self.note,
        }


def summary(figures: Sequence[float]) -> dict[str, float] | None:
    """Median, least, 95th percentile and count."""
    if not figures:
        return None
    p95 = quantiles(figures, n=20)[-1] if len(figures) > 1 else figures[0]
    return {"median": median(figures), "min": min(figures), "p95": p95, "n": len(figures)}


_HEAD = ("step", "ours", "min", "floor", "x floor", "target", "Docker", "ours on it", "x Docker", "target", "", "")


def table(rows: Sequence[Row]) -> str:
    """The rows as text, in columns."""
    cells = [_HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD) - 1)]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=False))
        )
        + f"  {line[-1]}"
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    sign = ">=" if row.more_is_better else "<="
    target = [f"{sign} {row.target:g}"] if row.target is not None else []
    target += [f"<= {row.times_floor:g} x"] if row.times_floor is not None else []
    engine = [f"<= {row.engine_target:g}"] if row.engine_target is not None else []
    engine += [f"<= {row.times_docker:g} x"] if row.times_docker is not None else []
    best = max if row.more_is_better else min
    return (
        f"{row.name} [{row.unit}]",
        _number(median(row.ours)) if row.ours else "-",
        _number(best(row.ours)) if row.ours else "-",
        _number(median(row.floor)) if row.floor else "-",
        _number(row.ratio) if row.ratio is not None else "-",
        ", ".join(target) or "-",
        _number(median(row.docker)) if row.docker else "-",
        _number(median(row.engine)) if row.engine else "-",
        _number(row.docker_ratio) if row.docker_ratio is not None else "-",
        ", ".join(engine) or "-",
        {True: "ok", False: "MISSED", None: ""}[row.met],
        row.broken or row.note,
    )


def _number(figure: float) -> str:
    return f"{figure:.0f}" if figure >= 100 else f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}"
