"""Drawings that compare configs: the finalists' race, and an operator's roofline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ...ops.space import Config
from ...opt.report import Finalist, ShapeReport
from ...opt.roof import Point, Roof
from .plots import new_figure
from .tune_drawing import BLUE, GREEN, GREY, INK, ORANGE, RED, Drawing, axes_of, legend

_MARKS = "os^Dv<>P*Xhd"


def knob_text(config: Config, others: Sequence[Config]) -> str:
    """What tells a config from others; all of it when nothing does."""
    varied = [k for k in config if any(o.get(k) != config[k] for o in others)]
    return ", ".join(f"{k} {config[k]}" for k in varied or config)


def equivalence(report: ShapeReport, name: str) -> Drawing | None:
    """The finalists' race: speed-up over the default with its interval, ties and the pick."""
    rows: Sequence[Finalist] = report.finalists[::-1]
    if not rows:
        return None
    figure, _ = new_figure(8.0, 1.4 + 0.42 * len(rows))
    axes = axes_of(figure)
    configs = [f.config for f in rows]
    axes.axvline(1.0, color=ORANGE, linestyle="--", linewidth=1.6)
    for y, row in enumerate(rows):
        colour = GREEN if row.picked else BLUE if row.tied else GREY
        axes.plot([row.ratio.low, row.ratio.high], [y, y], color=colour, linewidth=2.4,
                  solid_capstyle="butt")
        axes.scatter([row.ratio.value], [y], s=90 if row.picked else 42, zorder=3, color=colour,
                     marker="*" if row.picked else "o" if row.tied else "s")
    axes.set_yticks(range(len(rows)), [_finalist_text(f, configs) for f in rows])
    least, most = min(1.0, *(f.ratio.value for f in rows)), max(1.0, *(f.ratio.value for f in rows))
    low = max(min(1.0, *(f.ratio.low for f in rows)), 0.75 * least)
    high = min(max(1.0, *(f.ratio.high for f in rows)), 1.35 * most)
    room, wider = 0.06 * (high - low or 0.1), any(
        f.ratio.low < low or f.ratio.high > high for f in rows)
    axes.set(ylim=(-0.7, len(rows) - 0.3), xlim=(low - room, high + room))
    axes.set_xlabel("times the default's speed, 95 % interval"  # long labels leave little width
                    + (", cut at the edges" if wider else ""), loc="right")
    axes.grid(True, axis="x", color="#e4e8ec", linewidth=0.7)
    axes.set_title("green star: the pick; blue: tied with the leader; grey: behind", fontsize=10,
                   loc="right")
    picked = next((f for f in rows if f.picked), rows[-1])
    return Drawing(f"{name}-equivalence", "Finalists and equivalence set",
                   f"{sum(f.tied for f in rows)} of {len(rows)} finalists are tied; the pick is at "
                   f"{picked.ratio.value:.3f} times the default's speed.", figure)


def _finalist_text(row: Finalist, configs: Sequence[Config]) -> str:
    words = [w for w, on in (("pick", row.picked), ("default", row.is_default)) if on]
    text = knob_text(row.config, configs)
    lines = [text] if len(text) <= 46 else [text[:text.rfind(", ", 0, 46) + 1],
                                            text[text.rfind(", ", 0, 46) + 2:]]
    if len(lines) == 2 and len(lines[1]) > 46:
        lines[1] = lines[1][:45] + "…"
    return "\n".join(lines) + (f"  [{', '.join(words)}]" if words else "")


def roofline(op: str, roof: Roof, labels: Mapping[str, str]) -> Drawing:
    """GFLOP/s over flops a byte: default (hollow) and stored config (filled) below the limit."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, _ = new_figure(8.0, 4.2 + 0.2 * len(roof.points))
    axes = axes_of(figure)
    xs = [p.intensity for p in roof.points]
    low, high = min(xs) / 2, max(xs) * 2
    ridge = [roof.peak / roof.bandwidth] if roof.peak and roof.bandwidth else []
    grid = [low, *(x for x in ridge if low < x < high), high]
    limits = [roof.limit(x) for x in grid]
    if all(y is not None for y in limits):
        axes.plot(grid, limits, color=INK, linewidth=1.8, label=roof.text)
    for i, point in enumerate(roof.points):
        mark, label = _MARKS[i % len(_MARKS)], labels[point.key]
        colour = (BLUE, GREEN, RED, ORANGE)[i // len(_MARKS) % 4]
        axes.plot([point.intensity] * 2, [point.default, point.best], color=GREY, linewidth=1.0,
                  zorder=1)
        axes.scatter([point.intensity], [point.default], marker=mark, s=46, facecolors="white",
                     edgecolors=GREY, linewidths=1.4, zorder=2)
        axes.scatter([point.intensity], [point.best], marker=mark, s=46, color=colour, zorder=3,
                     label=label)
    ys = [y for p in roof.points for y in (p.default, p.best)] + [
        y for y in (p.floor for p in roof.points) if y]
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(min(ys) / 2, max(ys) * 2),
             xlabel="flops a byte (of the least that any kernel must do)", ylabel="GFLOP/s")
    for axis, ends in ((axes.xaxis, (low, high)), (axes.yaxis, (min(ys) / 2, max(ys) * 2))):
        wide = ends[1] / ends[0] > 200
        axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color="#e4e8ec", linewidth=0.7)
    axes.set_title("hollow: the default; filled: what is stored", fontsize=10, loc="left")
    legend(figure, 1)
    best = max(roof.points, key=_percent)
    return Drawing(f"{op}-{roof.name}-roofline", "Roofline",
                   f"{len(roof.points)} shapes; the nearest to its limit reaches "
                   f"{_percent(best):.0f} % of it.", figure)


def _percent(point: Point) -> float:
    return 100 * point.best / point.floor if point.floor and math.isfinite(point.floor) else 0.0
