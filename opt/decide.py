"""The race of the finalists, and the decision: tuned, or the default is kept.

Two measurements on purpose: the race picks a challenger among several, so its own figures flatter
it; only fresh rounds of challenger against default decide and are stored. On CPUs a gain must be
there in a second process too: kernels take 1.6 times as long where the stack lies at the same place
of a page as the rows (docs/facts.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..ops.space import Config, config_text
from ..tuning_db.record import Decision, Record
from ..tuning_db.store import config_hash
from .noise import Noise, noise_of
from .stats import Ratio, low, speedup
from .workers import Raced

FINALISTS = 5
NEAR_BEST = 0.05                     # behind the best in the search, and still a finalist
GAIN = 0.01                          # the least gain that replaces the default
EQUAL = 0.005                        # closer than this to the leader is a tie
RACE_ROUNDS, FINAL_ROUNDS = 30, 40

Racer = Callable[[list[Config], int], Raced | None]


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
    race: Mapping[str, Sequence[float]] = field(default_factory=dict)   # finalists, by config text
    anchor: Sequence[float] = ()
    noise: Noise | None = None


def decide(rows: list[Record], default: Config, before: Record | None, race: Racer,
           elsewhere: Racer | None = None) -> Verdict:
    """Race the best candidates with the default; keep the default unless one beats it clearly.

    `elsewhere` races in a fresh process, where a winner has to win again.
    """
    base = next(r for r in rows if config_text(r.config) == config_text(default))
    kept = Verdict(default, "default kept", "ok", base.samples, base.samples, anchor=base.anchor,
                   noise=noise_of(base.anchor))
    finalists = _finalists(rows, default)
    if not finalists:
        return kept
    raced = race([*finalists, default], RACE_ROUNDS)
    if raced is None:
        return replace(kept, note="the race of the finalists died, so none of them is trusted")
    configs = [*finalists, default]
    tied = _tied(configs, raced.samples)
    if any(config_text(c) == config_text(default) for c in tied):
        last = raced.samples[-1]
        verdict = Verdict(default, "default kept", "ok", last, last, tuple(tied),
                          anchor=raced.anchor, noise=noise_of(raced.anchor) or kept.noise)
    else:
        verdict = _final(_pick(tied, before), default, tied, race, kept)
        if elsewhere is not None and verdict.decision == "tuned":
            verdict = _confirmed(verdict, kept, elsewhere([verdict.config, default], FINAL_ROUNDS))
    return replace(verdict, race={
        config_text(c): taken for c, taken in zip(configs, raced.samples, strict=True)})


def _final(winner: Config, default: Config, tied: list[Config], race: Racer, kept: Verdict
           ) -> Verdict:
    """Fresh rounds of the challenger against the default; twice as many when they are noisy."""
    pair = race([winner, default], FINAL_ROUNDS)
    if pair is not None and (_ratio(pair).is_wide or _drifts(pair)):
        pair = race([winner, default], 2 * FINAL_ROUNDS)
    if pair is None:
        return replace(kept, note="the challenger died in its final race")
    ratio, (mine, its) = _ratio(pair), pair.samples
    told = Verdict(default, "default kept", "ok", its, its, anchor=pair.anchor,
                   noise=noise_of(pair.anchor))
    if not ratio.beats(GAIN):
        return replace(told, status="noisy" if ratio.is_wide else "ok",
                       note=f"the best challenger was {ratio.value:.3f}x the default "
                            f"[{ratio.low:.3f}, {ratio.high:.3f}]")
    if _drifts(pair) and not _wins_both_halves(pair):
        return replace(told, status="noisy", note=(
            f"the best challenger was {ratio.value:.3f}x the default [{ratio.low:.3f}, "
            f"{ratio.high:.3f}], but not in both halves of a race in which the machine drifted"))
    return replace(told, config=winner, decision="tuned", samples=mine, equivalents=tuple(tied))


def _confirmed(won: Verdict, kept: Verdict, pair: Raced | None) -> Verdict:
    """The verdict after a second process: the smaller gain of the two is stored."""
    if pair is None:
        return replace(kept, note="the challenger died in its final race in a second process")
    first, ratio, (mine, its) = speedup(won.samples, won.baseline), _ratio(pair), pair.samples
    noise = noise_of(pair.anchor)
    if not ratio.beats(GAIN):
        return replace(kept, samples=its, baseline=its, anchor=pair.anchor, noise=noise, note=(
            f"the best challenger was {first.value:.3f}x the default in one process and "
            f"{ratio.value:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}] in another"))
    if ratio.value >= first.value:
        return won
    return replace(won, samples=mine, baseline=its, anchor=pair.anchor, noise=noise)


def _ratio(pair: Raced) -> Ratio:
    return speedup(pair.samples[0], pair.samples[1])


def _drifts(pair: Raced) -> bool:
    noise = noise_of(pair.anchor)
    return noise is not None and noise.verdict == "drifting"


def _wins_both_halves(pair: Raced) -> bool:
    """Whether the gain was there before the machine's speed changed, and after."""
    mine, its = pair.samples
    half = len(mine) // 2
    return all(low(its[part]) > (1.0 + GAIN) * low(mine[part])
               for part in (slice(None, half), slice(half, None)))


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
