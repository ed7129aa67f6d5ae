"""Tuning an operator for shapes on a target, into a database."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from .. import ops
from ..ops.spec import Operator, Shape
from ..targets.base import Target
from ..tuning_db.key import key_of
from ..tuning_db.store import TuningDB
from .budget import Budget, Guard
from .job import Job, Method
from .outcome import Event, Outcome, Plan, Progress
from .pool import Pool
from .rank import rank_shape
from .shape import tune_shape
from .workers import Workers


def _silent(event: Event) -> None:
    """The default of `progress`."""


def _check_op(op: Operator) -> None:
    if op.name not in ops.names() or ops.load(op.name) is not op:
        raise ValueError(f"only operators of the ops folder can be tuned (children load them by "
                         f"name), got {op.name!r}")


def tune(op: Operator, target: Target, shapes: Sequence[Shape], db: TuningDB | str | Path,
         budget: Budget, seed: int = 0, progress: Progress = _silent, command: str = "",
         guard: Guard | None = None, method: Method | None = None) -> list[Outcome]:
    """`tune_many` for the shapes of one operator."""
    return tune_many([(op, shape) for shape in shapes], target, db, budget, seed, progress,
                     command, guard, method)


def tune_many(tasks: Sequence[tuple[Operator, Shape]], target: Target, db: TuningDB | str | Path,
              budget: Budget, seed: int = 0, progress: Progress = _silent, command: str = "",
              guard: Guard | None = None, method: Method | None = None) -> list[Outcome]:
    """Find the best config of each (operator, shape); every candidate is a row of `db` at once.

    Continues where an earlier tune into the same database stopped, and returns finished shapes
    from it. A candidate that crashes, hangs or is wrong is a row, never an exception.

    Args:
        budget: seconds for all tasks together, split fairly, or trials for each.
        progress: called with an Event at every step.
        command: what the user typed, for the records' provenance.
        guard: time and memory limits of candidates.
        method: the search, the routing that is tuned for, and who else works on it.
    """
    for op, _ in tasks:
        _check_op(op)
    method = method or Method()
    if method.measure and (why := target.available()):
        raise ValueError(f"nothing can be tuned on {target.name}: {why}")
    store = db if isinstance(db, TuningDB) else TuningDB(db)
    outcomes: list[Outcome] = []
    start = time.monotonic()
    try:
        with Workers(guard or Guard(), target) as workers:
            for i, (op, shape) in enumerate(tasks):
                seconds = None
                if budget.seconds is not None:   # what a task leaves over goes to the later ones
                    left = max(0.0, start + budget.seconds - time.monotonic())
                    seconds = left / (len(tasks) - i)
                one = tune_shape if method.measure else rank_shape
                outcomes.append(one(Job(
                    op, target, shape, store, workers, budget.share(len(tasks)), budget.trials,
                    seconds, seed, command, progress, i, len(tasks), method)))
    finally:
        if store is not db:
            store.close()
    return outcomes


def plan(op: Operator, target: Target, shapes: Sequence[Shape]) -> list[Plan]:
    """What `tune` would cover: keys and sizes of the spaces; nothing is built."""
    plans = []
    for shape in shapes:
        space = target.space(op, shape)
        plans.append(Plan(op.name, dict(shape), target.device, key_of(op, target, shape).hash,
                          len(Pool(space)), space.product_size(), space.default()))
    return plans
