"""Where `expertile bench` writes: the terminal, files by format, a CI's step summary."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .options import console

if TYPE_CHECKING:
    from ..bench.gate import Outcome
    from ..bench.result import Case, Result

Out = Annotated[Path | None, typer.Option(
    "--out", help="Write the result with all raw samples here (JSON).")]
Write = Annotated[list[str] | None, typer.Option(
    "--write", metavar="FORMAT=PATH",
    help="Also write a file: markdown, junit, html, github-action-benchmark, pytest-benchmark, "
         "bmf, otava, verdicts, json, png (roofline), growth-png. Repeatable.")]


class CaseProgress:
    """A bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, what: str = "cases"):
        self._console = Console(stderr=True)
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                             TimeElapsedColumn(), console=self._console,
                             disable=not self._console.is_terminal)
        self._total, self._what, self._done = total, what, 0

    def __enter__(self) -> CaseProgress:
        self._bar.__enter__()
        self._task = self._bar.add_task(self._what, total=self._total)
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, case: Case) -> None:
        """One more case is done."""
        self._done += 1
        self._bar.update(self._task, advance=1, description=case.group)
        if not self._console.is_terminal:
            us = case.us("head")
            self._console.print(f"{self._done}/{self._total} {case.name}: "
                                f"{'-' if us is None else f'{us:.4g} us'} {case.status}",
                                soft_wrap=True, markup=False, highlight=False)


def parse_writes(writes: list[str] | None) -> list[tuple[str, Path]]:
    """FORMAT=PATH pairs, refused before anything is measured."""
    from ..bench.outputs import FORMATS, PICTURES

    found = []
    for text in writes or []:
        name, given, path = text.partition("=")
        if not given or not path or name not in {**FORMATS, **PICTURES}:
            raise ValueError(f"--write takes FORMAT=PATH with a format of "
                             f"{', '.join((*FORMATS, *PICTURES))}, got {text!r}")
        found.append((name, Path(path)))
    return found


def store(result: Result, outcome: Outcome | None, out: Path | None,
          writes: list[tuple[str, Path]]) -> None:
    """Write all files that were asked for, and a CI's step summary where there is one."""
    from ..bench.outputs import PICTURES, render
    from ..bench.result import write, write_text

    path = out
    try:
        if out is not None:
            write(out, result)
        for name, path in writes:
            if name in PICTURES:
                path.write_bytes(PICTURES[name](result))
            else:
                write_text(path, render(name, result, outcome))
    except OSError as e:
        raise OSError(f"{path} could not be written ({e.strerror or e}): what stood there is "
                      "unchanged, and the result above is not stored") from e
    step_summary(lambda: render("markdown", result, outcome))


def step_summary(text: object) -> None:
    """Append Markdown to GitHub's step summary, if this is a step."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary and callable(text):
        with open(summary, "a") as file:
            file.write(text())


def show(result: Result, outcome: Outcome | None, as_json: bool) -> None:
    """The table, or JSON."""
    from ..bench.outputs.markdown import change, headline, limits_line, power_line

    if as_json:
        print(json.dumps(outcome.to_json() if outcome else result.to_json()))
        return
    table = Table("case", "base us", "head us", "change [95 %]", "verdict", "% of limit", "why",
                  title=f"{result.machine.model}, {result.machine.device}; interleaved low "
                        "quantiles")
    for case in result.cases:
        said = outcome.verdict(case.name) if outcome else None
        percent, base, head = case.percent_of_floor("head"), case.us("base"), case.us("head")
        table.add_row(
            case.name.replace("[", "\\["), "-" if base is None else f"{base:.4g}",
            "-" if head is None else f"{head:.4g}",
            f"{change(said.ratio)} \\[{change(said.low)}, {change(said.high)}]" if said else "-",
            said.verdict if said else case.status, f"{percent:.0f}" if percent else "-",
            (said.why if said else case.error)[:120].replace("[", "\\["))
    console().print(table)
    if limits := limits_line(result):
        console().print(limits, markup=False, highlight=False, soft_wrap=True)
    if outcome is None:
        return
    suite = outcome.judgement.suite
    lines = [*outcome.notes, power_line(outcome)]
    if suite is not None:
        lines.append(f"all cases together: {change(suite.ratio)} [{change(suite.low)}, "
                     f"{change(suite.high)}], {suite.verdict}")
    for line in (*lines, headline(outcome)):
        console().print(line, markup=False, highlight=False, soft_wrap=True)
