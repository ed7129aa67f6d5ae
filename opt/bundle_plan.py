"""The plan of a tune for a device that is not here: candidates compiled, judged and packed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from ..ops.routing import Routing
from ..ops.source import source_hash
from ..ops.space import Config, config_text
from ..ops.spec import Operator, Shape
from ..targets.base import Target
from ..targets.child import Child, ChildCrashed, ChildFailed, ChildTimeout
from ..targets.examination import BUILD_TIMEOUT_S
from ..tuning_db.store import TuningDB
from . import bundle_compile
from .budget import Budget, Guard
from .bundle import BundleError, Candidate, For, Manifest, Planned
from .bundle_file import write
from .job import Job, Method
from .outcome import Event, Progress
from .pool import Pool
from .provenance import machine, tool_version
from .search import Name, Search
from .seeds import seeds
from .workers import CPU_BUILDERS, MOST_BUILDERS, Workers


@dataclass(frozen=True)
class Plan:
    """What is to be planned."""

    tasks: Sequence[tuple[Operator, Shape]]
    asked: str                       # the device as the user named it
    budget: Budget
    seed: int = 0
    sampler: Name = "auto"
    routing: Routing = Routing()
    command: str = ""

    def identity(self, target: Target) -> str:
        """Names what is being planned: the same command, killed, goes on where it stopped."""
        told = [asdict(For.of(target, self.asked)), self.seed, self.sampler,
                self.routing.to_json(), asdict(self.budget),
                [[op.name, dict(shape), source_hash(op.name, target.lang)]
                 for op, shape in self.tasks]]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


def plan_bundle(plan: Plan, load: Callable[[Path], Target], db: TuningDB, scratch: Path, out: Path,
                progress: Progress = lambda event: None, guard: Guard | None = None) -> Manifest:
    """Compile candidates of each task for a device, and pack them into the bundle `out`.

    Args:
        db: what gives a search configs to begin with, as in a tune; nothing is stored.
        load: makes the target with its caches below a folder.
        scratch: where that folder is made; it stays there while the plan is not finished.

    Raises:
        BundleError: not one candidate of any shape is legal; nothing is written then.
    """
    folder = scratch / plan.identity(load(scratch))
    target = load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shapes: list[Planned] = []
    start = time.monotonic()
    with Compilers(target, guard or Guard()) as compilers:
        for i, (op, shape) in enumerate(plan.tasks):
            seconds = None
            if plan.budget.seconds is not None:
                left = max(0.0, start + plan.budget.seconds - time.monotonic())
                seconds = left / (len(plan.tasks) - i)
            shapes.append(_Shape(plan, target, op, shape, i, progress, compilers, seconds,
                                 _seeds(plan, target, op, shape, db)).done())
    if not any(p.wanted for p in shapes):
        bad = shapes[0].candidates[0]
        raise BundleError(f"not one config can be compiled for {target.arch}, so there is nothing "
                          f"to run; the first one: {bad.status}: {bad.reason}")
    made = write(out, Manifest(
        datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), tool_version(), machine(), plan.command,
        For.of(target, plan.asked), plan.seed, plan.budget.share(len(plan.tasks)),
        plan.routing.to_json(), tuple(shapes), {}), folder)
    shutil.rmtree(folder, ignore_errors=True)
    return made


def _seeds(plan: Plan, target: Target, op: Operator, shape: Shape, db: TuningDB) -> list[Config]:
    """What a tune of this shape would begin with."""
    with Workers(Guard(), target) as idle:
        return seeds(Job(op, target, shape, db, idle, plan.budget.share(1), plan.budget.trials,
                         plan.budget.seconds, plan.seed, plan.command, lambda event: None, 0, 1,
                         Method(plan.sampler, routing=plan.routing)))


class Compilers:
    """Child processes that compile, each with a thread of its own."""

    def __init__(self, target: Target, guard: Guard):
        self._target, self._guard = target, guard
        on_cpu = target.torch_device == "cpu"
        self.count = (CPU_BUILDERS if on_cpu else
                      min(MOST_BUILDERS, max(2, (os.cpu_count() or 2) // 2)))
        self._threads = ThreadPoolExecutor(self.count)
        self._mine = threading.local()   # a child dies with the thread that started it
        self._children: list[Child] = []

    def __enter__(self) -> Compilers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for child in self._children:
            child.abort()
        self._threads.shutdown(cancel_futures=True)
        for child in self._children:
            child.close()

    def compile(self, op: Operator, shape: Shape, configs: Sequence[Config]) -> list[Candidate]:
        """The i-th answer is the i-th config's; whatever happens to a child is one."""
        return list(self._threads.map(lambda c: self._one(op, shape, c), configs))

    def _one(self, op: Operator, shape: Shape, config: Config) -> Candidate:
        child: Child | None = getattr(self._mine, "child", None)
        if child is None:
            child = self._mine.child = self._target.worker(self._guard.memory_gb("build"))
            self._children.append(child)
        verdict = self._target.legal(op, shape, config)
        if not verdict.legal:
            return Candidate(dict(config), "illegal", verdict.reason, "L0 described")
        try:
            said = child.call(
                f"{bundle_compile.__name__}:compile_planned", BUILD_TIMEOUT_S,
                recipe=self._target.recipe(), op=op.name, shape=dict(shape), config=dict(config))
        except ChildTimeout as e:
            return Candidate(dict(config), "timeout", str(e), "L0 described")
        except (ChildCrashed, ChildFailed) as e:
            no_memory = isinstance(e, ChildFailed) and e.kind == "MemoryError"
            return Candidate(dict(config), "oom" if no_memory else "build_error", str(e),
                             "L0 described")
        return _judged(dict(config), said)


