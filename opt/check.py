"""Which configs of a model's operators a device accepts, found without running them."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..ops import has_lowering, names
from ..ops import load as load_op
from ..ops.models import TINY_LOAD, Load, ModelDims
from ..ops.space import Config
from ..ops.spec import Operator, Shape
from ..targets.base import BuildError, Evidence, Examined, Target
from .pool import Pool

MOST_CONFIGS = 8                     # examined until one is legal and does not spill


@dataclass(frozen=True)
class Checked:
    """The verdict on one kernel: the first clean config, or the best there is and why."""

    op: str
    shape: Shape
    config: Config | None            # None: nothing could be examined
    examined: Examined
    is_default: bool
    tried: int
    refused: tuple[tuple[Config, str], ...]      # configs before it, and what spoke against them
    gates: Mapping[str, str] = field(default_factory=dict)   # what else the target had to verify

    @property
    def ok(self) -> bool:
        """Whether there is a legal config without spills."""
        return self.config is not None and self.examined.legal and not self.examined.spill_bytes

    def to_json(self) -> dict[str, Any]:
        """Plain data for --json."""
        return {"op": self.op, "shape": dict(self.shape),
                "config": None if self.config is None else dict(self.config),
                "legal": self.examined.legal, "ok": self.ok, "reason": self.examined.reason,
                "warnings": list(self.examined.warnings), "spill_bytes": self.examined.spill_bytes,
                "evidence": self.examined.evidence, "modelled_us": self.examined.modelled_us,
                "is_default": self.is_default, "tried": self.tried,
                "refused": [{"config": dict(c), "why": why} for c, why in self.refused],
                "gates": dict(self.gates), "kernels": [dict(k) for k in self.examined.kernels]}


def kernels_of(model: ModelDims, wanted: Sequence[str] = (), load: Load | None = None,
               every: bool = False) -> list[tuple[Operator, Shape]]:
    """A model's shapes to check: all, or the first and the last of the ladder for each kernel."""
    tasks: list[tuple[Operator, Shape]] = []
    for name in wanted or names():
        op = load_op(name)
        shapes = op.shapes(model, load or (TINY_LOAD if model.name == "tiny" else Load()))
        ends: dict[str, Shape] = {}
        for shape in shapes:
            static = json.dumps(op.static_of(shape), sort_keys=True)
            ends.setdefault(static + "first", shape)
            ends[static + "last"] = shape
        unique = {json.dumps(dict(s), sort_keys=True): s
                  for s in (shapes if every else ends.values())}
        tasks += [(op, shape) for shape in unique.values()]
    return tasks


def check_shape(op: Operator, target: Target, shape: Shape) -> Checked:
    """The default config when it is legal and spills nothing, else the first such one."""
    if not has_lowering(op.name, target.lang):
        return _none(op, shape, f"{op.name} has no {target.lang} lowering", "L0 described")
    pool = Pool(target.space(op, shape))
    refused: list[tuple[Config, str]] = []
    best: tuple[Config, Examined] | None = None
    step = max(1, len(pool) // MOST_CONFIGS)     # the default, then all over the pool
    for tried, config in enumerate(pool.configs[::step][:MOST_CONFIGS], 1):
        try:
            examined = target.examine(op, shape, config)
        except BuildError as e:
            refused.append((config, f"{e.status}: {e}"))
            continue
        gates, wrong = _verified(target, op, shape, config) if examined.legal else ({}, "")
        if wrong:
            refused.append((config, wrong))
            continue
        if examined.legal and not examined.spill_bytes:
            return Checked(op.name, shape, config, examined, tried == 1, tried, tuple(refused),
                           gates)
        if examined.legal and (best is None or examined.spill_bytes < best[1].spill_bytes):
            best = config, examined
        refused.append((config, examined.reason or "; ".join(examined.warnings)))
    if best is None:
        why = refused[0][1]
        return _none(op, shape, f"none of {len(refused)} configs compiles to a legal kernel; the "
                                f"default: {why}", "L1 lowered", tuple(refused))
    return Checked(op.name, shape, *best, best[0] == pool.configs[0], len(refused), tuple(refused))


def _verified(target: Target, op: Operator, shape: Shape, config: Config
              ) -> tuple[Mapping[str, str], str]:
    """What a target's own gates say, for one that has some, and what is wrong by them."""
    verify = getattr(target, "verify", None)
    if verify is None:
        return {}, ""
    verified = verify(op, shape, config)
    return verified.gates, verified.wrong


def _none(op: Operator, shape: Shape, why: str, evidence: Evidence,
          refused: tuple[tuple[Config, str], ...] = ()) -> Checked:
    return Checked(op.name, shape, None, Examined(False, why, evidence), False, len(refused),
                   refused)


def check_many(tasks: Sequence[tuple[Operator, Shape]], target: Target, workers: int,
               done: Callable[[Checked], None]) -> list[Checked]:
    """Check shapes with several compilers at once; `done` is told of each. Results in order."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(len(tasks)):
        waiting.put(i)
    results: dict[int, Checked] = {}

    def work() -> None:              # one thread a compiler: its child lives as long as it does
        for i in _taken(waiting):
            results[i] = check_shape(tasks[i][0], target, tasks[i][1])
            done(results[i])

    with ThreadPoolExecutor(workers) as threads:
        for finished in [threads.submit(work) for _ in range(workers)]:
            finished.result()
    return [results[i] for i in range(len(tasks))]


def _taken(waiting: queue.SimpleQueue[int]) -> Iterator[int]:
    while True:
        try:
            yield waiting.get_nowait()
        except queue.Empty:
            return
