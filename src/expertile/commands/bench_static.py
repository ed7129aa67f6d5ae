"""`expertile bench gate --static`: compiled kernels against a baseline file in git."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .. import settings
from .bench_options import interruptible, told
from .bench_output import step_summary
from .options import console, wanted_ops

if TYPE_CHECKING:
    from ..bench.static.baseline import Baseline, Scope
    from ..bench.static.diff import Finding

BaselineFile = Annotated[Path, typer.Option(
    "--baseline", help="With --static: the file in git.")]
Update = Annotated[bool, typer.Option(
    "--update", help="With --static: write the baseline instead of checking against it.")]
StaticDevices = Annotated[list[str] | None, typer.Option(
    "--arch", help="With --static: devices to compile for (repeatable, or a,b,c): sm_90, gfx942, "
                   "x86-avx512 ...; by default the baseline's, or all when it is made.")]
DEFAULT_FILE = Path("expertile-static.json")


def _scope(archs: list[str] | None, preset: str | None, op: list[str] | None, every: bool) -> Scope:
    from ..bench.static.baseline import Scope
    from ..bench.static.points import GPU_ARCHS

    devices = tuple(name for text in archs or [] for name in text.split(",")) or GPU_ARCHS
    return Scope(devices, (preset or "v3",), wanted_ops(op) if op else (), every)


def _collect(scope: Scope) -> Baseline:
    from ..bench.static.baseline import collect

    errors = Console(stderr=True)
    with interruptible(), errors.status("compiling") as status:
        return collect(scope, max(1, len(os.sched_getaffinity(0))), settings.read().cache_dir,
                       lambda key: status.update(key.replace("[", "\\[")))


def _markdown(findings: list[Finding], line: str) -> str:
    rows = [f"| {f.severity} | {f.rule} | `{f.where.replace('|', '')}` | {f.text} | {f.cause} |"
            for f in findings]
    table = ["", "| | rule | config | change | cause |", "| --- | --- | --- | --- | --- |", *rows]
    return "\n".join([f"## Compiled kernels: {line}", *(table if rows else []), ""])


def static_gate(archs: list[str] | None, preset: str | None, op: list[str] | None, path: Path,
                update: bool, every: bool, strict: bool, as_json: bool) -> None:
    """Exit 0 without failures, 1 with one (or with a warning, when strict), 5 without baseline."""
    from ..bench.gate import OK, REGRESSION
    from ..bench.result import NoBaseline
    from ..bench.static.baseline import compare, read, summary, write

    if update:
        made = _collect(_scope(archs, preset, op, every))
        write(path, made)
        count = sum(len(d.points) for d in made.devices.values())
        console().print(f"{path}: {count} named configs of {', '.join(made.scope.devices)}",
                        markup=False, soft_wrap=True)
        return
    try:
        base = read(path)
    except NoBaseline as e:
        raise told(e, as_json) from None
    if archs:
        base = replace(base, scope=replace(base.scope, devices=_scope(
            archs, preset, op, every).devices))
    head = _collect(base.scope)
    findings = compare(base, head)
    bad = [f for f in findings if f.severity == "fail" or strict and f.severity == "warn"]
    line = summary(findings, sum(len(d.points) for d in head.devices.values()))
    step_summary(lambda: _markdown(findings, line))
    if as_json:
        print(json.dumps({"exit_code": REGRESSION if bad else OK, "summary": line,
                          "findings": [asdict(f) for f in findings]}, indent=1))
    else:
        for finding in findings:
            console().print(finding.line(), markup=False, highlight=False, soft_wrap=True)
        console().print(line, markup=False, soft_wrap=True)
    raise typer.Exit(REGRESSION if bad else OK)
