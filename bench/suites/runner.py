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
from ...targets.cpu.levels import host_arch
from ...targets.cpu.pages import ENVIRONMENT
from ..machine import here
from ..measure import tool_version
from ..result import Case, Result
from ..worker.expertile_bench_worker import versions
from . import jobs, levels, limits
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
    arch: str = field(default_factory=host_arch)
    rounds: int = 30                 # of a case, at most

    def unit(self, threads: int) -> str:
        """Our target at a thread count, in a form that a job can take."""
        return f"{self.arch}:{threads}"


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
    torch_is_held: bool = False      # False when its process is new
    took: dict[str, dict[str, float]] = field(default_factory=dict)  # seconds of a case's parts
    interrupted: bool = False
    earlier: Result | None = None    # a run that this one goes on with

    def open(self, stack: ExitStack) -> None:
        """Start our children and measure limits; a peer's child starts with its first job."""
        arch = self.options.arch
        self.torch = Child(0, env={**levels.environment(arch), **ENVIRONMENT})
        self.ggml = Child(0, env=ENVIRONMENT)
        self.about["memory of all"] = "large pages asked for: " + ENVIRONMENT["GLIBC_TUNABLES"]
        for child in (self.torch, self.ggml):
            stack.callback(child.close)
        for threads in self.options.threads:
            self.ours[threads] = child = Child(0, env=ENVIRONMENT)
            stack.callback(child.close)
            self.amounts[threads] = call(child, jobs.describe_limits,
                                         unit=self.options.unit(threads))
            self.limits[threads] = {name: self._limit(threads, name)
                                    for name in self.amounts[threads]}
            told = ", ".join(f"{n} {v:.1f}" for n, v in self.limits[threads].items())
            self.say(f"limits of {threads} thread{'s' if threads > 1 else ''}: {told}")

    def has_ggml(self) -> bool:
        """Whether there is a ggml library; asked once, when a case wants one."""
        if "ggml" not in self.about and "ggml" not in self.missing:
            try:
                self.about |= call(self.ggml, jobs.describe_ggml)
            except (ChildFailed, ChildCrashed) as e:
                self.missing["ggml"] = str(e)[-200:]
                self.say(f"without ggml: {self.missing['ggml']}")
        return "ggml" not in self.missing

    def hold_torch(self) -> None:
        """Make sure that torch's process is of our kernels' level."""
        if self.torch_is_held:
            return
        arch = self.options.arch
        told = call(self.torch, jobs.hold_torch, arch=arch,
                    compiles=self.options.compiled != "none")
        if why := levels.disobeys(arch, told):
            raise ValueError(f"{why}; its times would not be those of {arch}")
        self.about |= told
        self.torch_is_held = True

    def _limit(self, threads: int, name: str) -> float:
        """The best of several medians: on a shared machine some are disturbed."""
        medians = []
        for _ in range(_LIMIT_TRIES):
            found = call(self.ours[threads], jobs.time_limit, unit=self.options.unit(threads),
                         name=name, samples=9)
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
    """The result object of a suite; what an earlier run alone knows of its cases is kept."""
    options = runner.options
    most = max(options.threads)
    target = cpu_target(options.unit(most))
    tools = {**versions(), **target.toolchain(), **runner.about}
    known: dict[str, Any] = dict(runner.earlier.settings) if runner.earlier else {}
    series = {p.name: {"series": p.series, "tokens": p.tokens, "ctx": p.ctx, "experts": p.experts,
                       "threads": p.threads} for p in points if p.series}
    found = {f"{name}, {t} threads": v for t in options.threads
             for name, v in runner.limits.get(t, {}).items()}
    if runner.earlier is not None:   # a limit is what the machine did when nobody disturbed it
        for name, value in runner.earlier.limits.items():
            found[name] = max(value, found.get(name, 0.0))
    for name, limit in (("bandwidth", limits.READ), ("flops", limits.FMA)):
        if f"{limit}, {most} threads" in found:
            found[name] = found[f"{limit}, {most} threads"]
    threads = sorted({*options.threads, *known.get("threads", ())})
    return Result(
        here(target.device, most), {"head": tools}, cases,
        datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), tool_version(), command, {}, found,
        {"suite": suite, "threads": threads, "configs": options.configs, "arch": options.arch,
         "host arch": host_arch(), "missing": runner.missing, "skipped": list(skipped),
         "interrupted": runner.interrupted, "took": {**known.get("took", {}), **runner.took},
         "probes": {**known.get("probes", {}), **runner.probes},
         "series": {**known.get("series", {}), **series}})
