"""The processes of a suite's run, what is known of the machine, and the result object."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ...targets.child import Child, ChildCrashed, ChildFailed
from ...targets.cpu import target as cpu_target
from ..machine import here
from ..measure import tool_version
from ..result import Case, Result
from ..worker.expertile_bench_worker import versions
from . import jobs, limits
from .points import Point

_PREPARE_S = 300.0
_LIMIT_TRIES = 4


@dataclass(frozen=True)
class Options:
    """How a suite is run."""

    threads: tuple[int, ...] = (1, 2)
    seconds: float = 1080.0
    cache_dir: str = ""
    configs: str = "recorded"
    db: str | None = None
    user_db: str | None = None
    compiled: str = "all"            # where torch.compile is a peer: "all", "casts" or "none"


@dataclass
class Runner:
    """The processes of a run, and what is known of the machine."""

    options: Options
    say: Callable[[str], None]
    missing: dict[str, str] = field(default_factory=dict)
    limits: dict[int, dict[str, float]] = field(default_factory=dict)    # GB/s, GFLOP/s
    amounts: dict[int, dict[str, float]] = field(default_factory=dict)
    ours: dict[int, Child] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    torch: Child = field(default_factory=lambda: Child(0))
    ggml: Child = field(default_factory=lambda: Child(0))
    about: dict[str, str] = field(default_factory=dict)

    def open(self, stack: ExitStack) -> None:
        """Start children, measure limits, see which peers there are."""
        for child in (self.torch, self.ggml):
            stack.callback(child.close)
        for threads in self.options.threads:
            self.ours[threads] = child = Child(0)
            stack.callback(child.close)
            self.amounts[threads] = call(child, jobs.describe_limits, threads=threads)
            self.limits[threads] = {name: self._limit(threads, name)
                                    for name in self.amounts[threads]}
            told = ", ".join(f"{n} {v:.1f}" for n, v in self.limits[threads].items())
            self.say(f"limits of {threads} thread{'s' if threads > 1 else ''}: {told}")
        try:
            self.about = call(self.ggml, jobs.describe_ggml)
        except (ChildFailed, ChildCrashed) as e:
            self.missing["ggml"] = str(e)[-200:]
            self.say(f"without ggml: {self.missing['ggml']}")

    def _limit(self, threads: int, name: str) -> float:
        """The best of several medians: on a shared machine some are disturbed."""
        medians = []
        for _ in range(_LIMIT_TRIES):
            found = call(self.ours[threads], jobs.time_limit, threads=threads, name=name,
                         samples=9)
            medians.append(statistics.median(found))
        return float(self.amounts[threads][name] / min(medians) / 1e3)

    def floor(self, point: Point, flops: float, moved: float) -> tuple[str, float]:
        """The limit that binds a case, and how many calls of its kernel are as much work."""
        known = self.limits[point.threads]
        if point.limit == "copy":
            name = max((limits.COPY, limits.TORCH_COPY), key=known.__getitem__)
            return name, moved / self.amounts[point.threads][name]
        name = (limits.READ if moved / known[limits.READ] > flops / known[limits.FMA]
                else limits.FMA)
        return name, (moved if name == limits.READ else flops) / self.amounts[point.threads][name]


def call(child: Child, job: Callable[..., Any], seconds: float = _PREPARE_S, **arguments: Any
         ) -> Any:
    """A job's answer."""
    return child.call(f"{jobs.__name__}:{job.__name__}", seconds, **arguments)


def result(runner: Runner, cases: tuple[Case, ...], command: str, suite: str,
           skipped: Sequence[str], points: Sequence[Point]) -> Result:
    """The result object of a suite."""
    options = runner.options
    most = max(options.threads)
    target = cpu_target(str(most))
    tools = {**versions(), **target.toolchain(), **runner.about}
    series = {p.name: {"series": p.series, "tokens": p.tokens, "ctx": p.ctx, "experts": p.experts,
                       "threads": p.threads} for p in points if p.series}
    found = {f"{name}, {t} threads": v for t in options.threads
             for name, v in runner.limits[t].items()}
    return Result(
        here(target.device, most), {"head": tools}, cases,
        datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), tool_version(), command, {},
        {"bandwidth": runner.limits[most][limits.READ], "flops": runner.limits[most][limits.FMA],
         **found},
        {"suite": suite, "threads": list(options.threads), "configs": options.configs,
         "missing": runner.missing, "skipped": list(skipped), "probes": runner.probes,
         "series": series})
