"""Is it slower? A noise floor from the same run, Holm over cases, and the power that it had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import erfc, exp, log1p, sqrt
from typing import Literal

import numpy as np

from .estimate import Array, Estimate

Verdict = Literal["SLOW", "SAME", "FAST", "AMBG"]
FEWEST_ROUNDS = 10                   # with fewer, a bootstrap's intervals are too narrow
FEW_FOR_A_TAIL = 10                  # resamples beyond a limit that a percentile needs
MIN_SUITE = 3                        # cases of which a geometric mean says something of its own
EFFECTS = (0.03, 0.05, 0.10)         # slow-downs for which a run states its power


@dataclass(frozen=True)
class Rules:
    """What a gate is asked for; fractions, so 0.03 is 3 %."""

    threshold: float = 0.03          # of one case
    suite_threshold: float = 0.015   # of the geometric mean
    absolute_us: float = 0.5         # a smaller change is nobody's affair
    alpha: float = 0.05              # false alarms of the whole family of cases
    noise_limit: float = 2.0         # a floor beyond so many thresholds says nothing

    def __post_init__(self) -> None:
        for name in ("threshold", "suite_threshold", "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be a fraction between 0 and 1, got "
                                 f"{getattr(self, name)}; 3 % is 0.03")


@dataclass(frozen=True)
class CaseVerdict:
    """What is said of one case. Ratios: 1.05 is 5 % slower."""

    name: str
    verdict: Verdict
    ratio: float
    low: float                       # 95 % interval
    high: float
    p: float                         # of the hypothesis that it is no slower than 1 + delta
    p_holm: float
    delta: float                     # what had to be exceeded, and which of three rules set it
    delta_by: str
    noise: float                     # copies of the same code differ by this much here
    power: Mapping[str, float]       # chance to call a slow-down of 3, 5, 10 % SLOW
    why: str = ""


@dataclass(frozen=True)
class SuiteVerdict:
    """The geometric mean over cases."""

    verdict: Verdict
    ratio: float
    low: float
    high: float
    delta: float
    power: Mapping[str, float]


@dataclass(frozen=True)
class Judgement:
    """All verdicts of a run, and what the run could have seen."""

    cases: tuple[CaseVerdict, ...]
    suite: SuiteVerdict | None       # None: too few cases

    @property
    def noise_floor(self) -> float:
        """Of a typical case of this very run."""
        return float(np.median([c.noise for c in self.cases])) if self.cases else 0.0

    @property
    def power(self) -> dict[str, float]:
        """Mean over cases."""
        effects = self.cases[0].power if self.cases else {}
        return {k: float(np.mean([c.power[k] for c in self.cases])) for k in effects}


def noise_floors(estimates: Sequence[Estimate], known: float | None = None) -> list[float]:
    """What this run calls a difference between two copies of the same code: the 95th percentile
    of a case's |A/A|, and never less than that of a typical case of the run, for one twin may
    agree by luck. A case that is louder than the others speaks for itself alone. `known` is what
    is typical of the whole run, where only its doubtful cases are measured again.
    """
    own = [float(np.quantile(np.abs(e.twin), 0.95)) if len(e.twin) else 0.0 for e in estimates]
    typical = float(np.median(own)) if own else 0.0
    if known is not None:
        typical = min(typical, known)
    return [max(floor, typical) for floor in own]


def _p_value(e: Estimate, delta: float) -> float:
    """That d is no more than delta: by percentile, beyond the resamples by a normal tail."""
    beyond = int((e.replicates <= delta).sum())
    if beyond >= FEW_FOR_A_TAIL:
        return beyond / len(e.replicates)
    spread = max(float(e.replicates.std()), 1e-9)
    normal = 0.5 * erfc((e.d - delta) / spread / sqrt(2))
    return min(1.0, max(normal, beyond / len(e.replicates)))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: the family's error stays what a single one's would be."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, worst = [1.0] * len(p), 0.0
    for place, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = worst
    return adjusted


def _power(replicates: Array, d: float, delta: float, alpha: float) -> dict[str, float]:
    """Chance that the lower bound of a run like this exceeds delta, were the truth an effect."""
    centred = replicates - d
    half = -float(np.quantile(centred, min(alpha, 0.5)))
    return {f"{100 * effect:g} %": float((centred + log1p(effect) - half > delta).mean())
            for effect in EFFECTS}


def _meant(e: Estimate, rules: Rules) -> float:
    """What the user calls no difference."""
    return max(log1p(rules.threshold), log1p(rules.absolute_us / e.base_us))


def _delta(e: Estimate, rules: Rules, floor: float) -> tuple[float, str]:
    rule = {"threshold": log1p(rules.threshold), "noise floor of this run": floor,
            "absolute floor": log1p(rules.absolute_us / e.base_us)}
    by = max(rule, key=rule.__getitem__)
    return rule[by], by


def judge(estimates: Mapping[str, Estimate], rules: Rules, known: float | None = None
          ) -> Judgement:
    """Verdicts on all cases of one run; `known` is the typical noise of the run before."""
    if not estimates:
        return Judgement((), None)
    floors = dict(zip(estimates, noise_floors(list(estimates.values()), known), strict=True))
    deltas = {name: _delta(e, rules, floors[name]) for name, e in estimates.items()}
    p = [_p_value(e, deltas[name][0]) for name, e in estimates.items()]
    cases = tuple(
        _case(name, e, *deltas[name], p_one, p_adjusted, rules, floors[name],
              len(estimates))
        for (name, e), p_one, p_adjusted in zip(estimates.items(), p, holm(p), strict=True))
    return Judgement(cases, _suite(list(estimates.values()), rules))


def _case(name: str, e: Estimate, delta: float, by: str, p: float, p_holm: float, rules: Rules,
          floor: float, family: int) -> CaseVerdict:
    lower, upper = (float(x) for x in np.quantile(e.replicates, (0.025, 0.975)))
    verdict: Verdict = "AMBG"
    why = f"the interval crosses {100 * (exp(delta) - 1):.1f} %"
    if e.rounds < FEWEST_ROUNDS:
        why = f"{e.rounds} rounds say nothing, at least {FEWEST_ROUNDS} are needed"
    elif p_holm < rules.alpha and lower > delta:
        verdict, why = "SLOW", ""
    elif floor > rules.noise_limit * log1p(rules.threshold) and by != "absolute floor":
        why = f"too noisy: copies of the same code differ by {100 * floor:.1f} %"
    elif max(-lower, upper) <= _meant(e, rules):     # a loud run may not call more the same
        verdict, why = "SAME", ""
    elif upper < -delta:
        verdict, why = "FAST", ""
    return CaseVerdict(name, verdict, exp(e.d), exp(lower), exp(upper), p, p_holm, exp(delta) - 1,
                       by, floor, _power(e.replicates, e.d, delta, rules.alpha / family), why)


def _suite(estimates: Sequence[Estimate], rules: Rules) -> SuiteVerdict | None:
    """Small slow-downs everywhere: each case's replicates are independent of the others'."""
    if len(estimates) < MIN_SUITE or any(e.rounds < FEWEST_ROUNDS for e in estimates):
        return None
    d = float(np.mean([e.d for e in estimates]))
    replicates = np.mean([e.replicates for e in estimates], axis=0)
    floor = 0.0
    if all(len(e.twin) for e in estimates):
        floor = float(np.quantile(np.abs(np.mean([e.twin for e in estimates], axis=0)), 0.95))
    small = [e for e in estimates if rules.absolute_us / e.base_us > rules.threshold]
    delta = max(log1p(rules.suite_threshold), floor)
    if small:                        # their absolute floor holds in the mean as well
        delta = max(delta, float(np.mean([_delta(e, rules, 0.0)[0] for e in estimates])))
    lower, upper = (float(x) for x in np.quantile(replicates, (0.025, 0.975)))
    verdict: Verdict = ("SLOW" if lower > delta else "FAST" if upper < -delta
                        else "SAME" if -delta <= lower and upper <= delta else "AMBG")
    return SuiteVerdict(verdict, exp(d), exp(lower), exp(upper), exp(delta) - 1,
                        _power(replicates, d, delta, 0.025))
