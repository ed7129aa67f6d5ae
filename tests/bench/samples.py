"""Times of a kernel on a shared machine."""

from __future__ import annotations

import numpy as np

from expertile.bench.result import Samples


def samples(us: float, rounds: int = 40, block: int = 2, noise: float = 0.004, seed: int = 0,
            drift: float = 0.0) -> Samples:
    """A floor, one-sided noise, and now and then a slice that somebody else takes."""
    random = np.random.default_rng(seed)
    times = us * (1 + np.abs(random.normal(0, noise, (rounds, block))))
    times *= 1 + drift * np.linspace(0, 1, rounds)[:, None]
    stolen = random.random((rounds, block)) < 0.15
    times[stolen] *= 1 + random.exponential(0.6, int(stolen.sum()))
    return tuple(tuple(float(t) for t in row) for row in times)
