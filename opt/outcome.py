"""What a tune says: while it runs, and at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..ops.space import Config
from ..ops.spec import Shape
from ..tuning_db.record import Record


@dataclass(frozen=True)
class Event:
    """One step of a tune, small enough to draw a progress bar or print a line from."""

    kind: Literal["shape", "trial", "race", "done"]
    index: int                       # of the shape, from 0
    shapes: int
    op: str
    shape: Shape
    trials: int = 0                  # tried so far, this shape
    of: int = 0                      # trials there will be at most, this shape
    status: str = ""                 # of the trial, or of the outcome
    us: float | None = None
    best_us: float | None = None
    default_us: float | None = None
    seconds_left: float | None = None    # of a time budget; else an estimate


Progress = Callable[[Event], None]


@dataclass(frozen=True)
class Outcome:
    """The answer for one shape."""

    record: Record
    trials: int
    resumed: bool                    # answered by the database, nothing was measured
    known: int = 0                   # of the trials, those that an earlier run had made

    @property
    def percent_of_floor(self) -> float | None:
        """How much of the machine's measured limit the config reaches."""
        r = self.record
        return None if r.us is None or r.floor_us is None else 100.0 * r.floor_us / r.us

    def to_json(self) -> dict[str, Any]:
        """Plain data for --json."""
        r = self.record
        return {
            "op": r.key.op, "shape": r.key.shape, "status": r.status, "config": dict(r.config),
            "us": r.us, "default_us": r.default_us, "speedup": r.speedup,
            "speedup_ci": list(r.speedup_ci) if r.speedup_ci else None, "decision": r.decision,
            "evidence": r.evidence, "kind": r.kind, "floor_us": r.floor_us,
            "percent_of_floor": self.percent_of_floor, "trials": self.trials,
            "equivalents": [dict(c) for c in r.equivalents],
            "noise": dict(r.noise),
            "ranked": [dict(c) for c in r.ranked], "parts": dict(r.parts), "error": r.error,
            "resumed": self.resumed}


@dataclass(frozen=True)
class Plan:
    """What tuning a shape would cover."""

    op: str
    shape: Shape
    device: str
    key_hash: str
    configs: int                     # valid ones
    product: int                     # before the predicate
    default: Config

    def to_json(self) -> dict[str, Any]:
        """Plain data for --dry-run --json."""
        return {"op": self.op, "shape": dict(self.shape), "device": self.device,
                "key": self.key_hash, "configs": self.configs, "product": self.product,
                "default": dict(self.default)}
