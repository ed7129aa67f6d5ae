"""The part that all Triton targets share: launch, interpret, or compile and record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from ...ops.space import Config
from ...ops.spec import Args, Operator, Shape
from .. import examination
from ..base import Evidence, Examined, Figure, Fp8, FromLowering, Recipe, Verdict
from . import cache as triton_cache
from . import live, static, timing
from .aot import Launch, Recorder, compile_launch, driver_of
from .device import Device

Mode = Literal["live", "compile", "interpret"]


@cache
def triton_version() -> str:
    """Of the installed package, or "absent"."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return "absent"


@dataclass(frozen=True)
class TritonTarget(FromLowering):
    """A GPU that Triton compiles for: here ("live"), described ("compile"), or interpreted."""

    name: str
    backend: str                     # Triton's name: "cuda", "hip"
    gpu: Device
    mode: Mode
    unit: str                        # how the user named it: "", "0", "sm_90", "h100"
    cache_dir: Path
    lang: str = "triton"
    kernels: Path | None = None      # where Triton keeps binaries; None: at its own place
    recorder: Recorder | None = field(default=None, compare=False)

    @property
    def arch(self) -> str:
        """The compiler's name of the architecture."""
        return self.gpu.arch

    @property
    def device(self) -> str:
        """What a record's validity depends on."""
        return self.gpu.fingerprint

    @property
    def aliases(self) -> tuple[str, ...]:
        """Names under which the same silicon is sold."""
        return self.gpu.aliases

    @property
    def torch_device(self) -> str:
        """Where tensors must live."""
        return {"live": "cuda", "compile": "meta", "interpret": "cpu"}[self.mode]

    @property
    def computes(self) -> bool:
        """On a GPU and in the interpreter."""
        return self.mode != "compile"

    @property
    def fp8(self) -> Fp8:
        """How kernels hold e4m3fn."""
        return self.gpu.fp8

    @property
    def warp_size(self) -> int:
        """Threads of a warp or wavefront."""
        return self.gpu.warp_size

    @property
    def cores(self) -> int:
        """Multiprocessors or compute units."""
        return self.gpu.cores

    @property
    def shared_bytes(self) -> int:
        """Shared memory that one program may have."""
        return self.gpu.shared_bytes

    @property
    def has_tma(self) -> bool:
        """Whether tensor descriptors are hardware."""
        return self.gpu.has_tma

    def toolchain(self) -> dict[str, str]:
        """Versions and flags that change the generated code."""
        return {"triton": triton_version(), "assembler": assembler(self.backend, self.arch),
                "fp_fusion": "on"}

    def available(self) -> str | None:
        """None, or why kernels cannot be built and run here and what to do about it."""
        if triton_version() == "absent":
            return "Triton is not installed; run: pip install 'expertile[cuda]'"
        if self.mode == "compile":
            return f"no {self.backend} device here is {self.arch}; kernels can only be compiled"
        if self.mode == "interpret":
            return "Triton's interpreter shows whether kernels are right, not how fast they are"
        return None

    def evidence(self) -> Evidence:
        """Timed on a GPU, else native objects: the interpreter is not the device."""
        if triton_version() == "absent":
            return "L0 described"
        return "L4 timed" if self.mode == "live" else "L2 native object"

    def limits(self) -> Mapping[str, Figure]:
        """What the table says; what was measured here overrides it."""
        if self.mode != "live":
            return self.gpu.limits
        return {**self.gpu.limits, **live.load_or_measure(self.gpu.fingerprint, self.cache_dir)}

    def legal(self, op: Operator, shape: Shape, config: Config) -> Verdict:
        """A config must belong to its space; what its binary needs shows once it is compiled."""
        why = self.space(op, shape).why_not(config)
        return Verdict(why is None, why or "")

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
        """Run `kernel` over `grid`; nothing runs for an empty grid."""
        if 0 in grid:
            return
        if self.kernels is not None:
            triton_cache.use(self.kernels)
        if self.recorder is not None:
            self.recorder.launches.append(compile_launch(
                driver_of(self.backend, self.arch, self.warp_size), kernel, grid, args,
                {"enable_fp_fusion": True, **meta}))
        elif self.mode == "interpret":
            kernel[grid](*args, **meta)
        else:
            live.launch(kernel, grid, args, {"enable_fp_fusion": True, **meta})

    def launches(self, op: Operator, shape: Shape, config: Config) -> tuple[Launch, ...]:
        """The kernels of one call, compiled for this device in this very process."""
        return self.launches_of(op, shape, config, [op.signature(shape)])

    def launches_of(self, op: Operator, shape: Shape, config: Config, calls: Iterable[Args]
                    ) -> tuple[Launch, ...]:
        """The same for calls on meta tensors: Triton compiles anew for other alignments."""
        recorder = Recorder()
        kernel = replace(self, mode="compile", recorder=recorder).build_kernel(op, shape, config)
        for args in calls:
            kernel(*args, out=op.empty(*args))
        return tuple(recorder.launches)

    def compile_here(self, op: Operator, shape: Shape, config: Config) -> Examined:
        """Put a config's binaries into Triton's cache, and what they say into ours."""
        path = static.path_of(self, op, shape, config)
        found = examination.load(path) if self.mode == "compile" else None
        if found is None:
            found = static.examine_here(self, op, shape, config)
            examination.keep(path, found)
        return found

    def examine(self, op: Operator, shape: Shape, config: Config) -> Examined:
        """What the binaries of a config say; compiled in a child, and kept."""
        found = examination.load(static.path_of(self, op, shape, config))
        return found or examination.in_child(self, op, shape, config, mode="compile")

    def recipe(self) -> Recipe:
        """How a child process makes this target again."""
        made = {"unit": self.unit, "mode": self.mode, "cache_dir": str(self.cache_dir)}
        if self.kernels is not None:
            made["kernels"] = str(self.kernels)
        return f"{__name__.removesuffix('._triton.target')}.{self.name}:target", made

    def time_us(self, fn: Callable[[], object], inner: int) -> float:
        """Device time of a call with a cold L2 cache, in microseconds: median of `inner` calls."""
        return timing.time_us(fn, inner) if self.mode == "live" else timing.host_us(fn, inner)


@cache
def assembler(backend: str, arch: str) -> str:
    """Version of what turns PTX into a binary; AMD's is part of Triton."""
    if backend != "cuda" or triton_version() == "absent":
        return "in triton"
    from triton.backends.nvidia.compiler import get_ptxas

    return f"ptxas {get_ptxas(int(arch.removeprefix('sm_'))).version}"
