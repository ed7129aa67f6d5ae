"""The valid configs of a space, and in which order a search tries them.

Enumerated first, searched inside: Optuna neither knows which points of the product are valid nor
avoids repeating one (optuna#2021), so its proposals are snapped to the nearest valid unseen config.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from ..ops.space import Config, Space, config_text

MAX_POOL = 50_000
RANDOM_SEEDS = 16                    # before the model: one basin at the start misleads it
_FAILED = math.log(4.0)              # a failing config's log-ratio to the default, for the model


class Pool:
    """All valid configs, as rows of ordinal numbers too. The default is the first."""

    def __init__(self, space: Space):
        self.space = space
        self.configs = list(islice(space, MAX_POOL))
        self.knobs = {k: choices for k, choices in space.knobs.items() if len(choices) > 1}
        self.index = {config_text(c): i for i, c in enumerate(self.configs)}
        self.rows = np.array([self.row(c) for c in self.configs], dtype=np.float64)

    def __len__(self) -> int:
        return len(self.configs)

    def row(self, config: Config) -> list[float]:
        """Ordinal coordinates in [0, 1]."""
        return [choices.index(config[k]) / (len(choices) - 1) for k, choices in self.knobs.items()]


class Search:
    """Asks for configs of a pool, never the same twice: seeds, random ones, then TPE."""

    def __init__(self, pool: Pool, seed: int, seeds: Iterable[Config] = (),
                 exhaustive: bool = False):
        self._pool = pool
        self._seed = seed
        self._seen = np.zeros(len(pool), dtype=bool)
        order = list(range(1, len(pool)))
        random.Random(seed).shuffle(order)
        known = [self._pool.index.get(config_text(c)) for c in seeds]
        first = [0, *(i for i in known if i is not None)]
        self._queue = [*first, *(order if exhaustive else order[:RANDOM_SEEDS])]
        self._told: list[tuple[int, float]] = []     # what the model does not know yet
        self._open: dict[int, Any] = {}      # pool index -> Optuna's trial that led to it

    def ask(self) -> Config | None:
        """The next config, or None when the pool is done."""
        while self._queue:
            i = self._queue.pop(0)
            if not self._seen[i]:
                break
        else:
            if self._seen.all():
                return None
            i = self._by_model()
        self._seen[i] = True
        return self._pool.configs[i]

    def tell(self, config: Config, log_ratio: float | None) -> None:
        """The log of time over the default's time; None: it failed."""
        i = self._pool.index[config_text(config)]
        self._seen[i] = True
        value = _FAILED if log_ratio is None or not math.isfinite(log_ratio) else log_ratio
        trial = self._open.pop(i, None)
        if trial is not None:
            self._study.tell(trial, value)
        else:
            self._told.append((i, value))

    def _by_model(self) -> int:
        from optuna.trial import TrialState, create_trial

        for i, value in self._told:
            params = {k: self._pool.configs[i][k] for k in self._pool.knobs}
            self._study.add_trial(create_trial(
                params=params, distributions=self._distributions, value=value))
        self._told.clear()
        trial = self._study.ask(self._distributions)
        wanted = np.array(self._pool.row(trial.params))
        distance = np.abs(self._pool.rows - wanted).sum(axis=1)
        distance[self._seen] = np.inf
        nearest = int(distance.argmin())
        if distance[nearest] == 0.0:
            self._open[nearest] = trial
        else:
            self._study.tell(trial, state=TrialState.FAIL)
        return nearest

    @cached_property
    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution

        return {k: CategoricalDistribution(choices) for k, choices in self._pool.knobs.items()}

    @cached_property
    def _study(self) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=self._seed))
