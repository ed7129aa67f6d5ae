"""What the tune of one shape works with, and what it says while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..ops.routing import Routing
from ..ops.space import Config, config_text
from ..ops.spec import Operator, Shape
from ..targets.base import Target
from ..tuning_db.key import Key, key_of
from ..tuning_db.record import Record
from ..tuning_db.store import TuningDB
from .outcome import Event, Progress
from .pool import Pool
from .search import Name
from .workers import Workers

if TYPE_CHECKING:
    from .shared import Storage

RACE_SHARE = 0.2                     # of a time budget, kept for the finalists


@dataclass(frozen=True)
class Method:
    """How configs are searched, by whom, and for which routing of tokens to experts.

    Args:
        stop_gain: end a search when its model expects less than this fraction to be gained; 0: no.
        storage: where several processes and hosts share their searches; None: only this one.
    """

    sampler: Name = "auto"
    stop_gain: float = 0.0
    routing: Routing = Routing()
    storage: Storage | None = None
    measure: bool = True             # else configs are compiled and ranked by the target's model
    listed: tuple[Config, ...] = ()  # of a bundle: these and no others, in this order
    origin: Mapping[str, str] = field(default_factory=dict)  # of a bundle: for the provenance


@dataclass
class Job:
    """What the tune of one shape works with."""

    op: Operator
    target: Target
    shape: Shape
    db: TuningDB
    workers: Workers
    budget: dict[str, float]         # this shape's nominal share: stored with the winner
    trials: int | None               # limit on candidates, or
    seconds: float | None            # limit on time
    seed: int
    command: str
    tell: Progress
    index: int
    shapes: int
    method: Method = Method()
    key: Key = field(init=False)
    rows: dict[str, Record] = field(default_factory=dict)   # candidates by config text
    blocked: dict[str, Record] = field(default_factory=dict)    # not to be tried again
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.key = key_of(self.op, self.target, self.shape, self.method.routing.name)

    def left(self) -> float:
        """Seconds that the search still has."""
        if self.seconds is None:
            return math.inf
        return self.started + (1 - RACE_SHARE) * self.seconds - time.monotonic()

    def read_rows(self, pool: Pool) -> None:
        """Take over the database's candidates: of an earlier tune, or of other workers."""
        for row in self.db.records(key=self.key, role="candidate"):
            if config_text(row.config) in pool.index and self._counts(row):
                self.rows[config_text(row.config)] = row

    def _counts(self, row: Record) -> bool:
        """Whether a candidate need not be tried again: a model's word is no measurement."""
        if not self.method.measure:
            return row.us is None or row.is_modelled
        return not row.is_modelled or row.us is None and not self.target.computes


def log_ratio(row: Record) -> float | None:
    """The log of a candidate's time over the default's; None: it was not timed."""
    return None if row.us is None or row.default_us is None else math.log(row.us / row.default_us)


def say(job: Job, pool: Pool, kind: Literal["shape", "trial", "race", "done"],
        row: Record | None = None) -> None:
    """Tell the listener of a tune where it is."""
    ok = [r for r in job.rows.values() if r.us is not None]
    best = min(ok, key=lambda r: log_ratio(r) or 0.0, default=None)
    default = job.rows.get(config_text(pool.configs[0]))
    of = min(len(pool), job.trials or len(pool))
    left = job.left()
    if math.isinf(left):
        each = (time.monotonic() - job.started) / max(len(job.rows), 1)
        left = each * (of - len(job.rows))
    job.tell(Event(kind, job.index, job.shapes, job.op.name, job.shape,
                   len(job.rows), of, row.status if row else "", row.us if row else None,
                   best.us if best else None, default.us if default else None, max(left, 0.0)))
