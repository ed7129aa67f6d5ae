"""The tables of a suite's report: goals, cases, limits, cliffs; as cells, for any output."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from ..result import Case, Result
from . import limits
from .goals import GOALS, ROWS, Answer, Spread, answers, ours, over, peers
from .growth import cliffs, series

_COLUMN = {"torch": "the best torch form", "ggml": "ggml", "fp8": "our fp8 kernel, as many bytes",
           "machine": "the machine"}


@dataclass(frozen=True)
class Table:
    """A heading, column names and rows of text."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def _goal(answer: Answer) -> str:
    least = answer.goal.least
    wanted = f">= {100 * least:.0f} %" if answer.goal.column == "machine" else f">= {least:g}x"
    return f"{wanted}{' ' + answer.goal.peer if answer.goal.peer else ''}"


def _amount(answer: Answer, value: float) -> str:
    return f"{100 * value:.0f} %" if answer.goal.column == "machine" else f"{value:.2f}x"


def goals(result: Result) -> Table:
    """One line for each goal and thread count: met, missed, or why it was not measured."""
    titles = {row.key: row for row in ROWS}
    found = []
    for answer in answers(result):
        row = titles[answer.goal.row]
        against = (f"{_COLUMN['machine']} ({row.unit})" if answer.goal.column == "machine"
                   else _COLUMN[answer.goal.column])
        if answer.met is None:
            said, reached = "not measured", answer.why
        else:
            said = "met" if answer.met else f"MISSED ({answer.held} of {answer.of} hold)"
            span = {_amount(answer, v): None for v in (answer.least, answer.most)}
            reached = f"{' to '.join(span)}; least: {answer.worst}"
        found.append((row.title, f"{answer.threads}T", against, _goal(answer), said, reached))
    return Table("Goals", ("operator", "threads", "against", "goal", "", "reached"),
                 tuple(found),
                 "Medians of interleaved rounds; a goal is met when every case of its row reaches "
                 "it. The machine: float32 kernels against the limit measured in the same rounds.")


def _spread(found: Spread | None, percent: bool = False) -> str:
    if found is None:
        return "-"
    if percent:
        return f"{100 * found.value:.0f} % ({100 * found.low:.0f}-{100 * found.high:.0f})"
    return f"{found.value:.2f}x ({found.low:.2f}-{found.high:.2f})"


def _best(case: Case, family: str) -> str:
    return min(peers(case, family), key=lambda s: statistics.median(case.flat(s)), default="")


def _ms(case: Case, side: str) -> str:
    return f"{statistics.median(case.flat(side)) / 1e3:.3f}" if side in case.samples else "-"


def cases(result: Result) -> Table:
    """Every case: milliseconds, ratios with quartiles, percent of the floor."""
    found: list[tuple[str, ...]] = []
    for case in result.cases:
        if not case.samples:
            found.append((case.name, case.status, *("-",) * 8, case.error[:160]))
            continue
        samples, mine = case.samples, ours(case)
        rivals = [_best(case, family) for family in ("torch", "ggml", "fp8")]
        told: list[str] = []
        for rival in rivals if rivals[2] else rivals[:2]:
            told += [f"{_ms(case, rival)} {rival}".strip(),
                     _spread(over(samples[rival], samples[mine])) if rival else "-"]
        if rivals[2]:                # a third rival shares the second's cells
            told = [*told[:2], f"{told[2]}; {told[4]}", f"{told[3]}; {told[5]}"]
        f32 = _spread(over(samples.get("floor", ()), samples.get("ours f32", ())), True)
        found.append((
            case.name, _ms(case, "ours f32"),
            "-" if mine == "ours f32" else f"{_ms(case, mine)} {mine.removeprefix('ours ')}",
            *told, f32, _dot_percent(result, case), str(case.answered_by.get("limit", "")),
            case.error[:160]))
    return Table("Cases", ("case", "ours f32, ms", "ours, a faster form, ms",
                           "best of torch, ms", "torch / ours", "ggml, ms", "ggml / ours",
                           "f32: of the floor", "bf16: of the dot-product floor",
                           "the floor's limit", "errors"),
                 tuple(found), "Ratios: median of rounds (quartiles), our faster variant.")


def _dot_percent(result: Result, case: Case) -> str:
    """The bfloat16 variant against the peak of the CPU's bfloat16 dot products."""
    threads = case.name.rpartition(",")[2].removesuffix("T]")
    peak = result.limits.get(f"{limits.DOT}, {threads} threads")
    if "ours bf16" not in case.samples or not peak:
        return "-"
    us = statistics.median(case.flat("ours bf16"))
    return f"{100 * case.flops / peak / 1e3 / us:.0f} %"


def machine(result: Result) -> Table:
    """The limits that were measured first."""
    found = [(name, f"{value:.1f}", limits.MEANING[name.rpartition(",")[0]])
             for name, value in result.limits.items() if name.rpartition(",")[0] in limits.MEANING]
    return Table("Limits of this machine", ("limit", "median", "what"), tuple(found))


def growth(result: Result) -> Table:
    """Cliffs: where time grows more than the work explains."""
    steps = cliffs(series(result))
    rows = tuple((c.series, f"{c.threads}T", f"{c.axis} {c.low} to {c.high}", f"{c.step:.2f}x")
                 for c in steps)
    return Table("Cliffs", ("series", "threads", "between", "time over floor grows by"), rows,
                 "None." if not rows else
                 "Neighbouring sizes whose time grows more than 1.5 times as fast as their floor.")


def notes(result: Result) -> list[str]:
    """What the reader must know of the run."""
    settings = result.settings
    tools = result.toolchain.get("head", {})
    told = []
    if (arch := settings.get("arch")) != (host := settings.get("host arch")):
        told.append(f"{arch} code on a machine of level {host}: our kernels and the limits are "
                    f"compiled for {arch}, torch, oneDNN, MKL and torch.compile are held to it in "
                    "the same way (MKL's float32 product is what it takes for this CPU).")
    if "torch's code" in tools:
        told.append(", ".join(f"{name} {tools[name]}" for name in (
            "torch's code", "torch.compile's code", "torch's bfloat16 product") if name in tools)
            + ".")
    told += [f"Without {name}: {why}" for name, why in dict(settings.get("missing", {})).items()]
    if "ggml built for" in tools and settings.get("suite") == "cpu-ops":
        told.append(f"ggml {tools['ggml']} as prebuilt, for {tools['ggml built for']}; its MoE "
                    "layer is timed without the weighted sum, its attention on a float16 cache.")
    if settings.get("suite") == "cpu-ops":
        told.append("torch.compile and flex attention were tried on casts and on some sizes of "
                    "MoE and attention (ten seconds a form).")
    if settings.get("interrupted"):
        told.append("The run was interrupted; go on with --resume.")
    if skipped := settings.get("skipped"):
        told.append(f"Not measured, for want of time: {', '.join(skipped)}.")
    return told


def tables(result: Result) -> list[Table]:
    """All of them; goals only where the suite has some."""
    found = [machine(result)]
    if any(c.group in {g.row for g in GOALS} for c in result.cases):
        found.insert(0, goals(result))
        found.append(growth(result))
    if result.settings.get("suite") != "cpu-limits":
        found.append(cases(result))
    return found
