"""A genetic algorithm over a pool; children that are already known cost nothing."""

from __future__ import annotations

import numpy as np

from .history import History

POPULATION = 20
MUTATION = 0.1                       # chance per knob of a random value
STUCK = 200                          # children in a row that were known


class Genetic:
    """Proposes the next child that nobody knows yet."""

    def __init__(self, seed: int, population: int = POPULATION):
        self._rng = np.random.default_rng([seed, 2])
        self._size = population
        self._parents: list[int] = []
        self._children: list[int] = []

    def propose(self, history: History) -> int:
        """The number of a config that is not taken."""
        for _ in range(STUCK):
            if len(self._parents) < 2 or len(self._children) >= self._size:
                self._next_generation(history)
            if len(self._parents) < 2:
                break
            child = self._child(history)
            self._children.append(child)
            if not history.taken[child]:
                return child
        self._children, self._parents = [], []
        return history.random_free(self._rng)

    def _next_generation(self, history: History) -> None:
        """The best of the children, and the best config ever."""
        if not self._children:
            self._parents = [int(i) for i in history.ranked()[:self._size]]
            return
        family = dict.fromkeys([*self._children, history.best, *self._parents])
        self._parents = sorted((i for i in family if i >= 0),
                               key=lambda i: history.value[i])[:self._size]
        self._children = []

    def _child(self, history: History) -> int:
        rng, pool = self._rng, history.pool
        n = len(self._parents)
        weight = np.arange(n, 0, -1, dtype=np.float64)
        a, b = rng.choice(n, size=2, replace=False, p=weight / weight.sum())
        mix = rng.random(len(pool.sizes)) < 0.5
        place = np.where(mix, pool.places[self._parents[a]], pool.places[self._parents[b]])
        mutate = rng.random(len(pool.sizes)) < MUTATION
        place = np.where(mutate, rng.integers(pool.sizes), place)
        return int(pool.nearest(place[None])[0])
