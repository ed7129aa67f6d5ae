"""log(head / base) of one case, by block bootstrap over rounds.

Samples are low quantiles of interleaved rounds: on a shared machine the distribution has two
humps, and mean or median raise false alarms in most runs (docs/bench.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from ..opt.stats import ENOUGH_FOR_P20
from .result import Samples

RESAMPLES = 2000
NEIGHBOURS = 2                       # rounds on each side that tell how fast the machine was

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Picks = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class Estimate:
    """log(head / base) with its bootstrap replicates, and those of the base with itself."""

    d: float
    replicates: Array
    twin_d: float | None             # log(base_again / base); None: no twin was measured
    twin: Array
    base_us: float
    rounds: int


def quantile_of(rounds: int, samples: int) -> float:
    """p20, or the minimum of a few."""
    return 0.2 if rounds * samples >= ENOUGH_FOR_P20 else 0.0


def _resampled(samples: Array, picks: Picks) -> Array:
    """The low quantile of every resample of whole rounds."""
    drawn = samples[picks].reshape(len(picks), -1)
    return np.asarray(np.quantile(drawn, quantile_of(*samples.shape), axis=1))


def _low(samples: Array) -> float:
    return float(np.quantile(samples.reshape(-1), quantile_of(*samples.shape)))


def _matrix(blocks: Samples) -> Array:
    width = min(map(len, blocks))
    return np.asarray([block[:width] for block in blocks], dtype=np.float64)


def _level(sides: Sequence[Array]) -> Array:
    """How fast the machine was around each round: the least time of all sides and neighbours.

    Both sides are divided by it, which leaves their ratio and takes out the drift.
    """
    least = np.min([side.min(axis=1) for side in sides], axis=0)
    padded = np.pad(least, NEIGHBOURS, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * NEIGHBOURS + 1)
    return np.asarray(windows.min(axis=1)[:, None] / least.min(), dtype=np.float64)


def estimate(head: Samples, base: Samples, twin: Samples = (), seed: int = 0,
             paired: bool = True, resamples: int = RESAMPLES) -> Estimate:
    """log(head / base), resampling whole rounds so that what slows a round slows both sides.

    Not `paired`: the two were measured one after the other, so each is resampled alone.
    """
    rounds = min(len(head), len(base), len(twin) or len(base)) if paired else len(base)
    if not rounds or not len(head):
        raise ValueError("an estimate needs at least one round of both sides")
    random = np.random.default_rng(seed)
    picks = random.integers(0, rounds, (resamples, rounds))
    b, h = _matrix(base[:rounds]), _matrix(head[:rounds] if paired else head)
    t = _matrix(twin[:rounds]) if twin else np.zeros((0, 0))
    if paired:
        level = _level([side for side in (b, h, t) if side.size])
        b, h, t = b / level, h / level, t / level if t.size else t
    of_head = picks if paired else random.integers(0, len(h), (resamples, len(h)))
    low_b = np.log(_resampled(b, picks))
    replicates = np.log(_resampled(h, of_head)) - low_b
    d = log(_low(h)) - log(_low(b))
    if not twin:
        return Estimate(d, replicates, None, np.zeros(0), _low(b), rounds)
    return Estimate(d, replicates, log(_low(t)) - log(_low(b)),
                    np.log(_resampled(t, picks)) - low_b, _low(b), rounds)
