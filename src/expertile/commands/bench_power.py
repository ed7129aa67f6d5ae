"""`expertile bench power`: how often this gate would have been right on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .bench_options import AbsoluteUs, SuiteThreshold, Threshold, interruptible, make_rules
from .options import Json, console

EFFECTS = (0.0, 0.03, 0.05, 0.10)


def power(
    recordings: Annotated[list[Path] | None, typer.Argument(
        help="Noise of this machine: python -m expertile.bench.prove noise FILE, or gates of equal "
             "code (bench gate --base HEAD --no-retest --out FILE); by default what ships.")
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Simulated CI runs.")] = 200,
    cases: Annotated[int, typer.Option("--cases", min=1, help="Cases of a run.")] = 4,
    rounds: Annotated[int, typer.Option("--rounds", min=10, help="Rounds of a run.")] = 40,
    threshold: Threshold = 3.0, suite_threshold: SuiteThreshold = 1.5,
    absolute_us: AbsoluteUs = 0.5, as_json: Json = False,
) -> None:
    """Simulate CI runs from recorded noise: what is caught, and how often the alarm is false."""
    from ..bench.result import NoBaseline, read
    from ..bench.simulate import caught, noise_of, provenance, shipped_recordings

    try:
        found = [read(path) for path in recordings or shipped_recordings()]
        noise = noise_of(found)
    except NoBaseline as e:
        raise ValueError(str(e)) from None
    rules = make_rules(threshold, suite_threshold, absolute_us)
    with interruptible():
        shares = {effect: caught(noise, effect, runs, cases, rounds=rounds, rules=rules)
                  for effect in EFFECTS}
    if as_json:
        print(json.dumps({"runs": runs, "cases": cases, "caught": shares,
                          "noise": [provenance(r) for r in found]}))
        return
    table = Table("slow-down of one case", "called slower",
                  title=f"{runs} simulated runs of {cases} cases of 500 us, {rounds} rounds")
    for effect, share in shares.items():
        table.add_row(f"{100 * effect:g} %" if effect else "none (false alarms)",
                      f"{100 * share:.1f} %")
    console().print(table)
    for recording in found:
        console().print(f"noise: {provenance(recording)}", markup=False, highlight=False,
                        soft_wrap=True)
