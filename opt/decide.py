"""The race of the finalists, and the decision: tuned, or the default is kept.

Two measurements on purpose: the race picks a challenger among several, so its own figures flatter
it; only fresh rounds of challenger against default decide and are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..ops.space import Config, config_text
from ..tuning_db.record import Decision, Record
from ..tuning_db.store import config_hash
from .stats import low, speedup

FINALISTS = 5
NEAR_BEST = 0.05                     # behind the best in the search, and still a finalist
GAIN = 0.01                          # the least gain that replaces the default
EQUAL = 0.005                        # closer than this to the leader is a tie
RACE_ROUNDS, FINAL_ROUNDS = 30, 40

Racer = Callable[[list[Config], int], list[list[float]] | None]


@dataclass(frozen=True)
class Verdict:
    """Which config is stored, and the fresh samples behind it."""

    config: Config
    decision: Decision
    status: Literal["ok", "noisy"]
    samples: Sequence[float]
    baseline: Sequence[float]
    equivalents: tuple[Config, ...] = ()
    note: str = ""


def decide(rows: list[Record], default: Config, before: Record | None, race: Racer) -> Verdict:
    """Race the best candidates with the default; keep the default unless one beats it clearly."""
    base = next(r for r in rows if config_text(r.config) == config_text(default))
    kept = Verdict(default, "default kept", "ok", base.samples, base.samples)
    finalists = _finalists(rows, default)
    if not finalists:
        return kept
    raced = race([*finalists, default], RACE_ROUNDS)
    if raced is None:
        return Verdict(default, "default kept", "ok", base.samples, base.samples,
                       note="the race of the finalists died, so none of them is trusted")
    tied = _tied([*finalists, default], raced)
    if any(config_text(c) == config_text(default) for c in tied):
        return Verdict(default, "default kept", "ok", raced[-1], raced[-1], tuple(tied))
    return _final(_pick(tied, before), default, tied, race, kept)


def _final(winner: Config, default: Config, tied: list[Config], race: Racer, kept: Verdict
           ) -> Verdict:
    """Fresh rounds of the challenger against the default."""
    pair = race([winner, default], FINAL_ROUNDS)
    if pair is not None and speedup(pair[0], pair[1]).is_wide:
        pair = race([winner, default], 2 * FINAL_ROUNDS)
    if pair is None:
        return Verdict(default, "default kept", "ok", kept.samples, kept.baseline,
                       note="the challenger died in its final race")
    ratio = speedup(pair[0], pair[1])
    if ratio.beats(GAIN):
        return Verdict(winner, "tuned", "ok", pair[0], pair[1], tuple(tied))
    note = (f"the best challenger was {ratio.value:.3f}x the default "
            f"[{ratio.low:.3f}, {ratio.high:.3f}]")
    status: Literal["ok", "noisy"] = "noisy" if ratio.is_wide else "ok"
    return Verdict(default, "default kept", status, pair[1], pair[1], note=note)


def _finalists(rows: list[Record], default: Config) -> list[Config]:
    """The best few that are near the best and not clearly behind the default."""
    scored = sorted(((math.log(r.us / r.default_us), config_hash(r.config), r.config)
                     for r in rows if r.us and r.default_us
                     and config_text(r.config) != config_text(default)), key=lambda s: s[:2])
    if not scored:
        return []
    limit = min(scored[0][0] + NEAR_BEST, NEAR_BEST)
    return [config for score, _, config in scored if score <= limit][:FINALISTS]


def _tied(configs: list[Config], raced: list[list[float]]) -> list[Config]:
    """The leader and what cannot be told from it."""
    longest = max(map(len, raced))
    alive = [i for i, samples in enumerate(raced) if len(samples) == longest]
    leader = min(alive, key=lambda i: low(raced[i]))
    tied = []
    for i in alive:
        behind = low(raced[i]) / low(raced[leader]) - 1
        unclear = behind <= GAIN and speedup(raced[leader], raced[i]).low <= 1.0
        if behind <= EQUAL or unclear:
            tied.append(configs[i])
    return tied


def _pick(tied: list[Config], before: Record | None) -> Config:
    """By fixed order, never by noise: what was stored before, else the smallest hash."""
    stored = config_text(before.config) if before is not None else ""
    return min(tied, key=lambda c: (config_text(c) != stored, config_hash(c)))
