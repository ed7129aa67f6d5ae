"""Runs a suite: limits first, then ours and the peers in turns, each in a process of its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from ...targets.child import Child, ChildCrashed, ChildFailed, ChildTimeout
from ..result import Case, Result, Samples, Status
from . import jobs
from .points import BF16, F32, Point
from .runner import Options, Runner, call, result

_BLOCK_S = 120.0
_SAMPLE_US, _LONG_US = 2000.0, 100_000.0
_FEWEST, _MOST = 5, 30               # rounds of a case
_REST_S = 0.006                      # another process's idle threads spin for so long


@dataclass
class Turn:
    """One side of a case while it is measured."""

    name: str
    block: Callable[[int, bool], list[float]]        # samples, warm
    found: list[tuple[float, ...]] = field(default_factory=list)


def run(points: Sequence[Point], options: Options, say: Callable[[str], None], command: str,
        suite: str) -> Result:
    """Measure all points within the time; what found no time is named in settings["skipped"]."""
    end = time.monotonic() + options.seconds
    cases: list[Case] = []
    skipped: list[str] = []
    runner = Runner(options, say)
    with ExitStack() as stack:
        runner.open(stack)
        for number, point in enumerate(points):
            left = end - time.monotonic()
            if left < 0 and cases:
                skipped.append(point.name)
                continue
            cases.append(_case(runner, point, left / (len(points) - number)))
            say(f"{number + 1}/{len(points)} {describe(cases[-1])}; {left / 60:.1f} min left")
    return result(runner, tuple(cases), command, suite, skipped, points)


def limits_only(options: Options, say: Callable[[str], None], command: str) -> Result:
    """The suite `cpu-limits`: every limit at every thread count, as cases."""
    runner, cases = Runner(options, say), []
    with ExitStack() as stack:
        runner.open(stack)
        for threads in options.threads:
            for name in runner.limits[threads]:
                found = tuple(tuple(call(runner.ours[threads], jobs.time_limit, threads=threads,
                                         name=name, samples=3)) for _ in range(_MOST))
                cases.append(Case(f"{name}[{threads}T]", "limits", "ok", {"head": found},
                                  evidence="L4 timed"))
    return result(runner, tuple(cases), command, "cpu-limits", (), ())


def describe(case: Case) -> str:
    """One line of progress."""
    medians = {s: statistics.median(case.flat(s)) for s in case.samples if s != "head"}
    told = ", ".join(f"{s} {us / 1e3:.3f}" for s, us in medians.items())
    return f"{case.name}: {case.error or told + ' ms'}"


def _case(runner: Runner, point: Point, seconds: float) -> Case:
    """One point; a child that dies costs this case alone."""
    start = time.monotonic()
    child, options = runner.ours[point.threads], runner.options
    try:
        made = call(child, jobs.prepare_ours, op=point.op,
                    shapes={n: dict(s) for n, s in point.shapes.items()}, threads=point.threads,
                    cache_dir=options.cache_dir, db=options.db, user_db=options.user_db,
                    configs=options.configs)
        good = {n: m for n, m in made.items() if "error" not in m}
        error = "; ".join(f"{n}: {m['error']}" for n, m in made.items() if "error" in m)
        if not good:
            return _broken(point, error)
        turns = [Turn(n, _side(child, n, m["first_us"])) for n, m in good.items()]
        turns += _peers(runner, point)
        first = next(iter(good.values()))
        limit, share = runner.floor(point, first["flops"], first["bytes"])
        turns.append(Turn("floor", _floor(child, point.threads, limit, share)))
        _rounds(turns, seconds - (time.monotonic() - start))
    except (ChildTimeout, ChildCrashed, ChildFailed) as e:
        for other in (child, runner.torch, runner.ggml):
            other.close()            # each starts anew with the next case
        return _broken(point, f"{type(e).__name__}: {str(e)[-800:]}")
    return _finished(point, turns, good, limit, error)


def _broken(point: Point, error: str) -> Case:
    status: Status = "wrong" if "wrong:" in error else "failed"
    return Case(point.name, point.row, status, {}, point.shape, error=error)


def _finished(point: Point, turns: Sequence[Turn], made: Mapping[str, Any], limit: str,
              error: str) -> Case:
    samples: dict[str, Samples] = {t.name: tuple(t.found) for t in turns}
    fastest = min(made, key=lambda n: statistics.median(
        [us for block in samples[n] for us in block]))
    floor = statistics.median([us for block in samples["floor"] for us in block])
    status: Status = "wrong" if "wrong:" in error else "ok"
    return Case(point.name, point.row, status, {"head": samples[fastest], **samples}, point.shape,
                {"head": made[fastest]["config"], **{n: m["config"] for n, m in made.items()}},
                {"head": fastest, "limit": limit, **{n: m["by"] for n, m in made.items()}}, error,
                "L4 timed", floor, float(made[fastest]["flops"]), float(made[fastest]["bytes"]))


def _side(child: Child, name: str, us: float) -> Callable[[int, bool], list[float]]:
    inner = max(1, min(1000, round(_SAMPLE_US / max(us, 1.0))))

    def block(samples: int, warm: bool) -> list[float]:
        found: list[float] = call(child, jobs.time_block, _BLOCK_S, side=name, inner=inner,
                                  samples=samples, warm=warm)
        return found

    return block


def _floor(child: Child, threads: int, limit: str, share: float
           ) -> Callable[[int, bool], list[float]]:
    """Samples of the limit's kernel, as the microseconds that this case's work would take it."""
    def block(samples: int, warm: bool) -> list[float]:
        found = call(child, jobs.time_limit, threads=threads, name=limit, samples=samples)
        return [us * share for us in found]

    return block


def _peers(runner: Runner, point: Point) -> list[Turn]:
    """The peers' fastest forms of this shape, ready."""
    found: list[Turn] = []
    probes: dict[str, Any] = {}
    if point.row != "growth-experts":
        answer = call(runner.torch, jobs.prepare_torch, op=point.op, shape=dict(point.shape),
                      threads=point.threads, dtypes=[F32, BF16],
                      compiled=_compiles(runner.options, point))
        probes |= {**answer["probes"], **answer["failed"]}
        found += [Turn(n, _side(runner.torch, n, answer["probes"][n])) for n in answer["best"]]
    if point.ggml and "ggml" not in runner.missing:
        with suppress(ChildCrashed):     # a library that aborts is a peer that is not there
            answer = call(runner.ggml, jobs.prepare_ggml, op=point.op, shape=dict(point.shape),
                          threads=point.threads, kind=point.ggml)
            probes |= {**answer["probes"], **answer["failed"]}
            found += [Turn(n, _side(runner.ggml, n, answer["probes"][n]))
                      for n in answer["best"]]
    runner.probes[point.name] = probes
    return found


def _compiles(options: Options, point: Point) -> bool:
    """torch.compile takes ten seconds a form: casts always have it, other rows a case or two."""
    if options.compiled == "none" or point.row == "casts":
        return options.compiled != "none"
    return point.quick and options.compiled == "all" and point.threads == max(options.threads)


def _rounds(turns: Sequence[Turn], seconds: float) -> None:
    """Blocks of all sides in every round, each second round in the reverse order."""
    end = time.monotonic() + seconds
    order = list(turns)
    slow = False
    for done in range(_MOST):
        for turn in order:
            if not slow:
                time.sleep(_REST_S)
            turn.found.append(tuple(turn.block(1 if slow else 2, not slow)))
        slow = max(turn.found[0][0] for turn in turns) > _LONG_US
        order = order[::-1]
        if time.monotonic() > end and done + 1 >= _FEWEST:
            return
