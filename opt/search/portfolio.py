"""Searches that fail in different places, in turn, with what each found known to all."""

from __future__ import annotations

from .genetic import Genetic
from .gp import Gp
from .history import History
from .tpe import Tpe

STUCK = 40                           # results without a better one: the population starts afresh


class Portfolio:
    """TPE and a Gaussian process; from half of the budget a genetic population too."""

    def __init__(self, seed: int, budget: int):
        self._seed = seed
        self._half = budget // 2
        self._turn = 0
        self._restarted = 0          # at how many results
        self._tpe, self._gp, self._genetic = Tpe(seed), Gp(seed), Genetic(seed)

    def promise(self, models: int) -> float:
        """What the Gaussian process expects to gain."""
        return self._gp.promise(models)

    def propose(self, history: History) -> int:
        """The number of a config that is not taken."""
        self._turn += 1
        results = len(history.told)
        if results < self._half:
            return (self._tpe, self._gp)[self._turn % 2].propose(history)
        if min(history.since_best, results - self._restarted) >= STUCK:
            self._restarted = results
            self._genetic = Genetic(self._seed + results)
        return (self._tpe, self._gp, self._genetic)[self._turn % 3].propose(history)
