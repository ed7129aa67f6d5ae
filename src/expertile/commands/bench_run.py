"""`expertile bench run|compare|report`: measure, compare two results, write other formats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

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
from .bench_output import CaseProgress, Write, parse_writes, show, store
from .bench_suite import (
    CompileOnly,
    Minutes,
    Name,
    Only,
    Quick,
    Report,
    Resume,
    Threads,
    Wanted,
    run_named,
)
from .command_line import command_line
from .grouped import grouped
from .options import Device, Json, wanted_ops


@grouped
def run(
    chosen: Chosen, name: Name = None, device: Device = "cpu", configs: Configs | None = None,
    report: Report = None, quick: Quick = False, budget: Minutes = None, threads: Threads = None,
    only: Only = None, resume: Resume = False, compile_only: CompileOnly = False,
) -> None:
    """Time a named suite against its peers and the machine's limits, or a model's operators
    (preset tiny by default), or a file's bench_* functions."""
    from ..bench.gate import OK, WRONG
    from ..bench.measure import Plan, measure
    from ..bench.tree import Tree

    writes = parse_writes(chosen.write)
    if name is not None:
        ops = list(wanted_ops(chosen.op)) if chosen.op else []
        run_named(name, Wanted(device, ops, report, resume, compile_only, quick, budget, threads,
                               only or [], chosen.rounds, configs or "recorded", chosen.db,
                               chosen.out, writes, chosen.as_json))
    if report or quick or budget or threads or only or resume or compile_only:
        raise ValueError("--report, --resume, --compile-only, --quick, --budget, --threads and "
                         "--only belong to a named suite; say for example: expertile bench run "
                         "cpu-ops --quick")
    here = Path.cwd()
    wanted = make_suite(here, chosen, device, configs or "default")
    tree = Tree(here, _revision(here), sys.executable)
    with interruptible(), CaseProgress(len(wanted.cases)) as progress:
        result = measure(wanted, {"head": tree, "head_again": tree},
                         Plan(chosen.rounds, chosen.block), environment(), command_line(), progress)
    show(result, None, chosen.as_json)
    store(result, None, chosen.out, writes)
    broken = any(c.status in ("wrong", "failed") for c in result.cases)
    raise typer.Exit(WRONG if broken else OK)


def _revision(root: Path) -> str:
    from ..bench.result import NoBaseline
    from ..bench.tree import working

    try:
        return working(root, sys.executable).revision
    except (NoBaseline, ValueError):
        return ""                        # no repository: a run needs none


def compare(
    base: Annotated[Path, typer.Argument(help="Result of the old code (bench run --out).")],
    head: Annotated[Path, typer.Argument(help="Result of the new code, from the same machine.")],
    threshold: Threshold = 3.0, suite_threshold: SuiteThreshold = 1.5,
    absolute_us: AbsoluteUs = 0.5,
    any_host: Annotated[bool, typer.Option(
        "--any-host", help="Compare results of different hosts of the same model.")] = False,
    ambiguous: Doubt = "fail", write: Write = None, as_json: Json = False,
) -> None:
    """Compare two results of one machine; not interleaved, so `gate` sees smaller changes."""
    from ..bench.gate import decide, exit_code, join
    from ..bench.result import BadResult, NoBaseline, read

    writes = parse_writes(write)
    try:
        new = read(head)
    except NoBaseline as e:
        raise BadResult(str(e)) from None    # it is head that is missing
    try:
        joined = join(read(base), new, any_host)
    except BadResult as e:
        raise told(e, as_json) from None
    except NoBaseline as e:
        raise told(e, as_json) from None
    outcome = decide(joined, make_rules(threshold, suite_threshold, absolute_us))
    show(joined, outcome, as_json)
    store(joined, outcome, None, writes)
    raise typer.Exit(exit_code(outcome.code, ambiguous))


def report(
    result: Annotated[Path, typer.Argument(help="A result file.")],
    write: Write = None, as_json: Json = False,
) -> None:
    """Write a stored result in other formats; a gate's result is judged again."""
    from ..bench.gate import decide
    from ..bench.result import NoBaseline, read
    from ..bench.verdict import Rules

    writes = parse_writes(write)
    try:
        found = read(result)
    except NoBaseline as e:
        raise told(e, as_json) from None
    both: Any = decide(found, Rules()) if any(c.samples.get("base") for c in found.cases) else None
    show(found, both, as_json)
    store(found, both, None, writes)
