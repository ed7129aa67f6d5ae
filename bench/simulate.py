"""CI runs simulated from recorded noise: how often would this gate have been right on this machine?

The recording is a gate of a revision against itself. A simulated run draws runs of neighbouring
rounds, all sides of a round together, so that drift, the other tenants' bursts and the difference
between two processes stay as they were; then it slows one side down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .estimate import estimate
from .gate import RETEST_ROUNDS, settle
from .result import Result, Samples
from .verdict import Judgement, Rules, judge

NEIGHBOURS = 5                       # rounds drawn together
RESAMPLES = 400                      # of each of many runs: a fifth of what a real one takes
SIDES = ("base", "base_again", "head")
Rounds = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Noise:
    """Relative times of three copies of the same code: [round, side, sample]."""

    cases: tuple[Rounds, ...]


def shipped_recordings() -> list[Path]:
    """Noise recorded by `python -m expertile.bench.prove noise`; each says where and when."""
    return sorted((Path(__file__).parent / "noise").glob("*.json"))


def provenance(recording: Result) -> str:
    """Where and when noise was recorded, and how."""
    machine = recording.machine
    return (f"{machine.model}; {machine.device}; {recording.created}; {len(recording.cases)} "
            f"cases of 3 processes; {recording.command}")


def noise_of(recordings: Sequence[Result]) -> Noise:
    """The noise of A/A gates, case by case, as multiples of the case's median."""
    found = []
    for recording in recordings:
        for case in recording.cases:
            if all(case.samples.get(side) for side in SIDES):
                taken = np.asarray([case.samples[side] for side in SIDES]).transpose(1, 0, 2)
                found.append(taken / np.median(taken))
    if not found:
        raise ValueError("a recording of noise must hold cases with the sides base, base_again and "
                         "head; make one with: expertile bench gate --base HEAD --out FILE")
    return Noise(tuple(found))


def _draw(rounds: Rounds, count: int, random: np.random.Generator) -> Rounds:
    """`count` rounds in runs of neighbours, the sides in a random order."""
    starts = random.integers(0, len(rounds), -(-count // NEIGHBOURS))
    at = (starts[:, None] + np.arange(NEIGHBOURS)).reshape(-1)[:count] % len(rounds)
    return np.asarray(rounds[at][:, random.permutation(len(SIDES))])


def _blocks(taken: Rounds) -> Samples:
    return tuple(tuple(float(us) for us in block) for block in taken)


def _judged(noise: Noise, slow: Sequence[float], us: float, rounds: int, rules: Rules,
            random: np.random.Generator) -> Judgement:
    estimates = {}
    for number, effect in enumerate(slow):
        case = noise.cases[int(random.integers(len(noise.cases)))]
        taken = us * _draw(case, rounds, random)
        base, again, head = (taken[:, i] for i in range(3))
        estimates[f"case {number}"] = estimate(
            _blocks(head * (1 + effect)), _blocks(base), _blocks(again), number,
            resamples=RESAMPLES)
    return judge(estimates, rules)


def caught(noise: Noise, effect: float, runs: int, cases: int = 4, us: float = 500.0,
           rounds: int = 40, rules: Rules | None = None, seed: int = 0) -> float:
    """The share of simulated CI runs that call the one slowed-down case SLOW, after the retest;
    for an effect of 0 the share with any alarm, of a case or of the suite."""
    rules, random = rules or Rules(), np.random.default_rng(seed)
    slow = [effect] + [0.0] * (cases - 1)
    alarms = 0
    for _ in range(runs):
        first = _judged(noise, slow, us, rounds, rules, random)
        said = settle(first, lambda names: _judged(
            noise, slow, us, RETEST_ROUNDS * rounds, rules, random))
        if effect:
            alarms += said.cases[0].verdict == "SLOW"
        else:
            alarms += (any(c.verdict == "SLOW" for c in said.cases)
                       or said.suite is not None and said.suite.verdict == "SLOW")
    return alarms / runs
