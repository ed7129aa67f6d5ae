"""The stages of a GPU run. Each appends rows to one JSONL file and skips what stands there."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from ... import ops
from ...ops.spec import Operator, Shape
from ...opt.session import Site
from ...targets.base import Target
from ...targets.child import ChildCrashed, ChildFailed, ChildTimeout
from . import jobs
from .cases import TIMED, Case

CONFIGS_CHECKED = 6                  # of each odd shape, the default among them
CONFIGS_TIMED = 24                   # of each case, best modelled first
CONFIGS_CORRELATED = 40
JOB_S = 60.0                         # a hang costs this much
PREPARE_S = 300.0                    # inputs and references of a large case are made once


class Rows:
    """A JSONL file of results; what has a key is not measured again."""

    def __init__(self, path: Path):
        self._path = path
        self._done: dict[str, dict[str, Any]] = {}
        with suppress(FileNotFoundError):
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self._done[row["key"]] = row

    def get(self, key: str) -> dict[str, Any] | None:
        """The row of a key, or None."""
        return self._done.get(key)

    def add(self, key: str, **row: Any) -> None:
        """Append a row, at once on disk and on the screen."""
        self._done[key] = {"key": key, **row}
        with self._path.open("a") as file:
            file.write(json.dumps(self._done[key]) + "\n")
        print(json.dumps(self._done[key])[:240], flush=True)


class Runner:
    """Runs jobs in a child that may die, until the stage's time is over."""

    def __init__(self, target: Target, rows: Rows, seconds: float):
        self.target, self.rows = target, rows
        self._end = time.monotonic() + seconds
        self._child = target.worker(memory_gb=0)

    @property
    def over(self) -> bool:
        """Whether the stage's time is used up; run it again to go on."""
        return time.monotonic() > self._end

    def site(self, op: Operator, shape: Shape) -> dict[str, Any]:
        """A job's site."""
        return Site(self.target.recipe(), op.name, dict(shape), 0).to_json()

    def call(self, job: Callable[..., Any], seconds: float, **arguments: Any) -> Any:
        """A job's answer; a hang, a crash or an exception is {"error": ...}."""
        try:
            return self._child.call(f"{jobs.__name__}:{job.__name__}", seconds, **arguments)
        except (ChildTimeout, ChildCrashed, ChildFailed) as e:
            self._child.close()          # a fault leaves a CUDA context useless
            return {"error": f"{type(e).__name__}: {str(e)[-600:]}"}

    def close(self) -> None:
        """End the child."""
        self._child.close()


def describe(run: Runner) -> None:
    """Device, versions, measured ceilings."""
    run.rows.add("describe", **run.call(jobs.describe, PREPARE_S, recipe=run.target.recipe()))


def numerics(run: Runner) -> None:
    """Every operator on every adversarial case, natively: default and drawn configs."""
    for name in ops.names():
        op = ops.load(name)
        for shape in op.odd_shapes:
            site = run.site(op, shape)
            chosen = run.call(jobs.configs, JOB_S, site=site, count=CONFIGS_CHECKED - 1, seed=1)
            for config in chosen if isinstance(chosen, list) else [chosen]:
                key = f"numerics {name} {json.dumps([dict(shape), config])}"
                if run.rows.get(key):
                    continue
                if run.over:
                    return
                why = (run.call(jobs.check, JOB_S, site=site, config=config)
                       if "error" not in config else config)
                run.rows.add(key, op=name, shape=dict(shape), config=config, wrong=why)


def timed(run: Runner, make: Callable[[], Iterator[Case]]) -> None:
    """Default and best-modelled configs of each case, torch's answers, percent of the floor."""
    measured = (run.rows.get("describe") or {}).get("measured", {})
    for case in make():
        if run.rows.get(case.key):
            continue
        if run.over:
            return
        site = run.site(case.op, case.shape)
        default, *others = _ranked(run, site)
        wrong = run.call(jobs.check, PREPARE_S, site=site, config=default)
        found = []
        for config in [default, *others]:
            us = run.call(jobs.time_config, JOB_S, site=site, config=config)
            found.append({"config": config, "us": us})
        right = [f for f in found if isinstance(f["us"], float)]
        best = min(right, key=lambda f: f["us"], default=None)
        if best and best["config"] != default:
            best["wrong"] = run.call(jobs.check, JOB_S, site=site, config=best["config"])
        work = case.op.work(case.shape)
        run.rows.add(
            case.key, op=case.op.name, shape=dict(case.shape), default=found[0], wrong=wrong,
            best=best, tried=found, floor_us=_floor(work.flops, work.bytes, measured),
            flops=work.flops, bytes=work.bytes,
            peers=run.call(jobs.time_peers, PREPARE_S, site=site))


def _ranked(run: Runner, site: dict[str, Any]) -> list[dict[str, Any]]:
    """The default, then legal configs without spills, best modelled first."""
    chosen = run.call(jobs.configs, JOB_S, site=site, count=4 * CONFIGS_TIMED, seed=2)
    seen = [(c, run.call(jobs.modelled, JOB_S, site=site, config=c)) for c in chosen[1:]]
    good = [(m["modelled_us"] or 0.0, i, c) for i, (c, m) in enumerate(seen)
            if m.get("legal") and not m["spill_bytes"]]
    return [chosen[0], *(c for _, _, c in sorted(good)[:CONFIGS_TIMED])]


def _floor(flops: float, moved: float, measured: dict[str, float]) -> float | None:
    times = [amount / measured[name] / 1e3 for name, amount in (("bandwidth", moved),
                                                                ("flops", flops))
             if name in measured]
    return max(times, default=None)


def correlate(run: Runner) -> None:
    """Whether the static ranking means anything: rank correlation of modelled and timed."""
    for case in itertools.islice(TIMED["gemm"](), 10, 13):
        key, site = f"correlate {case.key}", run.site(case.op, case.shape)
        if run.rows.get(key) or run.over:
            continue
        pairs = []
        for config in run.call(jobs.configs, JOB_S, site=site, count=CONFIGS_CORRELATED, seed=3):
            seen = run.call(jobs.modelled, JOB_S, site=site, config=config)
            us = run.call(jobs.time_config, JOB_S, site=site, config=config)
            if seen.get("modelled_us") and isinstance(us, float):
                pairs.append((seen["modelled_us"], us, seen["spill_bytes"]))
        rank = spearmanr([p[0] for p in pairs], [p[1] for p in pairs]) if len(pairs) > 2 else None
        run.rows.add(key, pairs=pairs, spearman=rank and float(rank.statistic))
