"""`expertile bench run NAME`: the named suites, their tables and their reports."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from os import sched_getaffinity
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table as RichTable

from .. import settings
from .bench_options import interruptible
from .bench_output import store
from .command_line import command_line
from .options import console
from .shapes import ladder

if TYPE_CHECKING:
    from ..bench.result import Result

NAMES = ("cpu-ops", "cpu-limits", "model")
Name = Annotated[str | None, typer.Argument(
    help="A named suite: cpu-ops, cpu-limits or model; without one, a model's operators.")]
Report = Annotated[Path | None, typer.Option(
    "--report", help="Of a named suite: one HTML file with all tables and plots; its result and "
                     "its PNG files beside it.")]
Resume = Annotated[bool, typer.Option(
    "--resume", help="Of a named suite: keep the good cases of the result beside --report, measure "
                     "the others.")]
CompileOnly = Annotated[bool, typer.Option(
    "--compile-only", help="Of cpu-ops: put its kernels into the cache and stop.")]
Quick = Annotated[bool, typer.Option("--quick", help="Of a named suite: its short form.")]
Minutes = Annotated[float | None, typer.Option(
    "--budget", help="Minutes for a named suite; by default 18, and 5 with --quick. What finds no "
                     "time is named in the report.")]
Threads = Annotated[str | None, typer.Option(
    "--threads", help="Thread counts of a named suite, e.g. 1,2; by default 1 and all CPUs.")]
Only = Annotated[list[str] | None, typer.Option(
    "--only", help="Only cases of a named suite with this in their name (repeatable).")]


@dataclass(frozen=True)
class Wanted:
    """What the command line said of a named suite."""

    device: str
    ops: list[str]
    report: Path | None
    resume: bool
    compile_only: bool
    quick: bool
    minutes: float | None
    threads: str | None
    only: list[str]
    rounds: int
    configs: str
    db: str | None
    out: Path | None
    writes: list[tuple[str, Path]]
    as_json: bool


def run_named(name: str, wanted: Wanted) -> None:
    """Measure a suite, show its tables, write its files. Exit code 4 when a case is wrong."""
    from ..bench.gate import OK, WRONG

    if name not in NAMES:
        raise ValueError(f"a suite must be one of {', '.join(NAMES)}, got {name!r}; a file of "
                         "bench_* functions goes to --suite")
    if wanted.compile_only and name != "cpu-ops":
        raise ValueError(f"--compile-only belongs to cpu-ops, got {name}")
    if wanted.resume and wanted.report is None:
        raise ValueError("--resume goes on with the result beside a report; give --report PATH")
    signal.signal(signal.SIGTERM, _interrupt)    # a time limit leaves a report, as Ctrl-C does
    with interruptible():
        result = _measure(name, wanted)
    if result is None:
        raise typer.Exit(OK)
    store(result, None, wanted.out, wanted.writes)
    if wanted.report is not None:
        write_report(result, wanted.report)
    if wanted.as_json:
        print(json.dumps(result.to_json()))
    else:
        show_tables(result)
    if result.settings.get("interrupted"):
        raise typer.Exit(130)
    broken = any(c.status in ("wrong", "failed") for c in result.cases)
    raise typer.Exit(WRONG if broken else OK)


def _interrupt(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)    # a second one must not stop the writing
    raise KeyboardInterrupt


def _measure(name: str, wanted: Wanted) -> Result | None:
    from ..bench.result import read, write
    from ..bench.suites import model, points, run
    from ..bench.suites.runner import Options
    from ..targets.cpu import target as cpu_target
    from ..targets.cpu.levels import host_arch

    kind, _, unit = wanted.device.partition(":")
    if kind != "cpu":
        raise ValueError(f"a named suite measures CPUs: --device takes cpu, cpu:LEVEL or cpu:N, "
                         f"got {wanted.device!r}")
    found = settings.read()
    target = cpu_target(unit, cache_dir=found.cache_dir)
    if (why := target.available()) is not None:
        raise ValueError(f"{wanted.device} cannot be measured here: {why}")
    cpus = len(sched_getaffinity(0))
    chosen = (target.threads,) if unit.rpartition(":")[2].isdigit() else tuple(sorted({1, cpus}))
    threads = ladder(wanted.threads, "threads", chosen)
    minutes = wanted.minutes or (5.0 if wanted.quick else 18.0)
    options = Options(threads, 60 * minutes, str(found.cache_dir), wanted.configs,
                      wanted.db or found.db, str(found.user_db),
                      "casts" if wanted.quick else "all", target.arch, min(wanted.rounds, 30))
    if name == "model":
        if target.arch != host_arch():
            raise ValueError(f"the suite model runs on this machine's own level {host_arch()}, got "
                             f"--device {wanted.device}")
        return model.run(options, wanted.quick, wanted.only, _say, command_line())
    if name == "cpu-limits":
        return run.limits_only(options, _say, command_line())
    cases = [p for p in points.cpu_ops(threads, wanted.quick, "bf16" in target.dots)
             if (not wanted.only or any(text in p.name for text in wanted.only))
             and (not wanted.ops or p.op in wanted.ops)]
    if not cases:
        raise ValueError(f"--only and --op must name cases of the suite, got {wanted.only} and "
                         f"{wanted.ops}; cases are called like moe-decode-fp8[v2-lite,tokens=1,2T]")
    if wanted.compile_only:
        run.compile_all(cases, options, _say)
        return None
    stored = wanted.report.with_suffix(".json") if wanted.report else None
    earlier = read(stored) if stored and wanted.resume and stored.exists() else None
    return run.run(cases, options, _say, command_line(), name, earlier,
                   (lambda r: write(stored, r)) if stored else None)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write_report(result: Result, path: Path) -> None:
    """PATH, and beside it PATH's stem with .json, -roofline.png and -growth.png."""
    from ..bench.outputs import plots, suite_page
    from ..bench.result import write, write_text

    write(path.with_suffix(".json"), result)
    pictures: dict[str, bytes] = {}
    drawn = (("Roofline", plots.roofline, "-roofline.png"),
             ("Growth", plots.growth, "-growth.png"))
    for title, draw, ending in drawn if result.settings["suite"] == "cpu-ops" else ():
        try:
            pictures[title] = draw(result)
        except ValueError as e:
            _say(f"without the plot {title.lower()}: {e}")
            continue
        path.with_name(path.stem + ending).write_bytes(pictures[title])
    write_text(path, suite_page.render(result, pictures))


def show_tables(result: Any) -> None:
    """The tables of a suite on the terminal."""
    from ..bench.suites.table import notes, tables

    for table in tables(result):
        if table.title == "Cases":       # told while they ran; the report has them all
            continue
        drawn = RichTable(*(h.replace("[", "\\[") for h in table.heads), title=table.title)
        for row in table.rows:
            drawn.add_row(*(cell.replace("[", "\\[") for cell in row))
        console().print(drawn)
        if table.note:
            console().print(table.note, markup=False, highlight=False, soft_wrap=True)
    for note in notes(result):
        console().print(note, markup=False, highlight=False, soft_wrap=True)
