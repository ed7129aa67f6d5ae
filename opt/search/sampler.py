"""The searches as one Optuna sampler, so that studies, importances and dashboards work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any, Protocol

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ..pool import Pool
from .blas import one_thread
from .genetic import Genetic
from .gp import Gp
from .history import History
from .names import NAMES, Name
from .portfolio import Portfolio
from .tpe import Tpe

STOP_RESULTS, STOP_STALE, STOP_MODELS = 60, 40, 5    # evidence before a search is called done
RANDOM_FIRST = 16                    # before any model: one basin at the start misleads it


class Strategy(Protocol):
    """What proposes after the first configs."""

    def propose(self, history: History) -> int:
        """The number of a config that is not taken; called while there is one."""


class Shuffled:
    """Random without replacement: exhaustive in the end, and a fair sample whenever it stops."""

    def __init__(self, pool: Pool, seed: int):
        self._order = np.random.default_rng([seed, 0]).permutation(len(pool))
        self._next = 0

    def propose(self, history: History) -> int:
        """The next one that is not taken."""
        while history.taken[self._order[self._next]]:
            self._next = (self._next + 1) % len(self._order)
        return int(self._order[self._next])


def strategy(name: Name, pool: Pool, budget: int, seed: int) -> Strategy:
    """The search of this name; `auto` chooses by whether the pool fits the budget (trials)."""
    if name not in NAMES:
        raise ValueError(f"a sampler must be one of {', '.join(NAMES)}, got {name!r}")
    if name == "auto":
        name = "exhaustive" if len(pool) <= budget else "portfolio"
    if name in ("exhaustive", "random"):
        return Shuffled(pool, seed)
    if name == "portfolio":
        return Portfolio(seed, min(budget, len(pool)))
    if name == "tpe":
        return Tpe(seed)
    return Gp(seed) if name == "gp" else Genetic(seed)


class PoolSampler(BaseSampler):
    """Proposes configs of a pool, none twice: first the given ones, random ones, then a search.

    A study's value is a time (less is better; a failed config's trial is told FAIL, or inf). Ask
    with `study.ask(pool.distributions)`, or suggest every knob of the pool categorically.

    Args:
        budget: trials that the study will have, for `auto` and `portfolio`.
        first: numbers of configs in the pool to begin with, the default's as a rule.
    """

    def __init__(self, pool: Pool, name: Name = "auto", budget: int = 200, seed: int = 0,
                 first: Iterable[int] = (0,)):
        self.pool = pool
        self._strategy = strategy(name, pool, budget, seed)
        self._first = list(first)
        if not isinstance(self._strategy, Shuffled):
            shuffled = np.random.default_rng([seed, 0]).permutation(len(pool))
            self._first += shuffled[:RANDOM_FIRST].tolist()
        self._history = History(pool)
        self._lock = Lock()          # study.optimize(n_jobs=...) asks from threads
        self._finished = 0           # trials before this number are in the history
        self._later: set[int] = set()            # numbers beyond that are finished and in it too
        self._open: dict[int, int] = {}          # number of a trial: config it was given

    @property
    def done(self) -> bool:
        """Whether every config of the pool was proposed or told."""
        return self._history.free == 0

    def is_done_within(self, gain: float) -> bool:
        """Whether the models expect less than this fraction of time from any untried config.

        Only `portfolio` and `gp` have a model to ask; it must have said so five times running,
        after 60 results, of which the last 40 brought nothing better.
        """
        history = self._history
        if len(history.told) < STOP_RESULTS or history.since_best < STOP_STALE:
            return False
        return (isinstance(self._strategy, Gp | Portfolio)
                and self._strategy.promise(STOP_MODELS) < -math.log1p(-gain))

    def given(self, trial: int) -> int:
        """The number in the pool of the config that an open trial was given."""
        return self._open[trial]

    def infer_relative_search_space(
            self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All knobs, from the first trial on."""
        return dict(self.pool.distributions)

    def sample_relative(self, study: Study, trial: FrozenTrial,
                        search_space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        """The knobs of a config that no trial has had."""
        with self._lock:
            self._learn(study, trial.number)
            if self.done:
                raise RuntimeError(f"every one of the {len(self.pool)} configs of the pool was "
                                   "tried")
            i = self._next()
            self._history.take(i)
            self._open[trial.number] = i
        return {k: self.pool.configs[i][k] for k in search_space}

    def _next(self) -> int:
        while self._first:
            i = self._first.pop(0)
            if not self._history.taken[i]:
                return i
        with one_thread():
            return self._strategy.propose(self._history)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        """Never: a knob that the pool lacks has no valid value."""
        raise ValueError(f"{param_name!r} is not a knob of the pool, which has "
                         f"{', '.join(self.pool.knobs)}")

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState,
                    values: Sequence[float] | None) -> None:
        """Stop `study.optimize` when the pool is done."""
        if self.done and study._thread_local.in_optimize_loop:
            study.stop()

    def _learn(self, study: Study, asking: int) -> None:
        """Take over trials that others asked for or that have finished since."""
        trials = study.get_trials(deepcopy=False)
        for trial in trials[self._finished:]:
            if trial.number == asking or trial.number in self._later:
                continue
            i = self._number(trial)
            if not trial.state.is_finished():
                if i is not None:
                    self._history.take(i)
                continue
            self._later.add(trial.number)
            asked = self._open.pop(trial.number, None)
            if asked is not None and asked != i:
                self._history.release(asked)      # enqueued with other values
            if i is not None:
                self._history.tell(i, _log_time(trial))
        while self._finished in self._later:
            self._later.remove(self._finished)
            self._finished += 1

    def _number(self, trial: FrozenTrial) -> int | None:
        """A trial's config in the pool; None for a stranger."""
        if any(k not in trial.params for k in self.pool.knobs):
            return None
        try:
            place = np.array(self.pool.place(trial.params), dtype=np.int64)
        except KeyError:
            return None
        return self.pool.by_place.get(place.tobytes())


def _log_time(trial: FrozenTrial) -> float | None:
    value = trial.value if trial.state == TrialState.COMPLETE else None
    if value is None or not math.isfinite(value):
        return None
    if value <= 0:
        raise ValueError(f"trial {trial.number}: a time must be more than 0, got {value}")
    return math.log(value)
