"""PNG plots through matplotlib: a roofline, and time over sizes beside its floor."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable
from math import ceil
from typing import Any

from ..result import Case, Result
from ..suites.growth import Series, cliffs, series

_MARKS = "os^Dv<>PX*hd"
_COLOURS = ("#1f5fa8", "#b3261e", "#1b6e3c", "#8a6100", "#6a3d9a", "#008b8b", "#c2548a", "#555555",
            "#e07b00", "#3b7dd8", "#7a9a01", "#222222")


def new_figure(width: float, height: float) -> tuple[Any, Callable[[], bytes]]:
    """A figure without a screen, and what turns it into a PNG file's bytes."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ValueError("PNG plots need matplotlib; run: pip install 'expertile[bench]'") from e
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)

    def png() -> bytes:
        out = io.BytesIO()
        figure.savefig(out, format="png")
        return out.getvalue()

    return figure, png


def _threads(case: Case) -> int | None:
    """The thread count in a suite's case name."""
    text = case.name.rpartition(",")[2].removesuffix("T]")
    return int(text) if text.isdigit() else None


def _panels(result: Result) -> list[tuple[str, float, float, list[Case]]]:
    """Title, GB/s, GFLOP/s and cases of each roofline: one for each thread count of a suite."""
    timed = [c for c in result.cases if c.us("head") and c.flops > 0 and c.bytes > 0]
    found = []
    for t in sorted({n for c in timed if (n := _threads(c))}):
        limits = [result.limits.get(f"{name}, {t} threads") for name in ("read", "FMA float32")]
        if limits[0] and limits[1]:
            found.append((f"{t} thread{'s' if t > 1 else ''}", limits[0], limits[1],
                          [c for c in timed if _threads(c) == t]))
    bandwidth, peak = result.limits.get("bandwidth"), result.limits.get("flops")
    if not found and bandwidth and peak and timed:
        found.append((result.machine.device, bandwidth, peak, timed))
    return found


def roofline(result: Result) -> bytes:
    """GFLOP/s over flops a byte below the measured limits; ValueError when there is nothing."""
    panels = _panels(result)
    if not panels:
        raise ValueError("a roofline needs timed cases and measured limits, and the result has "
                         "none; make them with: expertile bench run")
    figure, png = new_figure(7.0 * len(panels), 5.6)
    groups = list(dict.fromkeys(c.group for _, _, _, cases in panels for c in cases))
    for number, (title, bandwidth, peak, cases) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        xs = [c.flops / c.bytes for c in cases] + [peak / bandwidth]
        low, high = min(xs) / 2, max(xs) * 2
        axes.plot([low, peak / bandwidth, high], [low * bandwidth, peak, peak], color="#1c2733")
        dot = result.limits.get(f"dot bfloat16, {title.split()[0]} threads")
        if dot:
            axes.plot([peak / bandwidth, dot / bandwidth, high], [peak, dot, dot],
                      color="#8793a0", linestyle="--", label="bfloat16 dot products")
        for i, group in enumerate(groups):
            mine = [c for c in cases if c.group == group]
            axes.scatter([c.flops / c.bytes for c in mine],
                         [c.flops / statistics.median(c.flat("head")) / 1e3 for c in mine],
                         marker=_MARKS[i % len(_MARKS)], color=_COLOURS[i % len(_COLOURS)], s=34,
                         label=group, alpha=0.85)
        axes.set(xscale="log", yscale="log", xlabel="flops a byte", ylabel="GFLOP/s",
                 title=f"{title}: {bandwidth:.0f} GB/s, {peak:.0f} GFLOP/s")
        axes.yaxis.set_major_formatter(lambda gflops, _: f"{gflops:g}")
        axes.grid(True, which="both", color="#e4e8ec", linewidth=0.6)
        axes.legend(fontsize=8, loc="lower right")
    return png()


def growth(result: Result) -> bytes:
    """Time over size beside the floor, a panel a series; cliffs in red."""
    found = series(result)
    if not found:
        raise ValueError("growth needs cases that differ in one size only; make them with: "
                         "expertile bench run cpu-ops")
    by_name: dict[str, list[Series]] = {}
    for one in found:
        by_name.setdefault(one.name, []).append(one)
    columns = min(3, len(by_name))
    rows = ceil(len(by_name) / columns)
    figure, png = new_figure(5.0 * columns, 3.8 * rows)
    bad = {(c.series, c.threads, c.high) for c in cliffs(found)}
    for number, (name, members) in enumerate(by_name.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        for one, colour in zip(members, _COLOURS, strict=False):
            sizes = [p.size for p in one.points]
            axes.plot(sizes, [p.us / 1e3 for p in one.points], color=colour, marker="o",
                      markersize=4, label=f"{one.threads}T")
            axes.plot(sizes, [p.floor_us / 1e3 for p in one.points], color=colour,
                      linestyle=":", label=f"{one.threads}T floor")
            steps = [p for p in one.points if (one.name, one.threads, p.size) in bad]
            axes.scatter([p.size for p in steps], [p.us / 1e3 for p in steps], color="#ff0000",
                         s=90, facecolors="none", linewidths=2, zorder=5)
        axes.set(xscale="log", yscale="log", xlabel=members[0].axis, ylabel="ms", title=name)
        axes.set_xticks(sorted({p.size for m in members for p in m.points}))
        axes.set_xticklabels([str(n) for n in sorted({p.size for m in members for p in m.points})],
                             fontsize=8)
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.yaxis.set_major_formatter(lambda ms, _: f"{ms:g}")
        axes.grid(True, color="#e4e8ec", linewidth=0.6)
        axes.legend(fontsize=8)
    return png()
