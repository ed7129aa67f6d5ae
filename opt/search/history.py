"""What a search knows: which configs of the pool are taken, and what came of them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..pool import Pool


class History:
    """Configs by number in the pool, in the order in which results came."""

    def __init__(self, pool: Pool):
        self.pool = pool
        self.taken = np.zeros(len(pool), dtype=bool)       # asked or told
        self.value = np.full(len(pool), np.inf)            # log of the time; inf: failed or open
        self.told: list[int] = []
        self.free = len(pool)
        self.best = -1                                     # number of the best, -1: none yet
        self.since_best = 0                                # results since the best one

    def take(self, i: int) -> None:
        """It is being evaluated."""
        if not self.taken[i]:
            self.taken[i] = True
            self.free -= 1

    def release(self, i: int) -> None:
        """It was not evaluated after all."""
        if self.taken[i]:
            self.taken[i] = False
            self.free += 1

    def tell(self, i: int, value: float | None) -> None:
        """Its log time; None or not finite: it failed."""
        self.take(i)
        self.told.append(i)
        self.since_best += 1
        if value is not None and math.isfinite(value):
            if self.best < 0 or value < self.value[self.best]:
                self.best, self.since_best = i, 0
            self.value[i] = value

    def ranked(self) -> NDArray[np.int64]:
        """Told configs, best first, failed ones last."""
        told = np.array(self.told, dtype=np.int64)
        return told[np.argsort(self.value[told], kind="stable")]

    def successes(self) -> int:
        """How many did not fail."""
        return int(np.isfinite(self.value[self.told]).sum()) if self.told else 0

    def random_free(self, rng: np.random.Generator) -> int:
        """Any config that is not taken."""
        return int(rng.choice(np.flatnonzero(~self.taken)))
