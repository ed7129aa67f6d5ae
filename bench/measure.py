"""Interleaved measurement: every side in a process of its own, a block each in every round."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from ..targets.child import Child, ChildCrashed, ChildFailed, ChildTimeout
from .machine import here
from .result import Case, NoBaseline, Result, Samples, Status
from .suite import CaseSpec, Suite
from .tree import Tree

WORKER = "expertile_bench_worker"
_FOLDER = Path(__file__).resolve().parent / "worker"
PREPARE_S, BLOCK_S = 600.0, 120.0    # a first compile takes tens of seconds; a hang costs this much
SAMPLE_US = 1000.0
_NO_LIMIT_GB = 65536.0               # an old base takes 0 for "nothing at all"


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int = 40
    block: int = 2                   # samples of a side in a round
    check: bool = True               # against the operator's reference, or the user's own check
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 3 or self.block < 1:
            raise ValueError(f"a run needs at least 3 rounds of 1 sample, got rounds={self.rounds}"
                             f" block={self.block}")


class Side:
    """One environment's process; what a case does to it is an answer, never an exception."""

    def __init__(self, name: str, tree: Tree, env: Mapping[str, str]):
        self.name, self.tree = name, tree
        path = [str(_FOLDER), *tree.path(), env.get("PYTHONPATH", "")]
        # Safe path: else every side would import what it can from the folder that we run in.
        self._child = Child(_NO_LIMIT_GB, tree.python, {
            "PYTHONPATH": os.pathsep.join(p for p in path if p), "PYTHONSAFEPATH": "1"})

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._child.abort()              # another thread may be waiting for it
        self._child.close()

    def call(self, job: str, timeout_s: float, **arguments: Any) -> Any:
        """A job's answer."""
        return self._child.call(f"{WORKER}:{job}", timeout_s, **arguments)

    def prepare(self, job: Mapping[str, Any], check: bool) -> dict[str, Any]:
        """Make a case ready in this environment."""
        try:
            answer: dict[str, Any] = self.call("prepare", PREPARE_S, case=dict(job), check=check)
            return answer
        except (ChildTimeout, ChildCrashed, ChildFailed) as e:
            self._child.close()          # a crash or a hang is this case's alone
            return {"status": "failed", "error": str(e)[-2000:]}


@dataclass
class _Row:
    """A case while it is measured."""

    spec: CaseSpec
    status: Status
    error: str
    said: dict[str, dict[str, Any]]
    samples: dict[str, Samples]
    inner: int = 1

    def case(self) -> Case:
        head = self.said["head"]
        return Case(
            self.spec.name, self.spec.group, self.status, self.samples, self.spec.shape,
            {s: said["config"] for s, said in self.said.items() if "config" in said},
            {s: said["answered_by"] for s, said in self.said.items() if "answered_by" in said},
            self.error, str(head.get("evidence", "L4 timed")), head.get("floor_us"),
            float(head.get("flops", 0)), float(head.get("bytes", 0)), self.inner)


def _status(said: Mapping[str, Mapping[str, Any]]) -> tuple[Status, str]:
    """Of a case, by what its sides say: head's fault is a failure, base's is no baseline."""
    for side, answer in said.items():
        if side.startswith("head") and answer["status"] != "ok":
            kind: Status = "wrong" if answer["status"] == "wrong" else "failed"
            return kind, f"{side}: {answer.get('error', '')}"
    for side, answer in said.items():
        if answer["status"] != "ok":
            return "new", f"{side} has no such case to compare with: {answer.get('error', '')}"
    return "ok", ""


def _rounds(sides: Sequence[Side], plan: Plan, inner: int, seed: int) -> dict[str, Samples]:
    """Blocks of all sides in every round, each second round in the reverse order."""
    found: dict[str, list[tuple[float, ...]]] = {s.name: [] for s in sides}
    order, shuffler = list(sides), random.Random(seed)
    for done in range(1, plan.rounds + 1):
        for side in order:
            found[side.name].append(tuple(side.call(
                "time_block", BLOCK_S, inner=inner, samples=plan.block)))
        order = order[::-1] if done % 2 else shuffler.sample(order, len(order))
    return {name: tuple(blocks) for name, blocks in found.items()}


