"""Statistics and the decision, under noise like that of a shared machine."""

from __future__ import annotations

import numpy as np
import pytest

from expertile.opt.decide import Racer, decide
from expertile.opt.stats import low, speedup
from expertile.opt.workers import Raced
from tests.tuning_db.records import candidate


def _noise(rng: np.random.Generator, kind: str, n: int) -> np.ndarray:
    if kind == "normal":
        return np.exp(rng.normal(0, 0.03, n))
    preempted = rng.random(n) < 0.3      # bimodal, as with time slicing
    return np.exp(rng.normal(0, 0.005, n)) * np.where(preempted, 1 + rng.exponential(1.0, n), 1)


def _decisions(kind: str, best: float, runs: int) -> list[tuple[str, int]]:
    rng, times = np.random.default_rng(0), [100.0] * 11 + [100.0 * best]
    found = []
    for _ in range(runs):
        rows = [candidate(i, us=low((t * _noise(rng, kind, 12)).tolist()),
                          default_us=low((100 * _noise(rng, kind, 12)).tolist()))
                for i, t in enumerate(times)]
        verdict = decide(rows, {"i": 0}, None, lambda configs, rounds: Raced([
            (times[int(c["i"])] * _noise(rng, kind, rounds)).tolist() for c in configs]))
        found.append((verdict.decision, int(verdict.config["i"])))
    return found


@pytest.mark.parametrize("kind", ["normal", "bimodal"])
def test_equal_configs_keep_the_default_and_a_better_one_wins(kind: str) -> None:
    same = _decisions(kind, 1.0, 60)
    assert sum(d == "tuned" for d, _ in same) <= 1
    assert _decisions(kind, 0.9, 20) == [("tuned", 11)] * 20


def test_ties_are_broken_by_what_was_stored_then_by_hash() -> None:
    times = {0: 100.0, 1: 50.0, 2: 50.0, 3: 50.1}
    rows = [candidate(i, us=t, default_us=100.0) for i, t in times.items()]

    def race(configs: list, rounds: int) -> Raced:
        return Raced([[times[c["i"]]] * rounds for c in configs])

    first = decide(rows, {"i": 0}, None, race)
    assert sorted(c["i"] for c in first.equivalents) == [1, 2, 3]
    assert decide(rows[::-1], {"i": 0}, None, race).config == first.config
    other = next(i for i in (1, 2, 3) if {"i": i} != first.config)
    before = candidate(other)
    assert decide(rows, {"i": 0}, before, race).config == {"i": other}


def test_a_race_that_dies_keeps_the_default() -> None:
    rows = [candidate(0, us=100.0, default_us=100.0), candidate(1, us=50.0, default_us=100.0)]
    verdict = decide(rows, {"i": 0}, None, lambda configs, rounds: None)
    assert verdict.decision == "default kept" and "died" in verdict.note


@pytest.mark.parametrize(("there", "decision", "stored"), [
    (60.0, "tuned", 60.0), (40.0, "tuned", 50.0), (100.0, "default kept", 100.0),
    (140.0, "default kept", 100.0), (None, "default kept", 100.0)])
def test_a_gain_has_to_be_there_in_a_second_process(there: float | None, decision: str,
                                                    stored: float) -> None:
    """50 against 100 in the first; the smaller gain of two is stored."""
    rows = [candidate(0, us=100.0, default_us=100.0), candidate(1, us=50.0, default_us=100.0)]

    def race(us: float | None) -> Racer:
        return lambda configs, rounds: us and Raced([
            [100.0 if c["i"] == 0 else us] * rounds for c in configs])

    verdict = decide(rows, {"i": 0}, None, race(50.0), race(there))
    assert verdict.decision == decision and verdict.config == {"i": int(decision == "tuned")}
    if there is not None:
        assert (low(list(verdict.samples)), low(list(verdict.baseline))) == (stored, 100.0)
    assert ("in another" in verdict.note) == (there in (100.0, 140.0))
    assert ("second process" in verdict.note) == (there is None)


def test_intervals() -> None:
    rng = np.random.default_rng(1)
    for n in (5, 40):
        covered = 0
        for _ in range(200):
            fast, slow = rng.lognormal(0, 0.02, n), 1.2 * rng.lognormal(0, 0.02, n)
            r = speedup(fast.tolist(), slow.tolist())
            covered += r.low <= 1.2 <= r.high
        assert covered >= 0.85 * 200
    assert speedup([1.0], [2.0]).is_wide and not speedup([1.0], [2.0]).beats(0.01)
    assert low([3.0, 1.0, 2.0]) == 1.0 and low([float(i) for i in range(21)]) == 4.0
