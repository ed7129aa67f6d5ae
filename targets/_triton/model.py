"""A kernel's modelled time, for ordering configs and early refusal: never shown as measured."""

from __future__ import annotations

from .device import Device
from .facts import Facts
from .legality import LaunchShape, Operands, occupancy

# mma.sync reaches about 0.63 of an H100's peak, which only wgmma comes near (Luo et al.,
# "Dissecting the NVIDIA Hopper Architecture", arXiv 2501.12084). Taken for sm_100 as well.
_OLD_MMA_SHARE = 0.63
# From a load to its data on a busy device; of microbenchmarks' 0.3 (idle) to 0.8 us.
_LATENCY_S = 0.6e-6
_LOAD_BYTES = 16                     # of a thread's widest load


def modelled_us(device: Device, flops: float, moved_bytes: float, operands: Operands, facts: Facts,
                launch: LaunchShape) -> float | None:
    """max(memory, matrix unit) over how evenly the grid fills the device, and spills on top.

    `moved_bytes` is what this config moves, which is more than the floor where tiles reload their
    operands. None where a figure it needs is unknown. Only for a legal launch.
    """
    bandwidth = device.measured_bandwidth or device.bandwidth
    rate = _matrix_rate(device, operands, facts)
    if bandwidth is None or (rate is None and flops and operands != "none"):
        return None
    fill = occupancy(device, facts, launch)
    memory_s = (moved_bytes / (bandwidth.value * 1e9)
                / _latency_hidden(device, bandwidth.value * 1e9, facts, launch))
    matrix_s = flops / rate if rate else 0.0
    # What spills is stored and loaded again in the loop: of a thread's state this share moves
    # through L1 instead of staying in a register.
    spilled = facts.stack_bytes / (4 * max(1, facts.registers))
    return max(memory_s, matrix_s) / fill.balance * (1 + spilled) * 1e6


def _matrix_rate(device: Device, operands: Operands, facts: Facts) -> float | None:
    """FLOP/s of the matrix instructions that the kernel has, or None if no source gives it."""
    if operands == "none":
        return None
    spec = device.spec
    figure = device.measured_bf16 or device.bf16
    if spec.mma_fp8 and spec.mma_fp8 in facts.mma and device.fp8_peak is not None:
        # A measured bf16 ceiling says what share of a data sheet's peak this product sustains.
        sustained = (device.measured_bf16.value / device.bf16.value
                     if device.measured_bf16 and device.bf16 else 1.0)
        return device.fp8_peak.value * 1e9 * sustained
    if spec.mma_fp8 and spec.mma_fp8 in facts.mma or figure is None:
        return None
    if spec.mma_bf16 in facts.mma:
        return figure.value * 1e9
    return figure.value * 1e9 * _OLD_MMA_SHARE if facts.mma else None


def _latency_hidden(device: Device, bandwidth: float, facts: Facts, launch: LaunchShape) -> float:
    """Share of the bandwidth that the loads in flight can draw (Little's law), at most 1.

    In flight are the shared buffers of the resident blocks, or one wide load of each thread.
    """
    fill = occupancy(device, facts, launch)
    resident = min(fill.blocks_per_sm, -(-launch.blocks // device.cores))
    threads = resident * launch.warps * device.warp_size
    in_flight = max(resident * facts.shared_bytes, threads * _LOAD_BYTES)
    return min(1.0, in_flight * device.cores / (bandwidth * _LATENCY_S))
