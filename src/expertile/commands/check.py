"""`expertile check`: do a model's operators have a legal config on a device; no hardware needed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .check_route import add_route, open_route, show_route
from .grouped import grouped
from .options import Device, Json, Op, console, load_target, short_shape, wanted_ops
from .shapes import Sizes, check_dtypes


def _facts(kernel: dict[str, Any]) -> str:
    """What is worth a glance: registers and shared memory of a GPU, buffers of an NPU."""
    if "registers" in kernel:
        matrix = " ".join(f"{name}:{count}" for name, count in kernel["mma"].items())
        said = f"{kernel['registers']} regs, {kernel['shared_bytes']} B shared {matrix}"
    else:
        said = ", ".join(f"{name.removesuffix('_bytes').upper()} {size} B"
                         for name, size in kernel.items() if name.endswith("_bytes") and size)
    return f"{kernel.get('name', '?')} {said}".strip()


def _print(rows: list[dict[str, Any]], device: str) -> None:
    table = Table("operator", "shape", "verdict", "modelled us", "largest kernel",
                  title=f"{device}: compiled, not run; modelled times only order configs")
    for row in rows:
        verdict = "legal" if row["ok"] else row["reason"] or "; ".join(row["warnings"])
        if row["ok"] and not row["is_default"]:
            verdict = f"legal, not the default ({row['refused'][0]['why']})"
        kernels = sorted(row["kernels"], key=lambda k: -k.get("instructions", 0))
        us = row["modelled_us"]
        table.add_row(row["op"], short_shape(row["shape"]), verdict,
                      "-" if us is None else f"{us:.1f}", _facts(kernels[0]) if kernels else "-")
    console().print(table)


@grouped
def check(
    sizes: Sizes, device: Device, op: Op = None,
    every: Annotated[bool, typer.Option(
        "--every", help="Every shape of the ladder; by default the ends for each kernel.")] = False,
    route: Annotated[str | None, typer.Option(
        "--route", help="Compare with another way to the same compiler: triton-ascend.")] = None,
    worker_python: Annotated[Path | None, typer.Option(
        "--worker-python", help="Interpreter with torch and triton-ascend, for --route.")] = None,
    as_json: Json = False,
) -> None:
    """Compile a model's operators for a device and say which configs it accepts, and why not."""
    from ..opt.check import Checked, check_many, kernels_of

    dims = sizes.dims(device)
    target = load_target(device)
    there = None if route is None else open_route(target, route, worker_python)
    tasks = kernels_of(dims, wanted_ops(op), sizes.load(dims), every)
    for one, shape in tasks:
        check_dtypes(one, (shape,))
    errors = Console(stderr=True)
    with Progress(console=errors, disable=not errors.is_terminal) as progress:
        bar = progress.add_task("kernels", total=len(tasks))

        def done(checked: Checked) -> None:
            progress.update(bar, advance=1, description=checked.op)

        found = check_many(tasks, target, max(1, len(os.sched_getaffinity(0))), done)
        rows = [c.to_json() for c in found]
        if there is not None and route is not None:
            other = progress.add_task(route, total=len(tasks))
            add_route(rows, tasks, there, route, lambda op: progress.update(
                other, advance=1, description=f"{route}: {op}"))
    missing = sorted({r["op"] for r in rows if r["config"] is None})
    if as_json:
        print(json.dumps({"device": target.device, "arch": target.arch,
                          "toolchain": target.toolchain(), "evidence": target.evidence(),
                          "checked": rows}, indent=2))
    else:
        _print(rows, f"{device} ({target.device})")
        console().print(f"{sum(r['ok'] for r in rows)} of {len(rows)} kernels have a legal config "
                        "without spills")
        if route is not None:
            show_route(rows, route)
    if missing:
        raise typer.Exit(1)          # an operator without any legal config
