"""What a lowering launches: a tile program, a grid, its arguments; recorded or emulated."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...ops.space import Config
from ...ops.spec import Operator, Shape
from ..base import BuildError
from . import cpu_run
from .artifact import Artifact
from .compiler import compile_module
from .devices import Device

if TYPE_CHECKING:
    from .target import AscendTarget


_SMALL = 256 << 20                   # bytes of a tensor that a recorded call may really have


@dataclass(frozen=True)
class Launch:
    """One kernel launch."""

    program: Any                     # a TIR PrimFunc
    grid: tuple[int, int, int]
    args: tuple[Any, ...]            # tensors and int32 scalars
    flags: Mapping[str, str]         # of the compiler

    @staticmethod
    def of(program: Any, grid: tuple[int, ...], args: tuple[Any, ...], flags: Mapping[str, str]
           ) -> Launch:
        """Check the arguments; floats travel as their bits."""
        scalars = tuple(_bits(a) if isinstance(a, float) else a for a in args)
        if len(scalars) != len(program.params):
            raise ValueError(f"the program takes {len(program.params)} arguments, got "
                             f"{len(scalars)}")
        for a in scalars:
            if isinstance(a, Tensor) and not a.is_contiguous():
                raise ValueError("a tile program takes contiguous tensors, got strides "
                                 f"{a.stride()} for {list(a.shape)}")
        full = (*grid, 1, 1)[:3]
        return Launch(program, (full[0], full[1], full[2]), scalars,
                      {name.replace("_", "-"): value for name, value in flags.items()})


def _bits(number: float) -> int:
    bits: int = struct.unpack("<i", struct.pack("<f", number))[0]
    return bits


@lru_cache(maxsize=64)
def _on_cpu(program: Any) -> tuple[cpu_run.CpuKernel, tuple[int, ...]]:
    from .emit import emit  # TVM is imported once something is launched

    made = emit(program, "cpu")
    return cpu_run.build(made.text), made.written


@lru_cache(maxsize=64)
def _for_device(program: Any, flags: tuple[tuple[str, str], ...], npu: Device
                ) -> tuple[Artifact, tuple[int, ...]]:
    from .emit import emit

    emitted = emit(program, "device")
    made = compile_module(emitted.text, npu, dict(flags))
    if not isinstance(made, Artifact):
        raise BuildError(f"{emitted.name}: {made.reason}", made.status)
    return made, emitted.written


def simulate_on(launch: Launch, npu: Device) -> None:
    """Execute the compiled text of a launch in the simulator, faults and all.

    What it reads without a wait, or never wrote, is NaN or huge: compare with the reference.
    """
    from .simulator import simulate

    made, written = _for_device(launch.program, tuple(launch.flags.items()), npu)
    left = iter(simulate(made, launch.args, launch.grid))
    for i, argument in enumerate(launch.args):
        if isinstance(argument, Tensor):
            result = next(left)
            if i in written:
                argument.copy_(result)


def emulate(launch: Launch) -> None:
    """Execute the CPU text of a launch and write its results into the caller's tensors."""
    kernel, written = _on_cpu(launch.program)
    before = {i: _bytes(launch.args[i]).clone() for i in written}
    left = iter(cpu_run.run(kernel, launch.args, launch.grid))
    for i, argument in enumerate(launch.args):
        if isinstance(argument, Tensor):
            result = _bytes(next(left))
            if i in written:         # arguments may be views of one tensor: only what changed
                changed = result != before[i]
                _bytes(argument)[changed] = result[changed]


def _bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)


def record(target: AscendTarget, op: Operator, shape: Shape, config: Config,
           known: Mapping[int, Tensor] | None = None) -> tuple[Launch, ...]:
    """The launches of one call, on tensors without data but for those in `known`, by position."""
    found: list[Launch] = []
    args = op.signature(shape)
    if known is not None:            # small ones stand where these do: no operation mixes the two
        args = tuple(known[i] if i in known else torch.empty_like(a, device="cpu")
                     if isinstance(a, Tensor) and a.numel() * a.element_size() <= _SMALL else a
                     for i, a in enumerate(args))
    kernel = target.recording(found).build_kernel(op, shape, config)
    kernel(*args, out=op.empty(*args))
    return tuple(found)
