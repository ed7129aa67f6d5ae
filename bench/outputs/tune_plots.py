"""Drawings of one shape's search: convergence, importance of knobs, coverage of the space."""

from __future__ import annotations

from typing import Any

from ...opt.importance import share_of
from ...opt.report import REFUSED, ShapeReport, Value
from .plots import new_figure
from .tune_drawing import BLUE, GREY, INK, ORANGE, RED, SMALL, Drawing, axes_of, legend

_WORST = 4.0                         # times the default's: what is slower stands at the edge


def convergence(report: ShapeReport, name: str) -> Drawing | None:
    """Every trial's time and the best so far, as a share of the default's."""
    shares = [share_of(r) for r in report.trials]
    known = [s for s in shares if s is not None]
    if not known:
        return None
    figure, _ = new_figure(8.0, 3.8)
    axes = axes_of(figure)
    top = min(max(max(known) * 1.15, 1.25), _WORST * 1.15)
    low = min(min(known), 1.0) / 1.25
    xs = range(1, len(shares) + 1)
    axes.axhline(1.0, color=ORANGE, linestyle="--", linewidth=1.8, label="default", zorder=4)
    timed = [(x, min(s, _WORST)) for x, s in zip(xs, shares, strict=True) if s is not None]
    axes.scatter([x for x, _ in timed], [s for _, s in timed], s=16, color=GREY, alpha=0.8,
                 linewidths=0, label="a config" if max(known) <= _WORST else
                 f"a config (slower than {_WORST:g}: at {_WORST:g})")
    for label, mark, colour, rows in (
            ("failed", "x", RED, [i for i, r in enumerate(report.trials, 1)
                                  if r.us is None and r.status not in REFUSED]),
            ("refused", "|", INK, [i for i, r in enumerate(report.trials, 1)
                                   if r.us is None and r.status in REFUSED])):
        if rows:
            axes.scatter(rows, [top] * len(rows), s=26, marker=mark, color=colour, clip_on=False,
                         linewidths=1.2, label=label)
    best = [(x, b) for x, b in zip(xs, report.best_so_far, strict=True) if b is not None]
    axes.step([x for x, _ in best], [b for _, b in best], where="post", color=BLUE, linewidth=2.2,
              label="best so far")
    axes.set(xlim=(0, len(shares) + 1), ylim=(low, top), yscale="log", xlabel="trial")
    axes.set_ylabel("time / default's time")
    _plain_log_ticks(axes, low, top)
    axes.grid(True, axis="y", color="#e4e8ec", linewidth=0.7)
    legend(figure, 5)
    us, kind = report.default_us, "modelled" if report.is_modelled else "measured"
    axes.set_title(f"{len(shares)} trials, {kind}" + (f"; 1 is the default, {us:.4g} us" if us
                                                      else ""), fontsize=10, loc="left")
    return Drawing(f"{name}-convergence", "Convergence",
                   f"Best time so far against trials: after {len(shares)} trials {best[-1][1]:.3f} "
                   f"of the default's time.", figure)


def _plain_log_ticks(axes: Any, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    steps = [s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2,
                         1.5, 2, 3, 4) if low <= s <= high]
    while len(steps) > 8:                        # every second one, and always 1
        steps = [s for i, s in enumerate(steps) if s == 1 or i % 2 == steps.index(1) % 2]
    axes.yaxis.set_major_locator(FixedLocator(steps))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def importance(report: ShapeReport, name: str) -> Drawing | None:
    """What share of the best tenth each knob explains."""
    shares = report.importance.shares
    if not shares:
        return None
    figure, _ = new_figure(8.0, 1.1 + 0.3 * len(shares))
    axes = axes_of(figure)
    knobs = list(shares)[::-1]
    bars = axes.barh(knobs, [100 * shares[k] for k in knobs], color=BLUE, height=0.65)
    axes.bar_label(bars, [f"{100 * shares[k]:.0f} %" for k in knobs], padding=4, fontsize=SMALL)
    axes.set(xlim=(0, 112 * max(shares.values())), xlabel="importance, % of all knobs'")
    axes.set_title(report.importance.method, fontsize=10, loc="left")
    first = next(iter(shares))
    return Drawing(f"{name}-importance", "Knob importance",
                   f"Importance of each knob; the largest is {first} with "
                   f"{100 * shares[first]:.0f} %.", figure)


def coverage(report: ShapeReport, name: str) -> Drawing | None:
    """How often each choice of each knob was tried, and what came of it."""
    if not report.trials:
        return None
    by_knob: dict[str, list[Value]] = {}
    for value in report.coverage:
        by_knob.setdefault(value.knob, []).append(value)
    rows: list[tuple[float, Value]] = []
    y, heads = 0.0, []
    for knob, values in by_knob.items():
        heads.append((y, knob))
        for value in values:
            y += 1.0
            rows.append((y, value))
        y += 1.5
    figure, _ = new_figure(8.0, 1.3 + 0.2 * y)
    axes = axes_of(figure)
    most = max(max(v.tried, v.valid or 0) for _, v in rows) or 1
    if any(v.valid for _, v in rows):
        axes.barh([p for p, _ in rows], [v.valid or 0 for _, v in rows], height=0.86,
                  color="#eef1f4", edgecolor=GREY, linewidth=0.8, label="valid, in the pool")
    left = [0.0] * len(rows)
    timed = "modelled" if report.is_modelled else "timed"
    for label, colour, hatch, count in ((timed, BLUE, "", "ok"), ("failed", RED, "///", "failed"),
                                        ("refused", GREY, "...", "refused")):
        numbers = [getattr(v, count) for _, v in rows]
        if any(numbers):
            axes.barh([p for p, _ in rows], numbers, left=left, color=colour, hatch=hatch,
                      edgecolor="white", height=0.78, label=label, linewidth=0)
            left = [a + b for a, b in zip(left, numbers, strict=True)]
    for place, value in rows:
        said = str(value.tried) if value.tried else "never tried"
        axes.text(max(value.tried, value.valid or 0) + most * 0.01, place,
                  f"{said} of {value.valid}" if value.valid else said, va="center",
                  fontsize=SMALL, color=INK if value.tried else RED)
    axes.set_yticks([p for p, _ in heads] + [p for p, _ in rows],
                    [f"{k}:" for _, k in heads]
                    + [f"{v.value}{' (default)' if v.is_default else ''}" for _, v in rows])
    for label in axes.get_yticklabels()[:len(heads)]:
        label.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(y - 0.5, -0.8), xlim=(0, most * 1.2), xlabel="configs")
    legend(figure, 4)
    of = f" of {report.pool} in the pool" if report.pool else ""
    never = sum(not v.tried for v in report.coverage)
    axes.set_title(f"{len(report.trials)} configs tried{of}", fontsize=10, loc="left")
    return Drawing(f"{name}-coverage", "Space coverage",
                   f"How often each choice of each knob was tried; {never} choices never were.",
                   figure)
