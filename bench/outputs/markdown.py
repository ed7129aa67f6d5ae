"""A table for a pull request: verdicts first, then what the run could have seen."""

from __future__ import annotations

from ..gate import MEANING, Outcome
from ..result import Case, Result

_MARK = {"SLOW": "**SLOW**", "FAST": "FAST", "SAME": "same", "AMBG": "ambiguous"}


def _us(us: float | None) -> str:
    return "-" if us is None else f"{us:.4g}"


def _percent(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.0f} %"


def change(ratio: float) -> str:
    """1.05 as "+5.0 %"."""
    return f"{round(100 * (ratio - 1), 1) + 0.0:+.1f} %"     # no "-0.0"


def cell(text: str) -> str:
    """Text that cannot end a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _row(case: Case, outcome: Outcome | None) -> str:
    said = outcome.verdict(case.name) if outcome else None
    base, head = _us(case.us("base")), _us(case.us("head"))
    if said is None:
        why = case.error or ("not compared" if outcome else "")
        verdict = case.status if case.status != "ok" else "-"
        return (f"| `{cell(case.name)}` | {base} | {head} | - | {verdict} | "
                f"{_percent(case.percent_of_floor('head'))} | {cell(why)[:200]} |")
    return (f"| `{cell(case.name)}` | {base} | {head} | {change(said.ratio)} "
            f"[{change(said.low)}, {change(said.high)}] | {_MARK[said.verdict]} | "
            f"{_percent(case.percent_of_floor('head'))} | {cell(said.why)} |")


def headline(outcome: Outcome) -> str:
    """One line: what came out."""
    found = [c.verdict for c in outcome.judgement.cases]
    counts = ", ".join(f"{found.count(v)} {v}" for v in ("SLOW", "AMBG", "FAST", "SAME")
                       if v in found) or "nothing was compared"
    broken = sum(c.status in ("wrong", "failed") for c in outcome.result.cases)
    return (f"{MEANING[outcome.code]} (exit code {outcome.code}): {counts}"
            + (f", {broken} wrong or failed" if broken else ""))


def power_line(outcome: Outcome) -> str:
    """What the run could have seen: a gate without this hides its weakness."""
    j = outcome.judgement
    seen = ", ".join(f"{effect}: {100 * p:.0f} %" for effect, p in j.power.items())
    worst = max((c.noise for c in j.cases), default=0.0)
    return (f"Copies of the same code differed in this very run by {100 * j.noise_floor:.2f} % in "
            f"a typical case, {100 * worst:.1f} % in the worst (A/A, 95th percentile). Chance to "
            f"call a slow-down of one case SLOW: {seen or 'none'}.")


def limits_line(result: Result) -> str:
    """What "of the limit" refers to; empty when nothing was measured."""
    limits = ", ".join(f"{name} {value:.1f}" for name, value in result.limits.items())
    return f"Limits of this machine, measured (GB/s, GFLOP/s): {limits}." if limits else ""


def render(result: Result, outcome: Outcome | None) -> str:
    """The whole report."""
    lines = ["## Performance" + (f": {headline(outcome)}" if outcome else ""), ""]
    machine = result.machine
    lines += [f"{machine.model}; {machine.device}; {result.created}; "
              + "; ".join(f"{side} {revision[:12]}" for side, revision in result.revision.items()
                          if not side.endswith("_again")), ""]
    lines += ["| case | base us | head us | change [95 %] | verdict | of the limit | why |",
              "| --- | ---: | ---: | --- | --- | ---: | --- |"]
    lines += [_row(case, outcome) for case in result.cases]
    if outcome is not None:
        suite = outcome.judgement.suite
        if suite is not None:
            lines += ["", f"All cases together (geometric mean): {change(suite.ratio)} "
                          f"[{change(suite.low)}, {change(suite.high)}], {_MARK[suite.verdict]}."]
        lines += ["", power_line(outcome)]
        lines += [f"- {note}" for note in outcome.notes]
    if limits := limits_line(result):
        lines += ["", limits]
    return "\n".join(lines) + "\n"
