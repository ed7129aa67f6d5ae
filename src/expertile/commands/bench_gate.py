"""`expertile bench gate`: the working tree against a revision, or against a static baseline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .bench_options import (
    AbsoluteUs,
    Chosen,
    Configs,
    Doubt,
    SuiteThreshold,
    Threshold,
    environment,
    interruptible,
    make_rules,
    make_suite,
    told,
)
from .bench_output import CaseProgress, parse_writes, show, store
from .bench_static import DEFAULT_FILE, BaselineFile, StaticDevices, Update, static_gate
from .command_line import command_line
from .grouped import grouped
from .options import Device


@grouped
def gate(
    chosen: Chosen,
    base: Annotated[str | None, typer.Option(
        "--base", help="Revision to compare with: measured now, interleaved, on this machine.")
    ] = None,
    static: Annotated[bool, typer.Option(
        "--static", help="Compare compiled kernels with a baseline in git: no device, no noise.")
    ] = False,
    device: Device = "cpu:1", configs: Configs = "default", threshold: Threshold = 3.0,
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
) -> None:
    """Is the working tree slower than a revision? Or do its kernels compile to something else?"""
    if (base is None) == (not static):
        raise ValueError("give one of --base REV (timed on this machine) and --static (compiled "
                         "kernels against a baseline file)")
    if static:
        static_gate(arch, chosen.preset, chosen.op, baseline, update, chosen.every, strict,
                    chosen.as_json)
        return
    from ..bench.against import gated
    from ..bench.gate import exit_code
    from ..bench.measure import Plan
    from ..bench.result import NoBaseline
    from ..bench.tree import checked_out, commit, top, working

    assert base is not None
    writes = parse_writes(chosen.write)
    rules = make_rules(threshold, suite_threshold, absolute_us)
    try:
        root = top(Path.cwd())
        commit(root, base)
        wanted = make_suite(root, chosen, device, configs)
        with interruptible(), checked_out(root, base, base_python) as old:
            outcome = gated(wanted, old, working(root, sys.executable),
                            Plan(chosen.rounds, chosen.block), rules, environment(),
                            command_line(), retest, CaseProgress)
    except NoBaseline as e:
        raise told(e, chosen.as_json) from None
    show(outcome.result, outcome, chosen.as_json)
    store(outcome.result, outcome, chosen.out, writes)
    raise typer.Exit(exit_code(outcome.code, ambiguous))
