"""A search played on a recorded landscape: how soon it finds what is known to be the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .replay_record import find
from .search import Name, Search
from .search.landscape import Landscape, read

CHECKPOINTS = (25, 50, 100, 200, 400, 800)


def replay(path: str | Path, sampler: Name = "auto", budget: int = 200,
           seeds: Iterable[int] = range(20), stop_gain: float = 0.0) -> list[list[float]]:
    """Per seed the time of each unique valid evaluation in order, failures as inf.

    Args:
        path: Kernel Tuner's cache (also one that is still open) or T4, or a landscape of ours;
            plain or gzip; or the name of one that ships (`landscapes()`). Times keep the unit.
        budget: evaluations; a smaller pool ends a run sooner.
        stop_gain: end a run when the model expects less than this fraction from what is untried.
    """
    return replay_landscape(read(find(path)), sampler, budget, seeds, stop_gain)


def replay_landscape(landscape: Landscape, sampler: Name = "auto", budget: int = 200,
                     seeds: Iterable[int] = range(20), stop_gain: float = 0.0
                     ) -> list[list[float]]:
    """`replay` of a landscape that was read before."""
    if type(budget) is not int or budget < 1:
        raise ValueError(f"a replay's budget must be at least 1 evaluation, got {budget}")
    return [_run(landscape, sampler, budget, seed, stop_gain) for seed in seeds]


def _run(landscape: Landscape, sampler: Name, budget: int, seed: int, stop_gain: float
         ) -> list[float]:
    pool, times = landscape.pool, list[float]()
    search = Search(pool, seed, sampler=sampler, budget=budget, default=landscape.has_default)
    while len(times) < budget and (config := search.ask()) is not None:
        time = landscape.time(config)
        # Relative to any config of the landscape: the searches only need the differences of logs.
        search.tell(config, math.log(time / landscape.optimum) if math.isfinite(time) else None)
        times.append(time)
        if stop_gain and search.is_done_within(stop_gain):
            break
    return times


@dataclass(frozen=True)
class Share:
    """How many runs were how near to the optimum after so many evaluations."""

    evaluations: int
    within_5: float                  # share of runs within 5 % of the optimum, 0 to 1
    within_10: float
    ratio: float                     # median of the best time over the optimum; inf: none worked


def shares(runs: Sequence[Sequence[float]], optimum: float, budget: int) -> list[Share]:
    """What the runs had reached at some checkpoints and at the end of the budget."""
    found = []
    for n in sorted({c for c in CHECKPOINTS if c < budget} | {budget}):
        best = [min(run[:n], default=math.inf) / optimum for run in runs]
        found.append(Share(n, sum(b <= 1.05 for b in best) / len(best),
                           sum(b <= 1.10 for b in best) / len(best), median(best)))
    return found
