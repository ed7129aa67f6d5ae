"""Runs a suite: kernels compiled and limits measured first, then case after case."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from os import sched_getaffinity
from typing import Any

from ...targets.child import Child, ChildCrashed, ChildTimeout
from ..result import BadResult, Case, Result
from . import jobs
from .case import measure, variants
from .points import Point
from .runner import Options, Runner, call, result

Say = Callable[[str], None]
Save = Callable[[Result], None]


def run(points: Sequence[Point], options: Options, say: Say, command: str, suite: str,
        earlier: Result | None = None, save: Save | None = None) -> Result:
    """Measure all points within the time; what found no time is named in settings["skipped"].

    `earlier`'s good cases are kept; `save` is given what there is after every case. An interrupt
    ends the run with what there is.
    """
    runner = Runner(options, say)
    kept = _kept(earlier, options)
    todo = [p for p in points if p.name not in kept]
    if kept:
        say(f"{len(kept)} cases are kept from before, {len(todo)} are to be measured")
    cases: list[Case] = list(kept.values())
    runner.earlier = earlier

    def so_far() -> Result:
        waiting = [p.name for p in todo if p.name not in {c.name for c in cases}]
        return result(runner, tuple(cases), command, suite, waiting, points)

    with ExitStack() as stack:
        try:
            compile_all(todo, options, say)
            runner.open(stack)
            end = time.monotonic() + options.seconds
            for number, point in enumerate(todo):
                left = end - time.monotonic()
                if left < 0 and number:
                    break
                start = time.monotonic()
                cases.append(measure(runner, point, left / (len(todo) - number)))
                parts = ", ".join(f"{n} {t:.0f}" for n, t in runner.took[point.name].items())
                say(f"{number + 1}/{len(todo)} {describe(cases[-1])}; took "
                    f"{time.monotonic() - start:.0f} s ({parts}), "
                    f"{(end - time.monotonic()) / 60:.1f} min left")
                if save is not None:
                    save(so_far())
        except KeyboardInterrupt:
            runner.interrupted = True
            say("interrupted: the report has what was measured so far")
    return so_far()


def _kept(earlier: Result | None, options: Options) -> dict[str, Case]:
    """Good cases of a run that this one goes on with; BadResult when it measured other things."""
    if earlier is None:
        return {}
    for name, now in (("arch", options.arch), ("configs", options.configs)):
        if (then := earlier.settings.get(name)) != now:
            raise BadResult(f"the earlier run had {name} {then!r}, this one has {now!r}; give "
                            "another --report, or leave --resume out")
    return {c.name: c for c in earlier.cases if c.status == "ok" and c.samples}


def compile_all(points: Sequence[Point], options: Options, say: Say) -> None:
    """Put all kernels into the disk cache, a compiler process a CPU, before anything is timed."""
    start, done = time.monotonic(), 0
    count = max(1, min(len(sched_getaffinity(0)), len(points)))
    tick = max(1, len(points) // 10)

    def work(mine: Sequence[Point]) -> None:
        nonlocal done
        child = Child()
        try:
            for point in mine:
                _compile(child, point, options)
                done += 1            # for the progress line alone
                if done % tick == 0 and time.monotonic() - start > 10.0:
                    say(f"compiled the kernels of {done} of {len(points)} cases, "
                        f"{time.monotonic() - start:.0f} s")
        finally:
            child.close()

    with ThreadPoolExecutor(count) as pool:
        for finished in [pool.submit(work, points[i::count]) for i in range(count)]:
            finished.result()


def _compile(child: Child, point: Point, options: Options) -> None:
    """What kills the compiler here does so again when the case is prepared, and is told then."""
    try:
        call(child, jobs.compile_ours, op=point.op, shapes=variants(point),
             unit=options.unit(point.threads), cache_dir=options.cache_dir, db=options.db,
             user_db=options.user_db, configs=options.configs)
    except (ChildCrashed, ChildTimeout):
        return


def limits_only(options: Options, say: Say, command: str) -> Result:
    """The suite `cpu-limits`: every limit at every thread count, as cases."""
    runner, cases = Runner(options, say), []
    with ExitStack() as stack:
        runner.open(stack)
        for threads in options.threads:
            for name in runner.limits[threads]:
                found = tuple(tuple(_limit(runner, threads, name)) for _ in range(options.rounds))
                cases.append(Case(f"{name}[{threads}T]", "limits", "ok", {"head": found},
                                  evidence="L4 timed"))
    return result(runner, tuple(cases), command, "cpu-limits", (), ())


def _limit(runner: Runner, threads: int, name: str) -> Any:
    return call(runner.ours[threads], jobs.time_limit, unit=runner.options.unit(threads),
                name=name, samples=3)


def describe(case: Case) -> str:
    """One line of progress."""
    medians = {s: statistics.median(case.flat(s)) for s in case.samples if s != "head"}
    told = ", ".join(f"{s} {us / 1e3:.3f}" for s, us in medians.items())
    return f"{case.name}: {case.error or told + ' ms'}"
