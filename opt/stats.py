"""Statistics of interleaved samples.

Low quantiles: on a shared machine the distribution is bimodal, and with interleaving only the
minimum and p20 find a 5 % difference without false alarms (docs/facts.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ENOUGH_FOR_P20 = 15
_RESAMPLES = 2000


def low(samples: Sequence[float]) -> float:
    """p20, or the minimum of a few."""
    if len(samples) < ENOUGH_FOR_P20:
        return min(samples)
    return float(np.quantile(samples, 0.2))


@dataclass(frozen=True)
class Ratio:
    """How many times faster a config is than the baseline, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_wide(self) -> bool:
        """Whether the samples are too noisy to say anything."""
        return self.high / self.low > 1.2

    def beats(self, gain: float) -> bool:
        """Significantly faster, and by more than `gain`."""
        return self.low > 1.0 and self.value > 1.0 + gain


def speedup(samples: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Ratio:
    """baseline / samples, where both were taken in the same rounds.

    Resamples whole rounds, so that what slows a round down slows both. Few rounds have no useful
    quantile: then Student's interval of the paired log-ratios.
    """
    n = min(len(samples), len(baseline))
    x, b = np.asarray(samples[:n]), np.asarray(baseline[:n])
    if n < ENOUGH_FOR_P20:
        return _student(np.log(b / x), low(b.tolist()) / low(x.tolist()))
    rounds = np.random.default_rng(seed).integers(0, n, (_RESAMPLES, n))
    ratios = np.quantile(b[rounds], 0.2, axis=1) / np.quantile(x[rounds], 0.2, axis=1)
    lower, upper = np.quantile(ratios, (0.025, 0.975))
    return Ratio(low(b.tolist()) / low(x.tolist()), float(lower), float(upper))


def _student(logs: np.ndarray, value: float) -> Ratio:
    from scipy.stats import t

    n = len(logs)
    if n < 2:
        return Ratio(value, value / 10, value * 10)
    half = float(t.ppf(0.975, n - 1)) * float(logs.std(ddof=1)) / math.sqrt(n)
    middle = float(logs.mean())
    return Ratio(value, math.exp(middle - half), math.exp(middle + half))
