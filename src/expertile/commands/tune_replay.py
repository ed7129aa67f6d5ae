"""`expertile tune replay`: play a search on a recorded landscape and say how good it is."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .options import Json, console
from .tune_method import SamplerOption, StopGain


def replay(
    file: Annotated[Path, typer.Argument(
        help="Kernel Tuner's cache or T4, or a landscape of ours; plain or gzip. Or the name of "
             "one that ships with the package: opt/landscapes.")],
    sampler: SamplerOption = "auto",
    budget: Annotated[int, typer.Option("--budget", help="Evaluations of each run.")] = 200,
    seeds: Annotated[int, typer.Option("--seeds", help="How many runs: seeds 0, 1, ...")] = 20,
    stop_gain: StopGain = 0.0,
    as_json: Json = False,
) -> None:
    """Play a search on an exhaustively measured space; nothing is compiled or timed."""
    from ..opt.replay import replay_landscape, shares
    from ..opt.replay_record import find
    from ..opt.search.landscape import read

    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {seeds}")
    landscape = read(find(file))
    began = time.process_time()
    runs = replay_landscape(landscape, sampler, budget, range(seeds), stop_gain / 100)
    each = 1e3 * (time.process_time() - began) / sum(map(len, runs))
    reached = shares(runs, landscape.optimum, budget)
    if as_json:
        print(json.dumps({
            "file": str(file), "sampler": sampler, "budget": budget, "seeds": seeds,
            "configs": len(landscape.pool), "failing": landscape.failing,
            "optimum": landscape.optimum, "cpu_ms_a_trial": round(each, 3),
            "reached": [{"evaluations": s.evaluations, "within_5": s.within_5,
                         "within_10": s.within_10, "ratio": _finite(s.ratio)} for s in reached],
            "runs": [[_finite(t) for t in run] for run in runs]}))
        return
    table = Table("evaluations", "within 5 %", "within 10 %", "best / optimum (median)",
                  title=f"{landscape.name}: {len(landscape.pool)} configs, "
                        f"{landscape.failing} failing; {sampler}, {seeds} runs, "
                        f"{each:.1f} ms of CPU time a trial")
    for s in reached:
        table.add_row(str(s.evaluations), f"{100 * s.within_5:.0f} %", f"{100 * s.within_10:.0f} %",
                      f"{s.ratio:.3f}")
    console().print(table)


def _finite(time: float) -> float | None:
    """JSON has no infinity: a failure is null."""
    return time if math.isfinite(time) else None