def _judged(config: Config, said: dict[str, Any]) -> Candidate:
    """What the child said, as a candidate."""
    if said["status"] != "ok":
        return Candidate(config, said["status"], said["reason"], "L0 described")
    seen = said["examined"]
    spills = seen["spill_bytes"]
    made = Candidate(config, "ok", "", seen["evidence"], seen["modelled_us"], spills,
                     tuple(seen["warnings"]), tuple(seen["kernels"]))
    if not seen["legal"]:
        return replace(made, status="illegal", reason=seen["reason"])
    if spills:
        return replace(made, status="spills", reason=f"spills {spills} bytes a thread")
    return made


@dataclass
class _Shape:
    """The plan of one shape."""

    plan: Plan
    target: Target
    op: Operator
    shape: Shape
    index: int
    progress: Progress
    compilers: Compilers
    seconds: float | None
    seeds: Sequence[Config]
    found: list[Candidate] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def done(self) -> Planned:
        """Compile what the search proposes: the default, seeds, random ones, what a model likes."""
        pool = Pool(self.target.space(self.op, self.shape))
        trials = self.plan.budget.trials
        limit = min(len(pool), trials or len(pool))
        self._say("shape", limit)
        self._try(pool, None, [pool.configs[0]])
        has_model = self.found[0].modelled_us is not None
        sampler = self.plan.sampler
        if sampler == "auto" and not has_model:  # nothing to learn from: the pool in random order
            sampler = "random"
        search = Search(pool, self.plan.seed, self.seeds, sampler, trials)
        _tell(search, self.found[0], self.found[0])
        while len(self.found) < limit and self._left() > 0:
            batch: list[Config] = []
            while len(batch) < min(2 * self.compilers.count, limit - len(self.found)):
                if (config := search.ask()) is None:
                    break
                if config_text(config) != config_text(pool.configs[0]):
                    batch.append(config)
            if not batch:
                break
            self._try(pool, search, batch)
        self._say("done", limit)
        return Planned(self.op.name, dict(self.shape), source_hash(self.op.name, self.target.lang),
                       len(pool), tuple(self.found))

    def _try(self, pool: Pool, search: Search | None, batch: Sequence[Config]) -> None:
        for made in self.compilers.compile(self.op, self.shape, batch):
            self.found.append(made)
            if search is not None:
                _tell(search, made, self.found[0])
            self._say("trial", min(len(pool), self.plan.budget.trials or len(pool)), made.status)

    def _left(self) -> float:
        if self.seconds is None:
            return 1.0
        return self.started + self.seconds - time.monotonic()

    def _say(self, kind: Any, of: int, status: str = "") -> None:
        times = [c.modelled_us for c in self.found if c.modelled_us and c.status == "ok"]
        default = self.found[0].modelled_us if self.found else None
        self.progress(Event(kind, self.index, len(self.plan.tasks), self.op.name, self.shape,
                            len(self.found), of, status, None, min(times, default=None), default,
                            None if self.seconds is None else max(0.0, self._left())))


def _tell(search: Search, made: Candidate, default: Candidate) -> None:
    """The model's time over the default's, where it has one: what a search can learn from."""
    ratio = None
    if made.status in ("ok", "spills") and made.modelled_us and default.modelled_us:
        ratio = math.log(made.modelled_us / default.modelled_us)
    search.tell(made.config, ratio)
