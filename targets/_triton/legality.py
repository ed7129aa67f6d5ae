"""Whether a compiled kernel may run on a device, how full it makes it, and what to mistrust."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

from ..base import Verdict
from .device import Device
from .facts import Facts

Operands = Literal["fp8", "bf16", "none"]        # what a kernel means its matrix unit to multiply


@dataclass(frozen=True)
class LaunchShape:
    """How a kernel is launched. `warps` is the binary's own count, specialised warps included."""

    grid: tuple[int, ...]
    warps: int
    tmem_columns: int = 0

    @property
    def blocks(self) -> int:
        """Programs of the whole grid."""
        return prod(self.grid)


@dataclass(frozen=True)
class Occupancy:
    """What stands on one multiprocessor at a time, and how evenly the grid fills them all."""

    blocks_per_sm: int
    warps_per_sm: int
    limited_by: str                  # "registers", "shared", "warps" or "blocks"
    waves: int                       # ceil(grid / (multiprocessors * blocks_per_sm))
    balance: float                   # mean over most blocks of a multiprocessor: 1 is even


def legal(device: Device, facts: Facts, launch: LaunchShape) -> Verdict:
    """Whether the launch would be accepted; the reason holds the number and its limit."""
    spec = device.spec
    threads = launch.warps * spec.warp
    grid = launch.grid + (1,) * (3 - len(launch.grid))
    if len(grid) > 3 or min(grid) < 1 or launch.warps < 1:
        return Verdict(False, f"a launch needs 1 to 3 positive grid sizes and a warp, got "
                              f"grid={launch.grid} warps={launch.warps}; skip an empty launch")
    in_file = _allocated_registers(device, facts, launch)
    for what, need, limit in (
            ("bytes of shared memory", facts.shared_bytes, spec.shared_per_block),
            ("threads a block", threads, spec.threads_per_block),
            ("registers a thread", facts.registers, spec.registers_per_thread),
            ("registers a block", in_file, spec.registers_per_sm),
            ("columns of tensor memory", launch.tmem_columns, spec.tmem_columns),
            *((f"programs along {axis}", size, most)
              for axis, size, most in zip("xyz", grid, spec.grid, strict=True)),
            *((f"threads along {axis}", size * block, spec.threads_per_axis)
              for axis, size, block in zip("xyz", grid, (threads, 1, 1), strict=True)
              if spec.threads_per_axis)):
        if need > limit:
            return Verdict(False, f"needs {need} {what}, {device.arch} has {limit}",
                           {"need": float(need), "limit": float(limit)})
    fill = occupancy(device, facts, launch)
    return Verdict(True, "", {
        "registers": float(facts.registers), "shared_bytes": float(facts.shared_bytes),
        "stack_bytes": float(facts.stack_bytes), "blocks_per_sm": float(fill.blocks_per_sm),
        "warps_per_sm": float(fill.warps_per_sm), "waves": float(fill.waves),
        "balance": fill.balance})


def occupancy(device: Device, facts: Facts, launch: LaunchShape) -> Occupancy:
    """Blocks on a multiprocessor, by the allocation rules of NVIDIA's occupancy calculator.

    AMD's compute units follow the same rules with their own numbers. Only for a legal launch.
    """
    spec = device.spec
    shared = facts.shared_bytes + spec.shared_reserved
    by = {
        "warps": spec.warps_per_sm // launch.warps,
        "blocks": spec.blocks_per_sm,
        "registers": _warps_by_registers(device, facts) // _spread(device, launch.warps),
        "shared": (spec.shared_per_sm // _round_up(shared, spec.shared_step) if shared
                   else spec.blocks_per_sm)}
    limited_by = min(by, key=by.__getitem__)
    blocks = max(1, by[limited_by])
    busiest = ceil(launch.blocks / device.cores)
    return Occupancy(blocks, blocks * launch.warps, limited_by,
                     ceil(launch.blocks / (device.cores * blocks)),
                     launch.blocks / device.cores / busiest)


def warnings(device: Device, facts: Facts, operands: Operands) -> tuple[str, ...]:
    """What makes a legal kernel slower than its config promises."""
    spec = device.spec
    found = []
    if facts.stack_bytes:
        moves = {name: facts.counts[name] for name in ("LDL", "STL", "scratch_load",
                                                       "scratch_store") if facts.counts.get(name)}
        found.append(f"spills {facts.stack_bytes} bytes a thread at {facts.registers} registers"
                     + "".join(f", {name} {count}" for name, count in moves.items()))
    if operands == "none":
        return tuple(found)
    best = spec.mma_fp8 if operands == "fp8" else spec.mma_bf16
    if not best:
        found.append(f"{device.arch} multiplies no {operands} in hardware; the kernel has "
                     f"{_listed(facts) or 'no matrix instruction'}")
    elif lower := {name: count for name, count in facts.mma.items() if name != best}:
        found.append(f"lower MMA path than the device has: "
                     f"{', '.join(f'{name} {count}' for name, count in lower.items())} where "
                     f"{device.arch} has {best} for {operands}")
    elif best not in facts.mma:
        found.append(f"no matrix instruction, where {device.arch} has {best} for {operands}")
    return tuple(found)


def _listed(facts: Facts) -> str:
    return ", ".join(f"{name} {count}" for name, count in facts.mma.items())


def _round_up(value: int, step: int) -> int:
    return ceil(value / step) * step


def _spread(device: Device, warps: int) -> int:
    """A block's warps as its partitions count them: each partition is given as many."""
    return _round_up(warps, device.spec.partitions)


def _warps_by_registers(device: Device, facts: Facts) -> int:
    """Warps whose registers fit a multiprocessor, partition by partition."""
    spec = device.spec
    of_warp = max(1, _round_up(facts.registers, spec.registers_step)) * spec.warp
    return spec.registers_per_sm // spec.partitions // of_warp * spec.partitions


def _allocated_registers(device: Device, facts: Facts, launch: LaunchShape) -> int:
    spec = device.spec
    return (_round_up(facts.registers, spec.registers_step) * spec.warp
            * _spread(device, max(1, launch.warps)))
