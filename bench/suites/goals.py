"""The goals of the CPU kernels, one row an operator, and what a run says of each."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..result import Case, Result

Column = Literal["torch", "ggml", "fp8", "machine"]


@dataclass(frozen=True)
class Goal:
    """At least so many times as fast as a peer, or so much of what the machine allows."""

    row: str
    column: Column
    least: float
    label: str = ""                  # only of cases with this in their name
    peer: str = ""                   # only of peers with this in their name


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    key: str
    title: str
    unit: str                        # what 100 % of the machine means


ROWS = (
    Row("moe-decode-fp8", "MoE decode, 1-32 tokens, fp8 weights", "read bandwidth"),
    Row("moe-decode-bf16", "MoE decode, 1-32 tokens, bf16 weights", "read bandwidth"),
    Row("moe-prefill-16", "MoE prefill, 16 rows an expert", "FMA peak"),
    Row("moe-prefill-64", "MoE prefill, 64 rows an expert", "FMA peak"),
    Row("moe-prefill-256", "MoE prefill, 256 rows an expert", "FMA peak"),
    Row("dense-fp8", "dense block-scaled fp8 GEMM, M >= 192", "FMA peak"),
    Row("mla-decode-16", "MLA decode, 16 heads, context 1k-32k", "FMA peak"),
    Row("mla-decode-128", "MLA decode, 128 heads, context 1k-32k", "FMA peak"),
    Row("mla-prefill", "MLA prefill 192/128, 512-4096 tokens", "FMA peak"),
    Row("casts", "quantise / dequantise / SiLU-mul-quantise", "copy bandwidth"),
    Row("moe-int8", "MoE with int8 weights, 1-32 tokens and 64 rows", "read bandwidth"),
    Row("growth-experts", "MoE decode of 4 tokens over experts", "read bandwidth"))

GOALS = (
    Goal("moe-decode-fp8", "torch", 3.5), Goal("moe-decode-fp8", "ggml", 1.3),
    Goal("moe-decode-fp8", "machine", 0.90, "tokens=1,"),
    Goal("moe-decode-bf16", "torch", 2.0), Goal("moe-decode-bf16", "ggml", 1.8),
    Goal("moe-decode-bf16", "machine", 0.90, "tokens=1,"),
    Goal("moe-prefill-16", "torch", 2.0), Goal("moe-prefill-16", "ggml", 2.0),
    Goal("moe-prefill-16", "machine", 0.70),
    Goal("moe-prefill-64", "torch", 1.4), Goal("moe-prefill-64", "ggml", 2.0),
    Goal("moe-prefill-64", "machine", 0.82),
    Goal("moe-prefill-256", "torch", 1.15), Goal("moe-prefill-256", "ggml", 2.0),
    Goal("moe-prefill-256", "machine", 0.90),
    Goal("dense-fp8", "torch", 1.15), Goal("dense-fp8", "machine", 0.90),
    Goal("mla-decode-16", "torch", 2.0), Goal("mla-decode-16", "ggml", 1.3),
    Goal("mla-decode-16", "machine", 0.80),
    Goal("mla-decode-128", "torch", 1.4), Goal("mla-decode-128", "ggml", 1.3),
    Goal("mla-decode-128", "machine", 0.90),
    Goal("mla-prefill", "torch", 1.3), Goal("mla-prefill", "machine", 0.75),
    Goal("casts", "torch", 4.0, peer="eager"), Goal("casts", "torch", 3.0, peer="compile"),
    Goal("casts", "machine", 0.80),
    Goal("moe-int8", "fp8", 1.0))


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over rounds."""

    value: float
    low: float
    high: float


def over(above: Sequence[Sequence[float]], below: Sequence[Sequence[float]]) -> Spread | None:
    """Ratios of round medians: what slows a whole round down slows both."""
    found = [statistics.median(a) / statistics.median(b)
             for a, b in zip(above, below, strict=False)]
    if not found:
        return None
    if len(found) < 3:
        return Spread(statistics.median(found), min(found), max(found))
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return Spread(middle, low, high)


def ours(case: Case) -> str:
    """The fastest of our variants; "" when none ran."""
    names = [s for s in case.samples if s.startswith("ours")]
    medians = {s: statistics.median(case.flat(s)) for s in names}
    return min(medians, key=medians.__getitem__, default="")


def peers(case: Case, family: str) -> list[str]:
    """A family's sides: "torch" (transformers computes with it), "ggml", or our "fp8" kernel."""
    meant = ("torch", "flex", "transformers") if family == "torch" else (family,)
    return [s for s in case.samples if s.startswith(meant)]


def ratio(case: Case, goal: Goal) -> tuple[Spread, str] | None:
    """What a case reached, and against whom; None where it says nothing of the goal."""
    if goal.label and goal.label not in case.name:
        return None
    if goal.column == "machine":     # as the goals are: float32 arithmetic, float32 limit
        found = over(case.samples.get("floor", ()), case.samples.get("ours f32", ()))
        return (found, "") if found else None
    mine = ours(case)
    rivals = [s for s in peers(case, goal.column) if goal.peer in s]
    if not mine or not rivals:
        return None
    best = min(rivals, key=lambda s: statistics.median(case.flat(s)))
    found = over(case.samples[best], case.samples[mine])
    return (found, best) if found else None


@dataclass(frozen=True)
class Answer:
    """What a run says of a goal at one thread count."""

    goal: Goal
    threads: int
    met: bool | None                 # None: not measured
    least: float = 0.0               # over the row's cases
    most: float = 0.0
    worst: str = ""                  # the case with the least, and its rival
    why: str = ""                    # not measured, because
    held: int = 0                    # cases that reach it, and all
    of: int = 0


def answers(result: Result) -> list[Answer]:
    """Every goal at every thread count of the run."""
    found = []
    for goal in GOALS:
        for threads in sorted(result.settings.get("threads", ())):
            rows = [c for c in result.cases
                    if c.group == goal.row and c.name.endswith(f",{threads}T]")]
            reached = [(c, r) for c in rows if (r := ratio(c, goal)) is not None]
            if not reached:
                found.append(Answer(goal, threads, None, why=_why_not(result, rows, goal)))
                continue
            worst, (spread, rival) = min(reached, key=lambda x: x[1][0].value)
            values = [r[0].value for _, r in reached]
            held = sum(v >= goal.least for v in values)
            found.append(Answer(
                goal, threads, held == len(values), min(values), max(values),
                f"{worst.name} against {rival}" if rival else worst.name, "", held, len(values)))
    return found


def _why_not(result: Result, rows: Sequence[Case], goal: Goal) -> str:
    if not rows:
        return "no case of the row was run (--quick, or the time budget was spent)"
    broken = [c.error for c in rows if c.status != "ok"]
    if broken:
        return broken[0][:160]
    missing: dict[str, Any] = dict(result.settings.get("missing", {}))
    return str(missing.get(goal.column, "no such peer ran"))[:160]