def _measure_case(spec: CaseSpec, suite: Suite, sides: Sequence[Side], plan: Plan, seed: int
                  ) -> _Row:
    roots = {str(side.tree.root) for side in sides}
    said = {side.name: side.prepare(
        {**suite.job(spec, side.tree.root), "foreign": sorted(roots - {str(side.tree.root)})},
        plan.check and side.name == "head") for side in sides}
    status, error = _status(said)
    row = _Row(spec, status, error, said, {})
    if status == "wrong":
        return row
    meant = list(sides)
    if status != "ok":               # what has no counterpart is still timed alone
        meant = [s for s in sides if s.name.startswith("head")]
    if any(said[s.name]["status"] != "ok" for s in meant):
        return row
    try:
        row.inner = int(meant[0].call("calibrate", BLOCK_S, sample_us=SAMPLE_US))
        row.samples = _rounds(meant, plan, row.inner, seed)
    except (ChildTimeout, ChildCrashed, ChildFailed) as e:
        row.status, row.error = "failed", str(e)[-2000:]
    return row


def tool_version() -> str:
    """Ours, for the record."""
    try:
        return version("expertile")
    except PackageNotFoundError:
        return "unknown"


def measure(suite: Suite, trees: Mapping[str, Tree], plan: Plan, env: Mapping[str, str],
            command: str, done: Callable[[Case], None] = lambda case: None) -> Result:
    """Measure all cases on all sides: {"head": ..., "head_again": ...} and for a gate "base" ..."""
    with ExitStack() as stack:
        # They start beside each other. A child dies with the thread that started it, so the
        # threads stay until the sides are closed.
        threads = stack.enter_context(ThreadPoolExecutor(len(trees) + 1))
        sides = [stack.enter_context(Side(name, tree, env)) for name, tree in trees.items()]
        reference = stack.enter_context(Side("anchor", trees["head"], env))
        ready = threads.submit(reference.prepare, {"name": "anchor"}, False)
        about = dict(zip(trees, threads.map(lambda s: _describe(s, suite), sides), strict=True))
        ready.result()
        head = about["head"]
        if head["why_not"]:
            raise ValueError(f"{suite.device} cannot be timed on here: {head['why_not']}; for what "
                             "is only compiled use: expertile bench gate --static")
        cases, anchor = [], []
        inner = int(reference.call("calibrate", BLOCK_S, sample_us=SAMPLE_US))
        for number, spec in enumerate(suite.cases):
            row = _measure_case(spec, suite, sides, plan, plan.seed + number)
            anchor.append(tuple(reference.call("time_block", BLOCK_S, inner=inner, samples=5)))
            cases.append(row.case())
            done(cases[-1])
    return Result(
        here(head["device"], head["threads"]), {n: a["toolchain"] for n, a in about.items()},
        tuple(cases), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), tool_version(), command,
        {name: tree.revision for name, tree in trees.items()}, head["limits"],
        {"rounds": plan.rounds, "block": plan.block, "seed": plan.seed, "configs": suite.configs,
         "sample_us": SAMPLE_US}, tuple(anchor))


def _describe(side: Side, suite: Suite) -> dict[str, Any]:
    """An environment's target; one that cannot even be started is no baseline."""
    try:
        answer: dict[str, Any] = (
            {"why_not": None, "device": "wall clock", "threads": os.cpu_count() or 0, "limits": {},
             "toolchain": side.call("versions", PREPARE_S)}
            if all(c.file for c in suite.cases) else
            side.call("describe", PREPARE_S, device=suite.device, cache_dir=suite.cache_dir,
                      ops=sorted({c.group for c in suite.cases})))
        return answer
    except (ChildTimeout, ChildCrashed, ChildFailed) as e:
        message = f"the environment of {side.name} ({side.tree.revision}) does not start: {e}"
        if side.name.startswith("base"):
            raise NoBaseline(message) from e
        raise ValueError(message) from e
