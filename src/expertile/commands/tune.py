"""`expertile tune`: find the best config of every operator shape of a model on a device."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .command_line import command_line
from .db import where
from .grouped import grouped
from .options import Db, Device, Json, Op, console, load_target, short_shape
from .progress import TuneProgress
from .shapes import Sizes
from .tune_method import (
    Collected,
    RoutingOption,
    SamplerOption,
    StopGain,
    Storage,
    chosen_routing,
    method_of,
    work_of,
)
from .tune_workers import Share, Workers, count_of, share_of, tune_on_each

if TYPE_CHECKING:
    from ..opt.budget import Budget
    from ..opt.outcome import Outcome

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def parse_budget(seconds: str | None, trials: int | None) -> Budget:
    """--budget 60s or --trials 20; without either, 20 trials a shape."""
    from ..opt.budget import Budget

    if seconds is None:
        return Budget(trials=20 if trials is None else trials)
    if trials is not None:
        raise ValueError("give one of --budget and --trials, not both")
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([smh]?)\s*", seconds)
    if not match:
        raise ValueError(f"--budget takes a time like 60s, 10m or 1h, got {seconds!r}")
    return Budget(seconds=float(match[1]) * _UNITS[match[2]])


def outcome_table(outcomes: list[Outcome]) -> Table:
    """operator x shape: default, tuned, speed-up or "default kept", percent of the limit."""
    modelled = any(o.record.is_modelled for o in outcomes)
    table = Table("operator", "shape", "default us", "best us" if modelled else "tuned us",
                  "result", "% of limit", "tried",
                  title="modelled, never measured: times only order configs" if modelled else
                  "interleaved low quantiles; the limit is this machine's, measured")
    for o in outcomes:
        r, percent = o.record, o.percent_of_floor
        result: str = r.decision or r.status
        if r.decision == "tuned" and r.speedup:
            result = f"{r.speedup:.2f}x"
        table.add_row(
            r.key.op, short_shape(r.key.shape), f"{r.default_us:.1f}" if r.default_us else "-",
            f"{r.us:.1f}" if r.us else "-", result + (" (noisy)" if r.status == "noisy" else ""),
            f"{percent:.0f}" if percent else "-", f"{o.trials}{' (kept)' if o.resumed else ''}")
    return table


def _speed(outcomes: list[Outcome], seconds: float) -> dict[str, float]:
    """Candidates of this run, not of one that it resumed."""
    count = sum(o.trials - o.known for o in outcomes if not o.resumed)
    return {"candidates": count, "seconds": round(seconds, 1),
            "candidates_per_hour": round(3600.0 * count / max(seconds, 1e-9), 1)}


def _print_plan(work: list[Any], device: str, as_json: bool) -> None:
    from ..opt.tune import plan

    target = load_target(device)
    rows = [p for op, shapes in work for p in plan(op, target, shapes)]
    if as_json:
        print(json.dumps({"plan": [p.to_json() for p in rows]}, indent=2))
        return
    table = Table("operator", "shape", "configs", "key")
    for p in rows:
        table.add_row(p.op, short_shape(p.shape), str(p.configs), p.key_hash[:12])
    console().print(table)


@grouped
def tune(
    sizes: Sizes, context: typer.Context, device: Device = "cpu", op: Op = None,
    budget: Annotated[str | None, typer.Option(
        "--budget", help="Time for all shapes together: 60s, 30m, 2h.")] = None,
    trials: Annotated[int | None, typer.Option(
        "--trials", help="Configs to try for each shape (20 when neither is given).")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of inputs and search.")] = 0,
    sampler: SamplerOption = "auto", stop_gain: StopGain = 0.0, routing: RoutingOption = None,
    collected: Collected = None, storage: Storage = None, workers: Workers = "1",
    share: Share = "", db: Db = None,
    no_measure: Annotated[bool, typer.Option(
        "--no-measure", help="Compile and rank by the device's model: for a device that is not "
                             "here. Records are modelled; a tune on the device measures the best "
                             "few first.")] = False,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Print keys and space sizes; measure nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Tune a model's operators for a device. Kill it at any time: it goes on where it stopped."""
    if context.invoked_subcommand is not None:
        return
    limit = parse_budget(budget, trials)
    work, seen = work_of(collected, sizes, device, op)
    if dry_run:
        _print_plan(work, device, as_json)
        return
    from ..opt.tune import tune_many
    from ..tuning_db.store import TuningDB

    target, db, began = load_target(device), where(db or storage), time.monotonic()
    if (count := count_of(workers, device)) > 1:
        tune_on_each(count, device, sys.argv[1:])
    tasks = share_of(share, [(o, s) for o, shapes in work for s in shapes])
    with (method_of(sampler, stop_gain, chosen_routing(routing, seen), storage) as method,
          TuningDB(db) as store, TuneProgress(Console(stderr=True)) as progress):
        outcomes = tune_many(tasks, target, store, limit, seed, progress, command_line(),
                             method=replace(method, measure=not no_measure))
    speed = _speed(outcomes, time.monotonic() - began)
    if as_json:
        print(json.dumps({"device": target.device, "db": db, **speed,
                          "records": [o.to_json() for o in outcomes]}, indent=2))
    else:
        console().print(outcome_table(outcomes))
        console().print(f"{speed['candidates']} candidates in {speed['seconds']:.0f} s "
                        f"({speed['candidates_per_hour']:.0f} an hour); records are in {db}")
    if any(o.record.decision is None for o in outcomes):
        raise typer.Exit(1)          # a default config that is wrong or does not run
