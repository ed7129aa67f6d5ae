"""Whether cost grows as the work does: series of sizes, their floors, and cliffs between them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from ..result import Case, Result
from .goals import ours

STEP = 1.5                           # between neighbours, beyond their floors': a cliff


@dataclass(frozen=True)
class Measured:
    """One size of a series; microseconds."""

    size: int
    us: float
    floor_us: float
    case: str


@dataclass(frozen=True)
class Series:
    """Cases that differ in one size only."""

    name: str
    axis: str                        # "tokens", "ctx" or "experts"
    threads: int
    points: tuple[Measured, ...]


@dataclass(frozen=True)
class Cliff:
    """Two neighbours of which the larger costs more than its work explains."""

    series: str
    axis: str
    threads: int
    low: int
    high: int
    step: float                      # growth of time over growth of floor


def _measured(case: Case, size: int) -> Measured | None:
    side = "ours f32" if "ours f32" in case.samples else ours(case)
    if not side or not case.floor_us:
        return None
    return Measured(size, statistics.median(case.flat(side)), case.floor_us, case.name)


def series(result: Result) -> list[Series]:
    """The series of a run that have two sizes or more."""
    groups: dict[tuple[str, int], list[tuple[dict[str, int], Case]]] = {}
    for name, told in dict(result.settings.get("series", {})).items():
        case = result.case(name)
        if case is not None and case.samples:
            groups.setdefault((told["series"], told["threads"]), []).append((told, case))
    found = []
    for (name, threads), members in groups.items():
        sizes = {axis: {told[axis] for told, _ in members} for axis in ("tokens", "ctx", "experts")}
        axis = max(sizes, key=lambda a: len(sizes[a]))
        points = sorted((p for told, case in members if (p := _measured(case, told[axis]))),
                        key=lambda p: p.size)
        if len(points) > 1:
            found.append(Series(name, axis, threads, tuple(points)))
    return found


def cliffs(found: list[Series]) -> list[Cliff]:
    """Neighbours whose time grows more than STEP times as fast as their floor."""
    return [Cliff(s.name, s.axis, s.threads, a.size, b.size, step)
            for s in found for a, b in zip(s.points, s.points[1:], strict=False)
            if (step := (b.us / a.us) / (b.floor_us / a.floor_us)) > STEP]
