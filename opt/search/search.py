"""A search inside one process: an Optuna study in memory over a pool."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ...ops.space import Config, config_text
from ..pool import Pool
from .names import Name

UNKNOWN_BUDGET = 200                 # trials, when only time limits a tune


class Search:
    """Asks for configs of a pool, never the same twice: the default, seeds, random ones, a search.

    Args:
        budget: trials that there will be, None when only time limits them.
        seeds: configs to try right after the default; those outside the pool are ignored.
        default: whether the pool's first config is a default, to be tried first.
    """

    def __init__(self, pool: Pool, seed: int, seeds: Iterable[Config] = (),
                 sampler: Name = "auto", budget: int | None = None, default: bool = True):
        import optuna

        from .sampler import PoolSampler

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        known = [pool.index.get(config_text(c)) for c in seeds]
        first = [*([0] if default else []), *(i for i in known if i is not None)]
        self._pool = pool
        if sampler == "auto" and budget is None:
            sampler = "portfolio"
        self._sampler = PoolSampler(pool, sampler, budget or UNKNOWN_BUDGET, seed, first)
        self.study = optuna.create_study(sampler=self._sampler)
        self._limit = min(budget or len(pool), len(pool))
        self._open: dict[int, Any] = {}      # number of a config: Optuna's trial of it
        self._seen: set[int] = set()

    def ask(self) -> Config | None:
        """The next config, or None when the budget or the pool is done."""
        if len(self._seen) >= self._limit:
            return None
        trial = self.study.ask(self._pool.distributions)
        # Optuna asks no sampler about a study that has nothing to vary.
        i = self._sampler.given(trial.number) if self._pool.knobs else 0
        self._open[i] = trial
        self._seen.add(i)
        return self._pool.configs[i]

    def is_done_within(self, gain: float) -> bool:
        """Whether the search's model expects less than this fraction of time to be gained yet."""
        return self._sampler.is_done_within(gain)

    def room(self) -> int:
        """How many configs it will still propose at most."""
        return self._limit - len(self._seen)

    def has(self, config: Config) -> bool:
        """Whether it asked for a config, or was told of it."""
        return self._pool.index[config_text(config)] in self._seen

    def wait(self) -> bool:
        """Nobody else works on this search."""
        return True

    def alone(self) -> AbstractContextManager[None]:
        """Nobody else decides about it."""
        return nullcontext()

    def close(self) -> None:
        """Nothing is held."""

    def tell(self, config: Config, log_ratio: float | None) -> None:
        """The log of time over the default's time; None: it failed."""
        from optuna.trial import TrialState, create_trial

        i = self._pool.index[config_text(config)]
        self._seen.add(i)
        good = log_ratio is not None and math.isfinite(log_ratio)
        value = math.exp(log_ratio) if good and log_ratio is not None else None
        state = TrialState.COMPLETE if good else TrialState.FAIL
        trial = self._open.pop(i, None)
        if trial is not None:
            self.study.tell(trial, value, state=state)
        else:                                # from a tune that was stopped
            self.study.add_trial(create_trial(
                state=state, value=value, distributions=self._pool.distributions,
                params={k: config[k] for k in self._pool.knobs}))
