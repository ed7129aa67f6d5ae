"""Trend plots of a history as one HTML file without scripts or network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ..history import Segment
from .html import document, dot, line, svg, text


def plot(name: str, parts: Sequence[Segment]) -> str:
    """A case over its runs: segments side by side, their changes as steps."""
    points = [p for s in parts for p in s.points]
    if not points:
        return ""
    least, most = min(p.us for p in points), max(p.us for p in points)
    room = max(most - least, 0.05 * most)
    wide = 880 / max(1, len(points) - 1)

    def x(i: float) -> float:
        return 80 + wide * i

    def y(us: float) -> float:
        return 150 - 120 * (us - least) / room

    drawn = [line(80, 160, 970, 160, "#8793a0"), text(74, y(most) + 4, f"{most:.4g}", "end"),
             text(74, y(least) + 4, f"{least:.4g}", "end"), text(74, 14, "us", "end")]
    start = 0
    for part in parts:
        if part.opened_by:
            drawn += [line(x(start - 0.5), 20, x(start - 0.5), 160, "#8a6100"),
                      text(x(start - 0.5) + 4, 14, part.opened_by[:60])]
        drawn += [dot(x(start + i), y(p.us), "#1f5fa8", f"{p.created} {p.revision[:12]}: "
                                                        f"{p.us:.4g} us", 3)
                  for i, p in enumerate(part.points)]
        drawn += [line(x(start + c.at - 0.5), 20, x(start + c.at - 0.5), 160,
                       "#b3261e" if c.ratio > 1 else "#1b6e3c", 2) for c in part.changes]
        start += len(part.points)
    percent = points[-1].percent_of_floor
    now = f"<p>Now {points[-1].us:.4g} us, {percent:.0f} % of the limit.</p>" if percent else ""
    return f"<h2>{escape(name)}</h2>{now}" + svg(176, drawn, f"trend of {name}")


def page(history: Mapping[str, Sequence[Segment]]) -> str:
    """All cases; red: slower from there on, green: faster, brown: another machine or compiler."""
    return document("Performance history", [
        "<h1>Performance history</h1><p>Red: slower from there on. Green: faster. Brown: another "
        "machine, compiler or driver, where a new series begins.</p>",
        *(plot(name, parts) for name, parts in history.items())])
