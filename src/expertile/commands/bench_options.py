"""Options that the verbs of `expertile bench` share, and how they become a suite."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .. import settings
from .bench_output import Out, Write
from .options import (
    ActDtype,
    Batch,
    Ctx,
    Db,
    Json,
    Model,
    Op,
    Preset,
    Tokens,
    WeightDtype,
    wanted_ops,
)
from .shapes import load_of, model_dims

if TYPE_CHECKING:
    from ..bench.suite import Suite
    from ..bench.verdict import Rules

Configs = Annotated[Literal["default", "recorded"], typer.Option(
    "--configs", help="The default configs, or what the tuning databases answer.")]
Cases = Annotated[Path | None, typer.Option(
    "--suite", help="Instead of operators: a Python file with bench_* functions, each returning "
                    "the call to time or (call, check).")]
Rounds = Annotated[int, typer.Option("--rounds", help="Interleaved rounds of each case.")]
Block = Annotated[int, typer.Option("--block", help="Samples of a side in a round.")]
Every = Annotated[bool, typer.Option(
    "--every", help="Every shape of the ladder; by default its ends for each kernel.")]
Threshold = Annotated[float, typer.Option("--threshold", help="Slow-down of a case in percent.")]
SuiteThreshold = Annotated[float, typer.Option(
    "--suite-threshold", help="Slow-down of the geometric mean in percent.")]
AbsoluteUs = Annotated[float, typer.Option(
    "--absolute-us", help="A smaller change in microseconds is never called slower.")]
Doubt = Annotated[Literal["fail", "warn", "pass"], typer.Option(
    "--ambiguous", help="Whether an ambiguous run exits 3 (fail) or 0.")]


@dataclass(frozen=True)
class Chosen:
    """What `run` and `gate` both take: cases, how often, and what is written."""

    preset: Preset = None
    model: Model = None
    op: Op = None
    tokens: Tokens = None
    batch: Batch = None
    ctx: Ctx = None
    weight_dtype: WeightDtype = None
    act_dtype: ActDtype = None
    db: Db = None
    suite: Cases = None
    every: Every = False
    rounds: Rounds = 40
    block: Block = 2
    out: Out = None
    write: Write = None
    as_json: Json = False


def make_suite(root: Path, chosen: Chosen, device: str, configs: str) -> Suite:
    """The cases that were asked for: a user's file, else a model's operators (tiny by default)."""
    from ..bench import suite as suites

    found = settings.read()
    if chosen.suite is not None:
        return suites.Suite(suites.user_cases(chosen.suite, root))
    dims = model_dims(chosen.preset or (None if chosen.model else "tiny"), chosen.model,
                      chosen.weight_dtype, chosen.act_dtype, device)
    load = load_of(dims, chosen.tokens, chosen.batch, chosen.ctx)
    cases = suites.operators(dims, wanted_ops(chosen.op), load, chosen.every)
    return suites.Suite(cases, device, configs, chosen.db or found.db, str(found.user_db),
                        str(found.cache_dir))


def environment() -> dict[str, str]:
    """What the measured processes are given of ours."""
    return dict(os.environ)


def make_rules(threshold: float, suite_threshold: float, absolute_us: float) -> Rules:
    """Percent become fractions here."""
    from ..bench.verdict import Rules

    return Rules(threshold / 100, suite_threshold / 100, absolute_us)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C in one line; typer itself would end without a word."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        raise typer.Exit(130) from None


def told(why: Exception, as_json: bool) -> typer.Exit:
    """No comparable baseline, in one line: exit code 5."""
    from ..bench.gate import NO_BASELINE

    if as_json:
        print(json.dumps({"exit_code": NO_BASELINE, "meaning": "no comparable baseline",
                          "why": str(why)}))
    print(f"no comparable baseline: {why}", file=sys.stderr)
    return typer.Exit(NO_BASELINE)
