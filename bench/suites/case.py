"""One case of a suite: ours, the peers and the floor, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...targets.child import Child, ChildCrashed, ChildFailed, ChildTimeout
from ..result import Case, Samples, Status
from . import jobs
from .points import BF16, F32, Point
from .runner import Runner, call

_BLOCK_S = 120.0
_SAMPLE_US, _LONG_US = 2000.0, 100_000.0
_FEWEST, _FEWEST_SLOW = 5, 3         # rounds of a case, whatever the time
_REST_S = 0.006                      # another process's idle threads spin for so long


@dataclass
class Turn:
    """One side of a case while it is measured."""

    name: str
    block: Callable[[int, bool], list[float]]        # samples, warm
    found: list[tuple[float, ...]] = field(default_factory=list)


def measure(runner: Runner, point: Point, seconds: float) -> Case:
    """One point; a child that dies costs this case alone."""
    start = time.monotonic()
    child, options = runner.ours[point.threads], runner.options
    runner.took[point.name] = took = {}
    try:
        made = call(child, jobs.prepare_ours, op=point.op, shapes=variants(point),
                    unit=options.unit(point.threads), cache_dir=options.cache_dir, db=options.db,
                    user_db=options.user_db, configs=options.configs)
        good = {n: m for n, m in made.items() if "error" not in m}
        error = "; ".join(f"{n}: {m['error']}" for n, m in made.items() if "error" in m)
        mine = {n: m for n, m in good.items() if n in point.shapes}
        if not mine:
            return _broken(point, error)
        took["ours"] = time.monotonic() - start
        turns = [Turn(n, side(child, n, m["first_us"])) for n, m in good.items()]
        turns += _peers(runner, point)
        first = next(iter(mine.values()))
        limit, share = runner.floor(point, first["flops"], first["bytes"])
        turns.append(Turn("floor", _floor(child, options.unit(point.threads), limit, share)))
        ready = time.monotonic()
        rounds(turns, seconds - (ready - start), options.rounds)
        took["rounds"] = time.monotonic() - ready
    except (ChildTimeout, ChildCrashed, ChildFailed) as e:
        for other in (child, runner.torch, runner.ggml):
            other.close()            # each starts anew with the next case
        runner.torch_is_held = False
        return _broken(point, f"{type(e).__name__}: {str(e)[-800:]}")
    return _finished(point, turns, mine, limit, error)


def variants(point: Point) -> dict[str, dict[str, Any]]:
    """All kernels of ours that a case needs."""
    return {n: dict(s) for n, s in (*point.shapes.items(), *point.beside.items())}


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


def side(child: Child, name: str, us: float) -> Callable[[int, bool], list[float]]:
    """Samples of a call that a child has ready and that takes about so long."""
    inner = max(1, min(1000, round(_SAMPLE_US / max(us, 1.0))))

    def block(samples: int, warm: bool) -> list[float]:
        found: list[float] = call(child, jobs.time_block, _BLOCK_S, side=name, inner=inner,
                                  samples=samples, warm=warm)
        return found

    return block


def _floor(child: Child, unit: str, limit: str, share: float
           ) -> Callable[[int, bool], list[float]]:
    """Samples of the limit's kernel, as the microseconds that this case's work would take it."""
    def block(samples: int, warm: bool) -> list[float]:
        found = call(child, jobs.time_limit, unit=unit, name=limit, samples=samples)
        return [us * share for us in found]

    return block


def _peers(runner: Runner, point: Point) -> list[Turn]:
    """The peers' fastest forms of this shape, ready."""
    found: list[Turn] = []
    probes: dict[str, Any] = {}
    start, took = time.monotonic(), runner.took[point.name]
    if point.peers:
        runner.hold_torch()
        answer = call(runner.torch, jobs.prepare_torch, op=point.op, shape=dict(point.shape),
                      threads=point.threads, dtypes=[F32, BF16],
                      compiled=point.row == "casts" and runner.options.compiled != "none"
                      or point.compiled and runner.options.compiled == "all")
        probes |= {**answer["probes"], **answer["failed"]}
        found += [Turn(n, side(runner.torch, n, answer["probes"][n])) for n in answer["best"]]
        took["torch"] = time.monotonic() - start
    if point.ggml and runner.has_ggml():
        with suppress(ChildCrashed):     # a library that aborts is a peer that is not there
            answer = call(runner.ggml, jobs.prepare_ggml, op=point.op, shape=dict(point.shape),
                          threads=point.threads, kind=point.ggml)
            probes |= {**answer["probes"], **answer["failed"]}
            found += [Turn(n, side(runner.ggml, n, answer["probes"][n]))
                      for n in answer["best"]]
        took["ggml"] = time.monotonic() - start - took.get("torch", 0.0)
    runner.probes[point.name] = probes
    return found


def rounds(turns: Sequence[Turn], seconds: float, most: int) -> None:
    """Blocks of all sides in every round, each second round in the reverse order."""
    end = time.monotonic() + seconds
    order = list(turns)
    slow = False
    for done in range(most):
        for turn in order:
            if not slow:
                time.sleep(_REST_S)
            turn.found.append(tuple(turn.block(1 if slow else 2, not slow)))
        slow = max(turn.found[0][0] for turn in turns) > _LONG_US
        order = order[::-1]
        if time.monotonic() > end and done + 1 >= (_FEWEST_SLOW if slow else _FEWEST):
            return
