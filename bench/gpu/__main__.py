"""One stage of the GPU run: `python -m expertile.bench.gpu STAGE OUT.jsonl`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ... import targets
from . import stages
from .cases import TIMED
from .report import table

_STAGES: dict[str, Callable[[stages.Runner], None]] = {
    "describe": stages.describe, "numerics": stages.numerics, "correlate": stages.correlate,
    **{name: partial(stages.timed, make=make) for name, make in TIMED.items()}}


def main() -> None:
    """Run one stage, or print what all of them found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=[*_STAGES, "report"])
    parser.add_argument("out", type=Path, help="results, one JSON line each; read to go on")
    parser.add_argument("--device", default="cuda", help="a target of this machine")
    parser.add_argument("--seconds", type=float, default=480.0, help="start no job after this")
    args = parser.parse_args()
    if args.stage == "report":
        print(table(args.out))
        return
    run = stages.Runner(targets.load(args.device), stages.Rows(args.out), args.seconds)
    try:
        _STAGES[args.stage](run)
    finally:
        run.close()


if __name__ == "__main__":
    main()
