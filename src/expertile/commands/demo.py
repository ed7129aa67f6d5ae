"""`expertile demo`: tune the bundled model's operators on this CPU, then generate text on them."""

from __future__ import annotations

from typing import Annotated

import typer

from ..ops.models import Load, preset
from .db import where
from .options import Db, console, load_target
from .progress import TuneProgress
from .run import TINY, report_table
from .tune import outcome_table

# What the bundled model meets: one token at a time, and a short prompt.
_LOAD = Load(tokens=(1, 16), batch=(1,), ctx=(128,))


def demo(
    seconds: Annotated[float, typer.Option("--seconds", min=1,
                                           help="Time for tuning, all shapes together.")] = 110.0,
    db: Db = None,
) -> None:
    """Tune the bundled model's operators for this CPU, then let it write, and say what answered."""
    from ..model import LLM, SamplingParams
    from ..ops import load, names
    from ..opt.budget import Budget
    from ..opt.tune import tune_many
    from ..tuning_db.store import TuningDB

    screen = console()
    target = load_target("cpu")
    if why := target.available():
        raise ValueError(f"the demo tunes on this CPU, but {why}")
    screen.print(f"Tuning for {target.device} ({seconds:.0f} s) into {where(db)}")
    tasks = [(op, s) for op in map(load, names()) for s in op.shapes(preset("tiny"), _LOAD)]
    with TuningDB(where(db)) as store, TuneProgress(screen) as progress:
        outcomes = tune_many(tasks, target, store, Budget(seconds=seconds), 0, progress,
                             "expertile demo")
    screen.print(outcome_table(outcomes))

    screen.print("\nThe bundled model, on these operators:\n")
    llm = LLM(TINY, db=where(db))
    params = SamplingParams(max_tokens=120, temperature=0.7, top_k=40, seed=1)
    for prompt in ("Return a list of all the names that", "Raise a ValueError if the number"):
        print(prompt, end="", flush=True)
        for piece in llm.stream(prompt, params):
            print(piece, end="", flush=True)
        print("\n")
    rows = llm.op_report()
    screen.print(report_table(rows))
    if any(r["answered_by"] == "reference" for r in rows):
        screen.print("[red]some operators were answered by the torch reference[/red]")
        raise typer.Exit(1)
