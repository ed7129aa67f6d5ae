"""How much a tune may cost, and what its children may take."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from ..tuning_db.record import Provenance


@dataclass(frozen=True)
class Budget:
    """Seconds for all shapes together, or trials (configs tried) for each shape."""

    seconds: float | None = None
    trials: int | None = None

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.trials is None):
            raise ValueError("a budget must be either seconds or trials, got "
                             f"seconds={self.seconds} and trials={self.trials}")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"a budget must be more than 0 seconds, got {self.seconds:g}")
        if self.trials is not None and (type(self.trials) is not int or self.trials < 1):
            raise ValueError(f"a budget must be at least 1 trial, got {self.trials}")

    def share(self, shapes: int) -> dict[str, float]:
        """What one of several shapes has, as its winner's record says it."""
        if self.trials is not None:
            return {"trials": self.trials}
        assert self.seconds is not None
        return {"seconds": round(self.seconds / max(shapes, 1), 3)}


def covers(finished: Provenance, asked: dict[str, float], pool: int) -> bool:
    """Whether a finished tune makes another one of this budget needless."""
    if finished.trials >= min(pool, asked.get("trials", math.inf)):
        return True
    return any(unit in finished.budget and finished.budget[unit] >= asked[unit] for unit in asked)


@dataclass(frozen=True)
class Guard:
    """Limits of child processes: what a bad candidate can cost at most."""

    build_s: float = 120.0
    run_s: float = 60.0              # check and time one candidate
    prepare_s: float = 900.0         # inputs and float64 references of a big shape
    build_gb: float = 0.0            # 0: a share of this machine's memory
    run_gb: float = 0.0

    def memory_gb(self, what: str, torch_device: str = "cpu") -> float:
        """Address space of a child: a third of the memory to build, most of it to run.

        0, no limit, to run on a GPU: its driver reserves more addresses than there is memory.
        """
        if what == "run" and torch_device != "cpu":
            return self.run_gb
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        if what == "build":
            return self.build_gb or max(8.0, total / 3)
        return self.run_gb or max(8.0, total * 0.85)
