"""`expertile bench gate`: the working tree against a revision, or against a static baseline."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .bench_options import (
    AbsoluteUs,
    Block,
    Cases,
    Configs,
    Doubt,
    Every,
    Rounds,
    SuiteThreshold,
    Threshold,
    command_line,
    environment,
    interruptible,
    make_rules,
    make_suite,
    told,
)
from .bench_output import CaseProgress, Out, Write, parse_writes, show, store
from .bench_static import DEFAULT_FILE, BaselineFile, StaticDevices, Update, static_gate
from .options import (
    ActDtype,
    Batch,
    Ctx,
    Db,
    Device,
    Json,
    Model,
    Op,
    Preset,
    Tokens,
    WeightDtype,
)

if TYPE_CHECKING:
    from ..bench.gate import Outcome
    from ..bench.measure import Plan
    from ..bench.suite import Suite
    from ..bench.verdict import Rules

_SIDES = ("base", "base_again", "head")


def _gate(suite: Suite, root: Path, base: str, base_python: str, plan: Plan, rules: Rules,
          retest: bool) -> Outcome:
    from dataclasses import replace

    from ..bench.gate import RETEST_ROUNDS, decide
    from ..bench.measure import measure
    from ..bench.result import Result
    from ..bench.tree import checked_out, working

    with checked_out(root, base, base_python) as old:
        new = working(root, sys.executable)
        trees = dict(zip(_SIDES, (old, old, new), strict=True))

        def take(wanted: Suite, how: Plan) -> Result:
            with CaseProgress(len(wanted.cases)) as progress:
                return measure(wanted, trees, how, environment(), command_line(), progress)

        def again(names: Iterable[str]) -> Result:
            chosen = set(names)
            return take(replace(suite, cases=tuple(c for c in suite.cases if c.name in chosen)),
                        replace(plan, rounds=RETEST_ROUNDS * plan.rounds, seed=plan.seed + 1000))

        return decide(take(suite, plan), rules, again if retest else None)


def gate(
    base: Annotated[str | None, typer.Option(
        "--base", help="Revision to compare with: measured now, interleaved, on this machine.")
    ] = None,
    static: Annotated[bool, typer.Option(
        "--static", help="Compare compiled kernels with a baseline in git: no device, no noise.")
    ] = False,
    device: Device = "cpu:1", preset: Preset = None, model: Model = None, op: Op = None,
    tokens: Tokens = None, batch: Batch = None, ctx: Ctx = None, weight_dtype: WeightDtype = None,
    act_dtype: ActDtype = None, configs: Configs = "default", db: Db = None, suite: Cases = None,
    every: Every = False, rounds: Rounds = 40, block: Block = 2, threshold: Threshold = 3.0,
    suite_threshold: SuiteThreshold = 1.5, absolute_us: AbsoluteUs = 0.5, ambiguous: Doubt = "fail",
    base_python: Annotated[str, typer.Option(
        "--base-python", help="Interpreter of the base's environment, where its dependencies "
                              "differ; by default this one.")] = sys.executable,
    retest: Annotated[bool, typer.Option(
        "--retest/--no-retest", help="Measure doubtful cases once more, in fresh processes.")
    ] = True,
    baseline: BaselineFile = DEFAULT_FILE, update: Update = False, arch: StaticDevices = None,
    strict: Annotated[bool, typer.Option(
        "--strict", help="With --static: a warning fails too.")] = False,
    out: Out = None, write: Write = None, as_json: Json = False,
) -> None:
    """Is the working tree slower than a revision? Or do its kernels compile to something else?"""
    if (base is None) == (not static):
        raise ValueError("give one of --base REV (timed on this machine) and --static (compiled "
                         "kernels against a baseline file)")
    sizes = (tokens, batch, ctx)
    if static:
        static_gate(arch, preset, op, baseline, update, every, strict, as_json)
        return
    from ..bench.gate import exit_code
    from ..bench.measure import Plan
    from ..bench.result import NoBaseline
    from ..bench.tree import commit, top

    assert base is not None
    writes = parse_writes(write)
    rules = make_rules(threshold, suite_threshold, absolute_us)
    try:
        root = top(Path.cwd())
        commit(root, base)
        wanted = make_suite(root, suite, device, preset, model, op, sizes,
                            (weight_dtype, act_dtype), configs, db, every)
        with interruptible():
            outcome = _gate(wanted, root, base, base_python, Plan(rounds, block), rules, retest)
    except NoBaseline as e:
        raise told(e, as_json) from None
    store(outcome.result, outcome, out, writes)
    show(outcome.result, outcome, as_json)
    raise typer.Exit(exit_code(outcome.code, ambiguous))
