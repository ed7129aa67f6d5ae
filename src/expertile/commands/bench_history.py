"""`expertile bench history`: runs stored beside the tuning records, and what changed for good."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from .bench_options import told
from .db import where
from .options import Db, Json, console

app = typer.Typer(no_args_is_help=True, help="Runs over time, in the tuning database.")
Case = Annotated[list[str] | None, typer.Option(
    "--case", help="Only cases whose name holds this text (repeatable).")]


@app.command("add")
def add(results: Annotated[list[Path], typer.Argument(help="Results of bench run --out.")],
        db: Db = None) -> None:
    """Append results; one that is there already is left out."""
    from ..bench.history import History
    from ..bench.result import NoBaseline, read

    try:
        found = [(path, read(path)) for path in results]
    except NoBaseline as e:
        raise ValueError(str(e)) from None
    with History(where(db)) as history:
        for path, result in found:
            count = history.append(result)
            console().print(f"{path}: {count} cases stored" if count else
                            f"{path}: already there", markup=False, soft_wrap=True)


@app.command("show")
def show(
    case: Case = None, db: Db = None,
    recent: Annotated[int, typer.Option(
        "--recent", min=1, help="A slow-down that began among the last N runs exits 1.")] = 10,
    least: Annotated[float, typer.Option(
        "--least", help="The smallest lasting change of interest in percent.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Lasting changes of every case. A new machine, compiler or driver begins a new series."""
    from ..bench.gate import NO_BASELINE, OK, REGRESSION
    from ..bench.history import History, segments

    with History(where(db)) as history:
        found = {name: segments(history.series(name), least / 100)
                 for name in _wanted(history.names(), case)}
    if not found:
        raise told(ValueError(f"{where(db)} holds no such case; store runs with: expertile bench "
                              "history add RESULT"), as_json)
    slow = {name: parts[-1].regression(recent) for name, parts in found.items()}
    if as_json:
        print(json.dumps({name: [asdict(s) for s in parts] for name, parts in found.items()}))
    else:
        table = Table("case", "runs", "series", "now us", "% of limit", "last change",
                      "since", "opened by")
        for name, parts in found.items():
            last = parts[-1]
            change = last.changes[-1] if last.changes else None
            table.add_row(
                name.replace("[", "\\["), str(sum(len(s.points) for s in parts)),
                str(len(parts)), f"{last.points[-1].us:.4g}",
                f"{percent:.0f}" if (percent := last.points[-1].percent_of_floor) else "-",
                f"{100 * (change.ratio - 1):+.1f} % (p {change.p:g})" if change else "-",
                last.points[change.at].revision[:12] if change else "-", last.opened_by[:60])
        console().print(table)
    raise typer.Exit(REGRESSION if any(slow.values()) else OK if found else NO_BASELINE)


@app.command("export")
def export(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    format_name: Annotated[Literal["otava", "html"], typer.Option(
        "--format", help="Apache Otava's CSV, or trend plots in one HTML file.")] = "otava",
    case: Case = None, db: Db = None,
) -> None:
    """Write the history for Apache Otava (and beside it the .yaml that Otava asks for), or as
    trend plots."""
    from ..bench.history import History, otava_config, otava_csv, segments
    from ..bench.outputs.trend import page
    from ..bench.result import write_text

    with History(where(db)) as history:
        names = _wanted(history.names(), case)
        text = (otava_csv(history, names) if format_name == "otava" else
                page({name: segments(history.series(name)) for name in names}))
    write_text(out, text)
    if format_name == "otava":
        config = out.with_suffix(".yaml")
        write_text(config, otava_config(names, out))
        console().print(f"OTAVA_CONFIG={config} otava analyze expertile --since=2000-01-01",
                        markup=False, highlight=False, soft_wrap=True)


def _wanted(names: list[str], only: list[str] | None) -> list[str]:
    return [name for name in names if not only or any(text in name for text in only)]
