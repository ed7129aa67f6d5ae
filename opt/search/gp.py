"""Expected improvement of a Gaussian process over a pool, in numpy.

Jones, Schonlau and Welch, "Efficient Global Optimization" (1998), with a Matern-5/2 kernel over
ordinal coordinates. The pool is finite and known, so the acquisition is not optimised but computed
for candidates: moves away from the best configs, and random ones.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.special import ndtr

from .history import History

Array = NDArray[np.float64]
MOST_POINTS = 220                    # that the model sees: the best half and the newest
CANDIDATES = 1500
BATCH = 2                            # proposals from one model
TRIES = 6                            # length scales tried before each batch
NOISE = 1e-3


class Gp:
    """Proposes the config of the largest expected improvement of the log time."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng([seed, 3])
        self._scales: Array | None = None
        self._ready: list[int] = []
        self._promises: list[float] = []

    def propose(self, history: History) -> int:
        """The number of a config that is not taken."""
        self._ready = [i for i in self._ready if not history.taken[i]]
        if not self._ready:
            self._ready = self._best(history)
        return self._ready.pop(0)

    def promise(self, models: int) -> float:
        """The log time that each of the last models at most expected to gain; inf before them."""
        return max(self._promises[-models:]) if len(self._promises) >= models else math.inf

    def _best(self, history: History) -> list[int]:
        rng, rows = self._rng, history.pool.rows
        points = self._points(history)
        values = history.value[points]
        failed = ~np.isfinite(values)
        good = values[~failed]
        if len(good) < 2:
            return [history.random_free(rng)]
        # What is far from the best only has to be known as bad: cap it, so that the model's
        # resolution goes where the optimum may be.
        cap = max(float(np.quantile(good, 0.7)), float(good.min()) + 0.2)
        y = np.where(failed, cap, np.minimum(values, cap))
        unit = y.std() + 1e-9
        y = (y - y.mean()) / unit
        factor = self._fit(rows[points], y)
        assert self._scales is not None
        weights = cho_solve((factor, True), y)
        candidates = self._candidates(history)
        cross = _matern(rows[candidates], rows[points], self._scales)
        mean = cross @ weights
        spread = 1 - (solve_triangular(factor, cross.T, lower=True) ** 2).sum(axis=0)
        deviation = np.sqrt(np.maximum(spread, 1e-9))
        z = (y.min() - mean) / deviation
        density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
        improvement = deviation * (z * ndtr(z) + density)
        self._promises.append(float(improvement.max() * unit))
        return [int(candidates[i]) for i in np.argsort(-improvement, kind="stable")[:BATCH]]

    def _points(self, history: History) -> NDArray[np.int64]:
        ranked = history.ranked()
        if len(ranked) <= MOST_POINTS:
            return ranked
        best = ranked[:MOST_POINTS // 2]
        known = set(best.tolist())
        newest = [i for i in reversed(history.told) if i not in known]
        return np.concatenate([best, np.array(newest[:MOST_POINTS - len(best)])])

    def _candidates(self, history: History) -> NDArray[np.int64]:
        """Moves of one or two knobs from the best configs, and random ones."""
        pool, free = history.pool, ~history.taken
        if history.free <= CANDIDATES:
            return np.flatnonzero(free)
        near = np.zeros(len(pool), dtype=bool)
        for i in history.ranked()[:8]:
            near |= (pool.places != pool.places[i]).sum(axis=1) <= 2
            if (near & free).sum() > CANDIDATES // 2:
                break
        first = np.flatnonzero(near & free)
        if len(first) > CANDIDATES * 2 // 3:
            first = self._rng.choice(first, CANDIDATES * 2 // 3, replace=False)
        others = np.flatnonzero(free & ~near)
        rest = min(len(others), CANDIDATES - len(first))
        return np.concatenate([first, self._rng.choice(others, rest, replace=False)])

    def _fit(self, x: Array, y: Array) -> Array:
        """The Cholesky factor for the likeliest of some length scales, the last ones among them."""
        rng = self._rng
        if self._scales is None:
            self._scales = np.full(x.shape[1], 0.6)
        best, factor = self._likelihood(x, y, self._scales)
        for _ in range(TRIES):
            step = np.exp(rng.normal(0, 0.5, x.shape[1]) * (rng.random(x.shape[1]) < 0.4))
            scales = np.clip(self._scales * step, 0.05, 10)
            score, found = self._likelihood(x, y, scales)
            if score > best:
                best, factor, self._scales = score, found, scales
        return factor

    @staticmethod
    def _likelihood(x: Array, y: Array, scales: Array) -> tuple[float, Array]:
        """Log marginal likelihood with a wide prior on the scales, and the factor."""
        factor: Array = np.linalg.cholesky(
            _matern(x, x, scales) + NOISE * np.eye(len(x))).astype(np.float64, copy=False)
        fit = -0.5 * y @ cho_solve((factor, True), y) - np.log(np.diag(factor)).sum()
        return float(fit - 0.15 * (np.log(scales / 0.7) ** 2).sum()), factor


def _matern(a: Array, b: Array, scales: Array) -> Array:
    """Matern-5/2 of points [n, d] and [m, d]: [n, m]."""
    a, b = a / scales, b / scales
    square = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
    r = np.sqrt(5 * np.maximum(square, 0))
    return np.asarray((1 + r + r * r / 3) * np.exp(-r))
