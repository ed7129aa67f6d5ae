"""What a target is: a device description, a compiler for it, and a clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..ops import lowering
from ..ops.space import Config, Space
from ..ops.spec import Kernel, Operator, Shape
from .child import Child

# Never rounded up; printed wherever a result is shown.
Evidence = Literal["L0 described", "L1 lowered", "L2 native object", "L3 executed and checked",
                   "L4 timed"]


class BuildError(Exception):
    """A config could not be compiled. `status` is how a record names the reason."""

    def __init__(self, message: str,
                 status: Literal["build_error", "illegal", "timeout", "oom"]):
        super().__init__(message)
        self.status = status


class RunFailed(Exception):
    """A kernel's own word on how its run went wrong; only the replay target has reason to."""

    def __init__(self, message: str, status: Literal["wrong", "illegal", "run_error", "timeout",
                                                     "oom"]):
        super().__init__(message)
        self.status = status


# How a child process makes a target again: "package.module:function" and its JSON arguments.
Recipe = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Figure:
    """A limit or a peak of a device, and how far it can be trusted."""

    value: float
    unit: str
    source: str                      # "measured 2026-11-22 ...", "vendor data sheet ...", ...
    confidence: Literal["measured", "documented", "reported"]


@dataclass(frozen=True)
class Verdict:
    """Whether a config may run on a device, with the rule and the numbers when not."""

    legal: bool
    reason: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Examined:
    """What compiling a config for a device shows without running it; plain JSON throughout."""

    legal: bool
    reason: str                      # why not, with the numbers; "" when legal
    evidence: Evidence               # of this examination: nothing ran
    warnings: tuple[str, ...] = ()   # legal, but slower than the config promises
    spill_bytes: int = 0             # of a thread, in the worst kernel
    modelled_us: float | None = None # for ordering only: never shown as a measured time
    kernels: tuple[Mapping[str, Any], ...] = ()  # of each launch: grid, registers, opcode hash ...


class Artifact(Protocol):
    """A compiled program: its functions by name."""

    def __getitem__(self, name: str) -> Callable[..., Any]: ...


class Lowering(Protocol):
    """The module ops/<op>/<lang>.py."""

    def space(self, target: Target, shape: Shape) -> Space: ...
    def build(self, target: Target, shape: Shape, config: Config) -> Kernel: ...


class Target(Protocol):
    """A device family member that operators are lowered to."""

    @property
    def name(self) -> str: ...                   # file or folder in targets/
    @property
    def lang(self) -> str: ...                   # "tvm" | "triton": which lowering it takes
    @property
    def arch(self) -> str: ...                   # "x86-avx2", "sm_90": names the shipped records
    @property
    def device(self) -> str: ...                 # capability fingerprint: part of the key
    @property
    def torch_device(self) -> str: ...           # where tensors must live: "cpu", "cuda"
    @property
    def aliases(self) -> tuple[str, ...]: ...    # marketing names that mean this device
    @property
    def computes(self) -> bool: ...              # its kernels write results, so they must be right

    def toolchain(self) -> dict[str, str]: ...   # versions that change the code: part of the key
    def surroundings(self) -> dict[str, str]: ...    # what else here moves the compiler's output
    def available(self) -> str | None: ...       # None, or why kernels cannot be built and run here
    def evidence(self) -> Evidence: ...          # the highest level reachable on this machine
    def limits(self) -> Mapping[str, Figure]: ...
    def legal(self, op: Operator, shape: Shape, config: Config) -> Verdict: ...
    def examine(self, op: Operator, shape: Shape, config: Config) -> Examined: ...
    def space(self, op: Operator, shape: Shape) -> Space: ...
    def build_kernel(self, op: Operator, shape: Shape, config: Config) -> Kernel: ...
    def compile_here(self, op: Operator, shape: Shape, config: Config) -> Examined: ...
    def recipe(self) -> Recipe: ...
    def worker(self, memory_gb: float) -> Child: ...     # a process that has its compiler
    def time_us(self, fn: Callable[[], object], inner: int) -> float: ...  # one sample, per call


class FromLowering:
    """The part of a target whose spaces and kernels come from ops/<op>/<lang>.py."""

    def space(self: Target, op: Operator, shape: Shape) -> Space:
        """The configs of an operator on this target."""
        made: Space = lowering(op.name, self.lang).space(self, shape)
        return made

    def surroundings(self) -> dict[str, str]:
        """Nothing beside the toolchain."""
        return {}

    def worker(self, memory_gb: float) -> Child:
        """A process of this very interpreter."""
        return Child(memory_gb)

    def build_kernel(self: Target, op: Operator, shape: Shape, config: Config) -> Kernel:
        """A config, compiled (or found compiled) and ready to be called."""
        kernel: Kernel = lowering(op.name, self.lang).build(self, shape, config)
        return kernel


class VectorTarget(Target, Protocol):
    """A CPU-like target: its lowerings compile ahead, and choose tiles from lanes and threads."""

    @property
    def lanes(self) -> int: ...                  # float32 lanes of a vector register
    @property
    def dots(self) -> tuple[str, ...]: ...       # dot products: vnni, bf16, amx, sdot
    @property
    def threads(self) -> int: ...

    def compile(self, op_name: str, static: Shape, config: Config) -> Artifact: ...


Fp8 = Literal["native", "fnuz", "bits"]


class GridTarget(Target, Protocol):
    """A GPU-like target: its lowerings launch kernels over a grid of programs.

    A lowering says `target.launch(kernel, grid, *args, num_warps=..., CONSTEXPR=...)`; whether that
    runs, is interpreted, or is only compiled and recorded is the target's affair. So a lowering's
    Python part must work on meta tensors: it never reads a tensor's data.
    """

    @property
    def fp8(self) -> Fp8: ...                    # e4m3fn in hardware, as fnuz, or as integer bits
    @property
    def warp_size(self) -> int: ...              # threads of a warp or wavefront
    @property
    def cores(self) -> int: ...                  # multiprocessors or compute units
    @property
    def shared_bytes(self) -> int: ...           # shared memory that one program may have
    @property
    def has_tma(self) -> bool: ...               # tensor descriptors are hardware

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None: ...
