"""One HTML file without scripts or network: verdicts, a roofline and the spread of every case.

The plots are SVG text: they scale, print and need no library.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import log10

from ..gate import Outcome
from ..result import Case, Result
from .markdown import change, headline, limits_line, power_line
from .names import short_names

_COLOUR = {"SLOW": "#b3261e", "AMBG": "#8a6100", "FAST": "#1b6e3c", "SAME": "#3b4a5a",
           "": "#3b4a5a"}
_GROUPS = ("#1f5fa8", "#b3261e", "#1b6e3c", "#8a6100", "#6a3fa0", "#00707a", "#a0366e",
           "#3b4a5a")
_NUMBERS = ("base us", "head us", "change", "of the limit")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff; margin: 2rem auto;
       max-width: 1080px; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; font-size: 13px }
th, td { text-align: left; padding: 4px 8px; border-bottom: 1px solid #d7dde3;
         vertical-align: top }
td { overflow-wrap: anywhere } td.v { overflow-wrap: normal; font-weight: 600 }
td small { display: block; color: #6b7885; font-size: 11px }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
svg { width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: #1c2733 }
"""


def _verdict(case: Case, outcome: Outcome | None) -> str:
    said = outcome.verdict(case.name) if outcome else None
    return said.verdict if said else ""


def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0) -> str:
    """A segment in SVG."""
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"/>')


def text(x: float, y: float, text: str, anchor: str = "start") -> str:
    """A label."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def dot(x: float, y: float, colour: str, title: str, radius: float = 4.0) -> str:
    """A point that says what it is."""
    return (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity="0.75">'
            f"<title>{escape(title)}</title></circle>")


def svg(height: int, parts: list[str], label: str) -> str:
    """A plot 1000 units wide."""
    return (f'<svg viewBox="0 0 1000 {height}" role="img" aria-label="{escape(label)}">'
            + "".join(parts) + "</svg>")


def roofline(result: Result, outcome: Outcome | None) -> str:
    """GFLOP/s over flops a byte, below the limits that were measured on this machine."""
    bandwidth, peak = result.limits.get("bandwidth"), result.limits.get("flops")
    cases = [c for c in result.cases if c.us("head") and c.flops > 0 and c.bytes > 0]
    if not (bandwidth and peak and cases):
        return ""
    reached = {c.name: c.flops / (c.us("head") or 1) / 1e3 for c in cases}
    xs = [c.flops / c.bytes for c in cases] + [peak / bandwidth]
    left, right = log10(min(xs)) - 0.3, log10(max(xs)) + 0.3
    low = log10(min(*reached.values(), peak / 10)) - 0.2
    high = log10(max(*reached.values(), peak)) + 0.2

    def at(intensity: float, gflops: float) -> tuple[float, float]:
        return (70 + 900 * (log10(intensity) - left) / (right - left),
                330 - 300 * (log10(gflops) - low) / (high - low))

    parts = [line(70, 330, 970, 330, "#8793a0"), line(70, 30, 70, 330, "#8793a0")]
    for power in range(int(left) - 1, int(right) + 2):
        if left <= power <= right:
            parts += [text(at(10.0**power, 10**low)[0], 348, f"{10.0**power:g}", "middle")]
    for power in range(int(low) - 1, int(high) + 2):
        if low <= power <= high:
            parts += [text(64, at(10**left, 10.0**power)[1] + 4, f"{10.0**power:g}", "end")]
    ridge = peak / bandwidth
    start = max(10**left, 10**low / bandwidth)
    parts += [line(*at(start, start * bandwidth), *at(ridge, peak), "#1c2733", 2),
              line(*at(ridge, peak), *at(10**right, peak), "#1c2733", 2),
              text(520, 368, "flops a byte", "middle"), text(70, 18, "GFLOP/s")]
    groups = list(dict.fromkeys(c.group for c in cases))
    for number, group in enumerate(groups):
        y = 318.0 - 17 * (len(groups) - 1 - number)
        parts += [dot(962, y - 4, _GROUPS[number % len(_GROUPS)], group, 5),
                  text(952, y, group, "end")]
    parts += [dot(*at(c.flops / c.bytes, reached[c.name]),
                  _GROUPS[groups.index(c.group) % len(_GROUPS)],
                  f"{c.name}: {reached[c.name]:.1f} GFLOP/s, "
                  f"{c.percent_of_floor('head') or 0:.0f} % of the limit {_verdict(c, outcome)}",
                  5) for c in cases]
    return ("<h2>Roofline</h2><p>Lines: this machine's limits, measured. Dots: cases; hover for "
            "the name. A dot above the line found its data in the cache.</p>"
            + svg(380, parts, "roofline"))


def label(name: str) -> str:
    """What has room beside a plot."""
    return name if len(name) <= 58 else name[:57] + "…"


def changes(outcome: Outcome) -> str:
    """The interval of every case's change."""
    cases = outcome.judgement.cases
    if not cases:
        return ""
    most = max(0.05, *(abs(x - 1) for c in cases for x in (c.low, c.high, c.ratio)))

    def at(ratio: float) -> float:
        return 700 + 270 * (ratio - 1) / most

    height = 22 * len(cases) + 40
    limit = outcome.rules.threshold
    parts = [line(at(1 + x), 10, at(1 + x), height - 26, colour)
             for x, colour in ((0.0, "#8793a0"), (limit, "#e8b4b0"), (-limit, "#b4d4c0"))]
    parts += [text(at(1 + s * most), height - 8, f"{100 * s * most:+.1f} %" if s else "0",
                   "middle") for s in (-1, 0, 1)]
    short = short_names(outcome.result.cases)
    for number, case in enumerate(cases):
        y, colour = 22.0 * number + 20, _COLOUR[case.verdict]
        name = label(short.get(case.name, case.name))
        parts += [f"<g><title>{escape(case.name)}</title>{text(0, y + 4, name)}</g>",
                  line(at(case.low), y, at(case.high), y, colour, 3),
                  dot(at(case.ratio), y, colour, f"{case.name}: {change(case.ratio)}")]
    return ("<h2>Change of each case</h2><p>Point and 95 % interval; right is slower. "
            "Red and green: the threshold.</p>"
            + svg(height, parts, "change of each case"))


