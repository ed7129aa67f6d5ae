"""From results to one verdict and an exit code: judge, measure again what is in doubt, decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from .estimate import Estimate, estimate
from .result import NoBaseline, Result
from .verdict import CaseVerdict, Judgement, Rules, judge

OK, REGRESSION, USAGE, AMBIGUOUS, WRONG, NO_BASELINE = range(6)
MEANING = {OK: "ok", REGRESSION: "slower", USAGE: "usage", AMBIGUOUS: "ambiguous",
           WRONG: "wrong results", NO_BASELINE: "no comparable baseline"}
ANCHOR_MOVED = 0.03                  # of the reference kernel: the machine was not itself
RETEST_ROUNDS = 2                    # times as many as in the first run
# A process can be slow for good (where its pages lie, on which core its threads stay): one that
# is measured as slow must be slow in three of at most four sets of processes.
CONFIRMATIONS, SLOW_TIMES = 3, 3
Ambiguous = Literal["fail", "warn", "pass"]


@dataclass(frozen=True)
class Outcome:
    """A judged run. What was measured again, in fresh processes, stands in `result`."""

    result: Result
    judgement: Judgement
    first: Judgement                 # before anything was measured again
    rules: Rules
    first_result: Result | None = None           # None: nothing was measured again
    notes: tuple[str, ...] = ()

    def verdict(self, name: str) -> CaseVerdict | None:
        """Of a case; None when it was not compared."""
        return next((c for c in self.judgement.cases if c.name == name), None)

    @property
    def code(self) -> int:
        """The exit code with `--ambiguous fail`: the gravest finding."""
        if any(c.status in ("wrong", "failed") for c in self.result.cases):
            return WRONG
        if not self.judgement.cases:
            return NO_BASELINE
        found = {c.verdict for c in self.judgement.cases}
        suite = self.judgement.suite
        if "SLOW" in found or suite is not None and suite.verdict == "SLOW":
            return REGRESSION
        return AMBIGUOUS if "AMBG" in found else OK

    def to_json(self) -> dict[str, Any]:
        """Verdicts and raw samples."""
        return {"exit_code": self.code, "meaning": MEANING[self.code], "notes": list(self.notes),
                "rules": asdict(self.rules), "judgement": asdict(self.judgement),
                "first_judgement": asdict(self.first), "result": self.result.to_json(),
                "first_result": self.first_result and self.first_result.to_json()}


def exit_code(code: int, ambiguous: Ambiguous) -> int:
    """What the process exits with: `warn` and `pass` let an ambiguous run through."""
    return OK if code == AMBIGUOUS and ambiguous != "fail" else code


def estimates(result: Result) -> dict[str, Estimate]:
    """Of every case that both sides have."""
    paired = bool(result.settings.get("paired", True))
    return {c.name: estimate(c.samples["head"], c.samples["base"],
                             c.samples.get("base_again", ()), seed, paired)
            for seed, c in enumerate(result.cases)
            if c.status == "ok" and c.samples.get("base") and c.samples.get("head")}


def _undecided(said: Sequence[CaseVerdict]) -> bool:
    """Whether new processes could still call a case slow: neither cleared nor slow often enough."""
    slow = sum(v.verdict == "SLOW" for v in said)
    left = 1 + CONFIRMATIONS - len(said)
    return said[-1].verdict in ("SLOW", "AMBG") and slow < SLOW_TIMES <= slow + left


def conclude(said: Sequence[CaseVerdict]) -> CaseVerdict:
    """The verdict on a case from all its measurements, each in processes of its own."""
    last, slow = said[-1], [v for v in said if v.verdict == "SLOW"]
    if len(said) == 1 or len(slow) >= SLOW_TIMES or not slow:
        return last
    if last.verdict in ("SAME", "FAST"):
        return replace(last, verdict="SAME", why=f"{_percent(slow[0].ratio)} before, not repeated "
                                                 "in fresh processes")
    return replace(last, verdict="AMBG", why=f"slow in {len(slow)} of {len(said)} measurements")


def settle(first: Judgement, again: Callable[[list[str]], Judgement]) -> Judgement:
    """Measure what is in doubt again, everything when the suite is slow; then conclude."""
    said = {c.name: [c] for c in first.cases}
    suite = first.suite
    for _ in range(CONFIRMATIONS):
        whole = suite is not None and suite.verdict == "SLOW" and suite is first.suite
        names = [n for n, found in said.items() if whole or _undecided(found)]
        if not names:
            break
        second = again(names)
        for case in second.cases:
            said[case.name].append(case)
        if whole:
            suite = second.suite
    return Judgement(tuple(conclude(found) for found in said.values()), suite)


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def decide(result: Result, rules: Rules,
           again: Callable[[Iterable[str]], Result] | None = None) -> Outcome:
    """Judge a result; `again` measures cases once more, in fresh processes."""
    first = judge(estimates(result), rules)
    notes = _notes(result)
    if again is None:
        return Outcome(result, first, first, rules, None, notes)
    taken: list[Result] = []

    def measured_again(names: list[str]) -> Judgement:
        taken.append(again(names))
        return judge(estimates(taken[-1]), rules, first.noise_floor)

    final, last = settle(first, measured_again), result
    for number, retest in enumerate(taken, 1):
        last = replace(last, cases=tuple(retest.case(c.name) or c for c in last.cases))
        names = ", ".join(c.name for c in retest.cases)
        notes = (*notes, f"measured again in fresh processes ({number}): {names}",
                 *(n for n in _notes(retest) if n not in notes))
    return Outcome(last, final, first, rules, result if taken else None, notes)


def _notes(result: Result) -> tuple[str, ...]:
    """What a reader must know before believing it."""
    notes = [f"{c.name}: {c.error}" for c in result.cases if c.status != "ok"]
    moved = result.anchor_spread()
    if moved is not None and moved > ANCHOR_MOVED:
        notes.append(f"the machine was not steady: a constant kernel moved by {100 * moved:.1f} % "
                     "between the halves of the run")
    base, head = (result.toolchain.get(s, {}) for s in ("base", "head"))
    if changed := [f"{k} {base.get(k)} -> {head.get(k)}" for k in sorted({*base, *head})
                   if base and base.get(k) != head.get(k) and k != "expertile"]:
        notes.append("the tools changed with the code: " + ", ".join(changed))
    return tuple(notes)


def join(base: Result, head: Result, any_host: bool = False) -> Result:
    """Two results of one machine as one, measured one after the other and therefore unpaired."""
    if differs := base.machine.differs(head.machine, any_host):
        raise NoBaseline(
            "two results compare only when one machine made both, and these differ in "
            f"{'; '.join(differs)}. Measure both here with: expertile bench gate --base REV")
    if differs := _settings_differ(base, head):
        raise NoBaseline(f"two results compare only when measured alike: {'; '.join(differs)}")
    drift = _anchor_drift(base, head)
    if drift > ANCHOR_MOVED and not any_host:
        raise NoBaseline(f"a constant reference kernel took {100 * drift:.1f} % longer or shorter "
                         "in one of the results: the machine was not the same. Measure both "
                         "together with: expertile bench gate --base REV")
    cases = []
    for new in head.cases:
        old = base.case(new.name)
        if old is None or old.status != "ok" or new.status != "ok":
            cases.append(new if new.status != "ok" else replace(
                new, status="new", error="the baseline has no such case"))
            continue
        samples = {"base": old.samples["head"], "base_again": old.samples.get("head_again", ()),
                   "head": new.samples["head"]}
        configs = {"base": old.config.get("head", {}), "head": new.config.get("head", {})}
        cases.append(replace(new, samples=samples, config=configs))
    tools = {"base": base.toolchain.get("head", {}), "head": head.toolchain.get("head", {})}
    revisions = {"base": base.revision.get("head", ""), "head": head.revision.get("head", "")}
    return replace(head, cases=tuple(cases), toolchain=tools, revision=revisions,
                   settings={**head.settings, "paired": False})


def _settings_differ(base: Result, head: Result) -> list[str]:
    return [f"{k}: {base.settings.get(k)} / {head.settings.get(k)}"
            for k in ("block", "configs", "sample_us")
            if base.settings.get(k) != head.settings.get(k)]


def _anchor_drift(base: Result, head: Result) -> float:
    from ..opt.stats import low

    a, b = ([us for block in r.anchor for us in block] for r in (base, head))
    return abs(low(b) / low(a) - 1) if a and b else 0.0
