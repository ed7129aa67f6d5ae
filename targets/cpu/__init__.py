"""CPUs through TVM: describe this one, compile for it, time on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from os import sched_getaffinity
from pathlib import Path
from shutil import which

from ...ops.space import Config
from ...ops.spec import Operator, Shape
from ..base import Artifact, Evidence, Examined, Figure, FromLowering, Recipe, Verdict
from ..child import Child
from . import artifacts, pages
from . import limits as measured
from .levels import LEVELS, Level, host_arch


@cache
def _tvm_version() -> str:
    try:
        return version("apache-tvm")
    except PackageNotFoundError:
        return "absent"


@dataclass(frozen=True)
class CpuTarget(FromLowering):
    """A CPU with a number of threads. Kernels are cached on disk below `cache_dir`."""

    threads: int
    cache_dir: Path
    arch: str = field(default_factory=host_arch)
    name: str = "cpu"
    lang: str = "tvm"
    torch_device: str = "cpu"
    aliases: tuple[str, ...] = ()
    computes: bool = True
    isolate: bool = True             # compile in a child process; False: this is one already

    @property
    def device(self) -> str:
        """Feature level and threads: what a record's validity depends on."""
        return f"{self.arch}-t{self.threads}"

    @property
    def level(self) -> Level:
        """What compilers may assume."""
        return LEVELS[self.arch]

    @property
    def lanes(self) -> int:
        """float32 lanes of one vector register."""
        return self.level.lanes

    @property
    def dots(self) -> tuple[str, ...]:
        """The dot-product instructions at hand: vnni, bf16, amx, sdot."""
        return self.level.dots

    def toolchain(self) -> dict[str, str]:
        """Versions and flags that change the generated code."""
        return {"tvm": _tvm_version(), "mcpu": ",".join((self.level.mcpu, *self.level.mattr)),
                "disabled_passes": ",".join(artifacts.DISABLED_PASSES)}

    def available(self) -> str | None:
        """None, or why kernels cannot be built here and what to do about it."""
        if find_spec("tvm") is None:
            return "TVM is not installed; run: pip install 'expertile[cpu]'"
        if not (which("c++") or which("g++") or which("clang++")):
            return "no C++ compiler links kernels; install one, for example: apt-get install g++"
        if not self.level.runs_here():
            return f"this machine is {host_arch()}, not {self.arch}"
        return None

    def evidence(self) -> Evidence:
        """Timed here when this machine is of that arch, else native objects only."""
        if find_spec("tvm") is None:
            return "L0 described"
        return "L4 timed" if self.available() is None else "L2 native object"

    def limits(self) -> Mapping[str, Figure]:
        """Measured read bandwidth and FMA peak of this machine at this thread count."""
        return measured.load_or_measure(self)

    def legal(self, op: Operator, shape: Shape, config: Config) -> Verdict:
        """A CPU config is legal when it belongs to its space."""
        why = self.space(op, shape).why_not(config)
        return Verdict(why is None, why or "")

    def compile(self, op_name: str, static: Shape, config: Config) -> Artifact:
        """The compiled functions of a config: from the disk cache, else built in a child."""
        return artifacts.load_or_build(self, op_name, static, config)

    def compile_here(self, op: Operator, shape: Shape, config: Config) -> Examined:
        """Put a config's artifacts into the disk cache, compiling in this very process."""
        return replace(self, isolate=False).examine(op, shape, config)

    def examine(self, op: Operator, shape: Shape, config: Config) -> Examined:
        """Whether the config compiles; the compiler's failure is a BuildError."""
        verdict = self.legal(op, shape, config)
        if not verdict.legal:
            return Examined(False, verdict.reason, "L0 described")
        self.build_kernel(op, shape, config)
        return Examined(True, "", "L2 native object")

    def worker(self, memory_gb: float) -> Child:
        """A process of this very interpreter, in large pages."""
        return Child(memory_gb, env=pages.ENVIRONMENT)

    def recipe(self) -> Recipe:
        """How a child process makes this target again."""
        return (f"{__name__}:target", {"unit": f"{self.arch}:{self.threads}",
                                       "cache_dir": str(self.cache_dir)})

    def time_us(self, fn: Callable[[], object], inner: int) -> float:
        """Wall time of one of `inner` calls in a row, in microseconds."""
        start = time.perf_counter_ns()
        for _ in range(inner):
            fn()
        return (time.perf_counter_ns() - start) / inner / 1e3


def knows(device: str) -> bool:
    """Whether a bare name is a feature level, perhaps with threads: "aarch64-dotprod:4"."""
    return device.partition(":")[0] in LEVELS


def target(unit: str = "", cache_dir: str | Path | None = None, arch: str | None = None,
           emulate: bool = False) -> CpuTarget:
    """This CPU, or a feature level to compile for.

    Args:
        unit: a thread count ("2"), a level ("x86-avx2"), or both ("aarch64-dotprod:4"); by default
            this machine's level and all the threads that the process may use.
        cache_dir: where compiled kernels are kept.
        arch: the level, instead of in `unit`.
        emulate: run what is compiled for another machine under qemu: for numbers, not for times.
    """
    if cache_dir is None:
        from platformdirs import user_cache_path

        cache_dir = user_cache_path("expertile")
    level, _, count = unit.rpartition(":")
    if count in LEVELS:
        level, count = count, ""
    arch = arch or level or host_arch()
    if arch not in LEVELS:
        raise ValueError(f"unknown CPU level {arch!r}; there are {', '.join(LEVELS)}")
    threads = int(count) if count.isdigit() else 0
    if count and not threads:
        raise ValueError(f"cpu:N takes a number of threads N >= 1, cpu:LEVEL one of "
                         f"{', '.join(LEVELS)}, got 'cpu:{unit}'")
    made = threads or len(sched_getaffinity(0)), Path(cache_dir), arch
    if emulate:
        from .emulated import EmulatedCpu

        return EmulatedCpu(*made)
    return CpuTarget(*made)