def samples(result: Result) -> str:
    """Every sample of head (and base, grey) as a multiple of the case's low quantile."""
    cases = [c for c in result.cases if c.samples.get("head")]
    if not cases:
        return ""

    def at(multiple: float) -> float:
        return 430 + 360 * (min(max(multiple, 0.5), 2.0) - 0.5)

    parts = []
    short = short_names(result.cases)
    for number, case in enumerate(cases):
        y, us = 24.0 * number + 20, case.us("head") or 1.0
        parts.append(text(0, y + 4, label(short[case.name])))
        for side, colour, shift in (("base", "#8793a0", -4.0), ("head", "#1f5fa8", 4.0)):
            parts += [dot(at(x / us), y + shift, colour, f"{side} {x:.4g} us", 1.8)
                      for x in case.flat(side)]
    height = 24 * len(cases) + 40
    parts += [text(at(m), height - 8, f"{m:g}x", "middle") for m in (0.5, 1.0, 1.5, 2.0)]
    return ("<h2>Samples</h2><p>As multiples of head's low quantile; what lies beyond stands at "
            "the edge. Blue: head, grey: base.</p>" + svg(height, parts, "samples"))


def _table(result: Result, outcome: Outcome | None) -> str:
    rows = []
    short = short_names(result.cases)
    for case in result.cases:
        said = outcome.verdict(case.name) if outcome else None
        percent, base, head = case.percent_of_floor("head"), case.us("base"), case.us("head")
        verdict = said.verdict if said else case.status
        full = f"<small>{escape(case.name)}</small>" if short[case.name] != case.name else ""
        cells = [f"<td>{escape(short[case.name])}{full}</td>",
                 *(f'<td class="n">{"-" if x is None else f"{x:.4g}"}</td>' for x in (base, head)),
                 f'<td class="n">{change(said.ratio) if said else "-"}</td>',
                 f'<td class="v" style="color:{_COLOUR.get(verdict, _COLOUR[""])}">'
                 f"{escape(verdict)}</td>",
                 f'<td class="n">{"-" if percent is None else f"{percent:.0f} %"}</td>',
                 f"<td>{escape((said.why if said else case.error)[:300])}</td>"]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = ("case", "base us", "head us", "change", "verdict", "of the limit", "why")
    titles = "".join(f'<th class="n">{h}</th>' if h in _NUMBERS else f"<th>{h}</th>" for h in heads)
    return f"<table><tr>{titles}</tr>{''.join(rows)}</table>"


def render(result: Result, outcome: Outcome | None) -> str:
    """The page."""
    title = f"Performance: {headline(outcome)}" if outcome else "Performance"
    machine = result.machine
    parts = [f"<h1>{escape(title)}</h1>",
             f"<p>{escape(machine.model)}; {escape(machine.device)}; {escape(result.created)}</p>",
             f"<p>{escape(limits_line(result))}</p>"]
    if outcome is not None:
        parts += [f"<p>{escape(power_line(outcome))}</p>",
                  *(f"<p>{escape(note)}</p>" for note in outcome.notes)]
    parts += [_table(result, outcome), changes(outcome) if outcome else "",
              roofline(result, outcome), samples(result)]
    return document(title, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A page that loads nothing."""
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width"><title>{escape(title)}</title><style>{_STYLE}</style>'
            f"</head><body>{''.join(parts)}</body></html>\n")
