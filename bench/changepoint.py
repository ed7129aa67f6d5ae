"""Where a series of measurements changed for good: E-divisive means with a permutation test.

Matteson and James, "A Nonparametric Approach for Multiple Change Point Analysis of Multivariate
Data", JASA 2014; the statistic is the energy distance between what lies before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
FEWEST = 4                           # runs on each side of a change
PERMUTATIONS = 199                   # p is a multiple of 1/200
ALPHA = 0.01                         # a nightly series is asked every night


@dataclass(frozen=True)
class Change:
    """The run from which on a series was different."""

    at: int                          # index of the first run after the change
    before: float
    after: float
    p: float

    @property
    def ratio(self) -> float:
        """1.05: 5 % slower from then on."""
        return self.after / self.before


def _best_split(x: Array) -> tuple[int, float]:
    """The split with the largest energy distance, and that distance."""
    n = len(x)
    sums = np.zeros((n + 1, n + 1))
    sums[1:, 1:] = np.abs(x[:, None] - x[None, :]).cumsum(0).cumsum(1)
    at = np.arange(FEWEST, n - FEWEST + 1)
    left, total = sums[at, at], sums[n, n]
    cross = sums[at, n] - left
    right = total - left - 2 * cross
    m = n - at
    energy = (2 * cross / (at * m) - left / (at * (at - 1)) - right / (m * (m - 1))) * at * m / n
    best = int(np.argmax(energy))
    return int(at[best]), float(energy[best])


def _search(x: Array, start: int, least: float, random: np.random.Generator,
            found: list[tuple[int, float]]) -> None:
    if len(x) < 2 * FEWEST:
        return
    split, energy = _best_split(x)
    more = sum(_best_split(random.permutation(x))[1] >= energy for _ in range(PERMUTATIONS))
    p = (more + 1) / (PERMUTATIONS + 1)
    if p > ALPHA or abs(float(np.median(x[split:]) - np.median(x[:split]))) < least:
        return
    found.append((start + split, p))
    _search(x[:split], start, least, random, found)
    _search(x[split:], start + split, least, random, found)


def change_points(us: Sequence[float], least: float = 0.02, seed: int = 0) -> list[Change]:
    """All lasting changes of at least a fraction `least`, oldest first; times in any unit."""
    x = np.log(np.asarray(us, dtype=np.float64))
    found: list[tuple[int, float]] = []
    _search(x, 0, least, np.random.default_rng(seed), found)
    found.sort()
    edges = [0, *(at for at, _ in found), len(x)]
    levels = [exp(float(np.median(x[a:b]))) for a, b in zip(edges, edges[1:], strict=False)
              if b > a]
    return [Change(at, levels[i], levels[i + 1], p) for i, (at, p) in enumerate(found)]
