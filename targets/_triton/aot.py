"""Compile a lowering's launches for a GPU that is not here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Launch:
    """One kernel of a call: its compiled form and the grid it would run on."""

    name: str
    grid: tuple[int, ...]
    compiled: Any                    # triton.compiler.CompiledKernel: metadata, asm

    @property
    def warps(self) -> int:
        """Warps of a program, those of a specialised producer included."""
        return int(self.compiled.metadata.num_warps)

    @property
    def tmem_columns(self) -> int:
        """Tensor memory that a program of sm_100 takes."""
        return int(getattr(self.compiled.metadata, "tmem_size", 0) or 0)


@dataclass
class Recorder:
    """Collects what a lowering launches, in order."""

    launches: list[Launch] = field(default_factory=list)


class StandInDriver:
    """Answers what Triton's compiler asks the driver, for a device that is only described.

    The rest of the compiler is the one that a GPU would use: specialisation, options and cache key
    are the same, so what is compiled here is found in Triton's cache by a launch there.
    """

    def __init__(self, backend: str, arch: int | str, warp_size: int):
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget(backend, arch, warp_size)

    def get_current_target(self) -> Any:
        """Backend, architecture and warp size."""
        return self._target

    def get_current_device(self) -> str:
        """Triton keeps compiled kernels by device."""
        return f"{self._target.backend}:{self._target.arch}"

    def get_current_stream(self, device: object) -> int:
        """Nothing is launched, so any stream will do."""
        return 0


@cache
def driver_of(backend: str, arch: str, warp_size: int) -> StandInDriver:
    """The stand-in for an architecture; Triton numbers NVIDIA's."""
    number = int(arch.removeprefix("sm_")) if backend == "cuda" else arch
    return StandInDriver(backend, number, warp_size)


def compile_launch(driver: StandInDriver, kernel: Any, grid: Sequence[int], args: Sequence[Any],
                   meta: dict[str, Any]) -> Launch:
    """What `kernel[grid](*args, **meta)` would run; args are meta tensors and plain numbers."""
    import triton

    triton.runtime.driver.set_active(driver)
    compiled = kernel.warmup(*args, grid=tuple(grid), **meta)
    return Launch(kernel.__name__, tuple(grid), compiled)
