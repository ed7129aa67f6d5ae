"""Tree-structured Parzen estimator over a pool, every knob categorical.

Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (2011), with the joint (multivariate)
kernels of Falkner et al., "BOHB" (2018). Optuna's own sampler of this kind takes 14 ms a trial
after 1,000 trials and scores points that are not in the pool.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .history import History

CANDIDATES = 24
MOST_GOOD = 25
MOST_BAD = 300                       # of the newest results: keeps a trial's cost flat


class Tpe:
    """Proposes what is likely among good configs and unlikely among the rest."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng([seed, 1])

    def propose(self, history: History) -> int:
        """The number of a config that is not taken."""
        rng, pool, ranked = self._rng, history.pool, history.ranked()
        good = ranked[:max(1, min(math.ceil(0.1 * len(ranked)), MOST_GOOD))]
        told = np.zeros(len(pool), dtype=bool)
        told[ranked] = True
        unfinished = np.flatnonzero(history.taken & ~told)      # as bad: the next goes elsewhere
        recent = np.zeros(len(pool), dtype=bool)
        recent[history.told[-MOST_BAD:]] = True
        rest = ranked[len(good):]
        bad = np.concatenate([rest[recent[rest]], unfinished])
        sizes = pool.sizes
        # Each observation is a kernel: its own value with weight 1, all with 1 / kernels; the
        # last kernel is the uniform prior.
        kernel = rng.integers(len(good) + 1, size=CANDIDATES)
        drawn = rng.integers(sizes, size=(CANDIDATES, len(sizes)))
        keep = rng.random(drawn.shape) < 1 / (1 + 1 / (len(good) + 1))
        centre = pool.places[good[np.minimum(kernel, len(good) - 1)]]
        drawn = np.where(keep & (kernel < len(good))[:, None], centre, drawn)
        found = np.unique(pool.nearest(np.unique(drawn, axis=0), history.taken))
        places = pool.places[found]
        score = _log_density(places, pool.places[good], sizes) - _log_density(
            places, pool.places[bad], sizes)
        return int(found[score.argmax()])


def _log_density(x: NDArray[np.int64], seen: NDArray[np.int64],
                 sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log density of the kernels around `seen` [kernels, knobs] at x [points, knobs]."""
    spread = 1 / (len(seen) + 1)
    other = np.log(spread / (1 + spread * sizes))
    same = np.log((1 + spread) / (1 + spread * sizes))
    logs = np.where(x[:, None] == seen[None], same, other).sum(axis=2)
    prior = np.full((len(x), 1), -np.log(sizes).sum())
    logs = np.concatenate([logs, prior], axis=1)
    top = logs.max(axis=1, keepdims=True)
    return np.asarray(top[:, 0] + np.log(np.exp(logs - top).sum(axis=1)) - math.log(logs.shape[1]))
