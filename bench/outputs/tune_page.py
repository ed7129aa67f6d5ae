"""A tune's report as one HTML file without network: plots of every shape and what they show."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from ...ops.space import Config
from ...opt.noise import noise_text
from ...opt.report import ShapeReport
from ...opt.roof import roofs
from .html import document
from .tune_compare import equivalence, roofline
from .tune_drawing import Drawing
from .tune_plots import convergence, coverage, importance

Label = Callable[[ShapeReport, Collection[str]], str]

_MORE_STYLE = """<style>
img { max-width: 100%; height: auto; display: block } h3 { margin-top: 2.2rem }
details { margin: .6rem 0 } summary { cursor: pointer; font-weight: 600 }
.wide th, .wide td { overflow-wrap: normal }
.bad { color: #a3301a } .note { color: #4a5866 } code { font-size: 12px }
</style>"""


@dataclass
class Page:
    """The page, and its drawings by file name for --png."""

    html: str = ""
    drawings: list[Drawing] = field(default_factory=list)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (),
           style: str = "") -> str:
    def cell(place: int, text: str) -> str:
        return f'<td class="n">{text}</td>' if place in numbers else f"<td>{text}</td>"

    body = "".join(f"<tr>{''.join(cell(i, c) for i, c in enumerate(row))}</tr>" for row in rows)
    head = "".join(f"<th scope=col>{h}</th>" for h in heads)
    return f"<table{style}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _picture(drawing: Drawing | None, page: Page) -> str:
    if drawing is None:
        return ""
    page.drawings.append(drawing)
    data = b64encode(drawing.svg()).decode()
    return (f'<h4>{escape(drawing.title)}</h4><img alt="{escape(drawing.alt)}" '
            f'src="data:image/svg+xml;base64,{data}">')


def _config(config: Config | None) -> str:
    if config is None:
        return "-"
    return "<code>" + escape(", ".join(f"{k} {v}" for k, v in config.items())) + "</code>"


def _us(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _result(report: ShapeReport) -> str:
    """The verdict in a few words."""
    winner = report.winner
    if winner is None:
        return "not finished: no winner is stored"
    if winner.is_modelled:
        return f"{winner.decision}, modelled: never measured"
    if winner.decision == "tuned" and winner.speedup:
        ci = winner.speedup_ci
        return f"{winner.speedup:.2f}× the default" + (
            f" [{ci[0]:.2f}, {ci[1]:.2f}]" if ci else "")
    return f"{winner.decision or winner.status}" + (", noisy" if winner.status == "noisy" else "")


def _summary(reports: Sequence[ShapeReport], names: Mapping[str, str],
             label: Label) -> str:
    rows = []
    for r in reports:
        winner = r.winner
        floor = (f"{100 * winner.floor_us / winner.us:.0f}"
                 if winner and winner.floor_us and winner.us else "-")
        rows.append([f'<a href="#{names[r.key.hash]}">{escape(r.key.op)}</a>', escape(label(r, ())),
                     escape(r.key.device), _us(r.default_us), _us(winner.us if winner else None),
                     escape(_result(r)), floor, f"{len(r.trials)}",
                     escape(str(winner.noise.get("verdict", "-")) if winner else "-")])
    return _table(("operator", "shape", "device", "default, µs", "stored, µs", "result (95 %)",
                   "% of limit", "trials", "noise"), rows, (3, 4, 6, 7), ' class="wide"')


def _refusals(report: ShapeReport) -> str:
    if not report.refusals:
        return "<h4>Refused and failed</h4><p>Nothing was.</p>" if report.trials else ""
    rows = [[f'<span class="bad">{escape(r.status)}</span>', str(r.count),
             escape(r.example[:400]), _config(r.config)] for r in report.refusals]
    return "<h4>Refused and failed, by reason</h4>" + _table(
        ("status", "configs", "reason (of the first one)", "first config"), rows, (1,))


def _coverage_table(report: ShapeReport) -> str:
    rows = [[escape(v.knob), escape(v.value) + (" (default)" if v.is_default else ""), str(v.ok),
             str(v.failed), str(v.refused), "-" if v.best is None else f"{v.best:.3f}"]
            for v in report.coverage]
    table = _table(("knob", "choice", "timed", "failed", "refused", "best time / default's"), rows,
                   (2, 3, 4, 5))
    return f"<details><summary>Coverage as a table</summary>{table}</details>" if rows else ""


def _finalists(report: ShapeReport) -> str:
    rows = []
    for f in report.finalists:
        said = [w for w, on in (("pick", f.picked), ("tied", f.tied), ("default", f.is_default))
                if on]
        rows.append([_config(f.config), f"{f.ratio.value:.3f} [{f.ratio.low:.3f}, "
                     f"{f.ratio.high:.3f}]", str(f.rounds), ", ".join(said) or "behind"])
    if rows:
        return ("<details><summary>Finalists as a table</summary>" + _table(
            ("config", "speed-up over the default [95 %]", "rounds", ""), rows, (1, 2))
            + "</details>")
    if report.winner is None or not report.winner.equivalents:
        return ""
    return ("<h4>Equivalence set</h4><p>Configs that could not be told from the stored one (the "
            "record holds no samples of the race):</p><ul>"
            + "".join(f"<li>{_config(c)}</li>" for c in report.winner.equivalents) + "</ul>")


def _shape(report: ShapeReport, name: str, label: str, page: Page) -> str:
    winner = report.winner
    notes = [f"Result: {_result(report)}. Stored config: {_config(winner.config)}."
             if winner else "No winner is stored: the tune was stopped."]
    if winner is not None:
        p = winner.provenance
        notes.append(f"{escape(winner.evidence)}, {escape(winner.kind)}, {escape(p.time)}; "
                     f"{escape(p.machine)}; <code>{escape(p.command) or '-'}</code>")
        if said := noise_text(dict(winner.noise)):
            notes.append(f"Noise: {escape(said)}.")
        if winner.error:
            notes.append(f"Note: {escape(winner.error)}.")
    if report.trials and (why := report.importance.why_not):
        notes.append(f"Knob importance: {escape(why)}.")
    return (f'<h3 id="{name}">{escape(report.key.op)}: {escape(label)}</h3>'
            + "".join(f'<p class="note">{n}</p>' for n in notes)
            + _picture(convergence(report, name), page) + _picture(equivalence(report, name), page)
            + _finalists(report) + _picture(importance(report, name), page)
            + _picture(coverage(report, name), page) + _coverage_table(report)
            + _refusals(report))


def _roof(op: str, reports: Sequence[ShapeReport], label: Label, page: Page) -> str:
    shapes = [r.key.shape for r in reports]
    varied = {a for s in shapes for a in s if any(o.get(a) != s[a] for o in shapes)}
    labels = {r.key.hash: label(r, varied) for r in reports}
    parts = []
    for roof in roofs(reports):
        kind = "modelled times" if roof.is_modelled else "measured times"
        limits = roof.text if roof.bandwidth else "no limit of this device is known"
        cached = any(p.floor and p.best > 1.05 * p.floor for p in roof.points)
        parts.append(f"<p>{escape(roof.device)}, {kind}; {escape(limits)}."
                     + (" Dots above the line: operands stay in a cache, and the limit is the main "
                        "memory's." if cached else "") + "</p>"
                     + _picture(roofline(op, roof, labels), page))
    return "".join(parts)


def render(reports: Sequence[ShapeReport], source: str, label: Label) -> Page:
    """The page of a database's reports.

    Args:
        source: what was reported on, for the heading.
        label: a shape in a few words; given axes, in these.
    """
    page = Page()
    names = {r.key.hash: f"{r.key.op}-{i}" for i, r in enumerate(reports, 1)}
    by_op: dict[str, list[ShapeReport]] = {}
    for report in reports:
        by_op.setdefault(report.key.op, []).append(report)
    tried = sum(len(r.trials) for r in reports)
    parts = [_MORE_STYLE, f"<h1>Tuning report</h1><p>{escape(source)}: {len(reports)} shapes of "
             f"{len(by_op)} operators, {tried} trials. Times are low quantiles of samples "
             "interleaved with the default's; a share of the default's time is a ratio from the "
             "same rounds.</p>"]
    if not tried:
        parts.append('<p class="bad">The database holds records and no trials, so there is no '
                     "convergence, importance or coverage to show.</p>")
    parts.append(_summary(reports, names, label))
    for op, members in by_op.items():
        parts.append(f"<h2>{escape(op)}</h2>" + _roof(op, members, label, page))
        parts += [_shape(r, names[r.key.hash], label(r, ()), page) for r in members]
    page.html = document("Tuning report", parts)
    return page
