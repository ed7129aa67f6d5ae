"""A kernel's modelled time from what the compiler made of it: for ordering configs, never a fact.

Bytes, cycles and waits are the artifact's own, counted for every block of the grid with the table
of rows and lengths that a typical call has. Widths of the units come from CANN's own tables, the
clock and the bandwidth from the device table; what no source states is assumed (model_costs.py).
910B only: vector code of the 950 is register code, and no peak of it is public.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...ops.spec import Operator, Shape
from .artifact import Artifact
from .devices import DEVICES, Device
from .launches import Launch
from .model_costs import ASSUMED, HBM_BYTES, L2_BYTES
from .model_views import Tile
from .model_walk import Cores, Data, Times
from .simulator.parse import Argument, Function, parse_functions, parse_maps

_SUSTAINED = 0.9                     # of the bandwidth: ascend-dmi measures 0.94, kernels less
_MOST_BLOCKS = 1024                  # of a larger grid evenly spaced ones stand for all
_ENDED = object()
_REFERENCE = "Ascend910B3"           # whose figures order configs of a 910B that has none
# Axes that decide how wide rows are, and no index: a call's tables are drawn without them.
_WIDTHS = ("n", "k", "hidden", "inter", "h", "head_dim_v", "rope", "kv_lora", "d_qk", "d_v")


@dataclass(frozen=True)
class Modelled:
    """The modelled time of one launch and what it is made of."""

    us: float
    parts: Mapping[str, Any]         # plain JSON: busy time of each pipe, bytes, bound ...


def typical(op: Operator, shape: Shape, seed: int = 0) -> dict[int, Tensor]:
    """The integer arguments of a realistic call, by position: rows, experts, lengths, pages."""
    thin = {axis: 1 if axis in _WIDTHS else value for axis, value in shape.items()}
    drawn, wanted = op.inputs(thin, seed), op.signature(shape)
    return {i: a for i, (a, b) in enumerate(zip(drawn, wanted, strict=True))
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape
            and a.dtype == b.dtype and a.dtype in (torch.int32, torch.int64)}


def total_us(launches: Sequence[Modelled]) -> float:
    """Of a call: its launches one after the other."""
    return sum(m.us for m in launches) + ASSUMED["launch_us"] * (len(launches) - 1)


def unmodelled(device: Device) -> str | None:
    """Why nothing can be modelled on a device, or None."""
    if device.family != "c220":
        return f"{device.name}: no peak is public and its vector code is not read"
    return None


def model(artifact: Artifact, launch: Launch, device: Device) -> Modelled:
    """The modelled time of one launch on a 910B."""
    clock, bandwidth, of = _figures(device)
    functions, maps = parse_functions(artifact.text), parse_maps(artifact.text)
    count = launch.grid[0] * launch.grid[1] * launch.grid[2]
    blocks = np.unique(np.linspace(0, count - 1, min(count, _MOST_BLOCKS)).astype(np.int64))
    weight = count / len(blocks)
    data: dict[int, NDArray[np.int64]] = {
        i: a.reshape(-1).to(torch.int64).numpy() for i, a in enumerate(launch.args)
        if isinstance(a, Tensor) and a.device.type == "cpu" and not a.dtype.is_floating_point}
    delivered: dict[int, float] = {}

    def gm_bytes(tile: Tile) -> float:
        return L2_BYTES if tile.array is None else delivered.get(tile.array, L2_BYTES)

    cores = _walked(functions, maps, launch, blocks, data, gm_bytes)
    moved = _moved(cores, weight, launch)
    for i, traffic in moved.items():     # what is read again comes from L2
        cold = min(1.0, _bytes(launch.args[i]) / max(traffic, 1.0))
        delivered[i] = 1.0 / (cold / HBM_BYTES + (1.0 - cold) / L2_BYTES)
    cores = _walked(functions, maps, launch, blocks, data, gm_bytes)
    each = np.maximum.reduce([c.ended for c in cores]) / (clock * 1e3) + ASSUMED["block_us"]
    units = device.vector_cores if artifact.task_type == "vector" else device.cube_cores
    from_memory = sum(min(t, _bytes(launch.args[i])) for i, t in moved.items())
    memory_us = from_memory / (_SUSTAINED * bandwidth * 1e3)
    work_us = _makespan(each, weight, units)
    us = max(work_us, memory_us)
    return Modelled(us, {
        "us": us, "bound": "memory" if memory_us >= work_us else "cores", "memory_us": memory_us,
        "cores_us": work_us, "blocks": count, "cores": min(count, units),
        "gm_bytes": sum(moved.values()), "distinct_bytes": from_memory,
        "workspace_bytes": _total(cores, weight, "workspace"),
        "flops": _total(cores, weight, "flops"), "busy_us": _busy(cores, clock),
        "operations": {f"{c.function.core} {key[4:]}": _total([c], weight, key) * _sub_cores(
            c, cores) for c in cores for key in c.state if key.startswith("ops ")},
        "figures_of": of})


def _figures(device: Device) -> tuple[float, float, str]:
    """Clock in GHz, bandwidth in GB/s, and whose they are."""
    own, other = device.peaks(), DEVICES[_REFERENCE].peaks()
    borrowed = [name for name in ("clock", "bandwidth") if name not in own]
    found = {name: own.get(name, other[name]).value for name in ("clock", "bandwidth")}
    said = device.name if not borrowed else (
        f"{_REFERENCE}, for {device.name} has no public {' and '.join(borrowed)}")
    return found["clock"], found["bandwidth"], said


def _walked(functions: Sequence[Function], maps: Any, launch: Launch, blocks: NDArray[np.int64],
            data: Data, gm_bytes: Any) -> list[Cores]:
    """Both kinds of core, having walked their functions by turns."""
    flags: dict[str, deque[Times]] = {}
    cores = [Cores(f, maps, _bound(f, launch), blocks, data, flags, gm_bytes) for f in functions]
    walks, sets = [core.run() for core in cores], -1
    while walks:
        if sets == sum(core.sets for core in cores):
            # rounds that were not walked set flags too: nobody waits for those for ever
            for queue in flags.values():
                if not queue:
                    queue.append(np.zeros(len(blocks)))
        sets = sum(core.sets for core in cores)
        walks = [walk for walk in walks if next(walk, _ENDED) is not _ENDED]
    return cores


def _bound(function: Function, launch: Launch) -> list[Any]:
    """The values of a function's parameters, in their order."""
    own = iter([*launch.args, *launch.grid])
    place = iter(range(len(launch.args) + 3))

    def value(argument: Argument) -> Any:
        if argument.role:
            return Tile("gm", "i8", (None,)) if argument.is_memref else 0
        given, i = next(own), next(place)
        if isinstance(given, Tensor):
            return Tile("gm", argument.dtype, (given.numel(),), (1,), 0, i)
        return given

    return [value(a) for a in function.arguments]


def _bytes(argument: Any) -> int:
    return int(argument.numel() * argument.element_size())


def _sub_cores(core: Cores, of: Sequence[Cores]) -> int:
    """The vector cores of a block of a mix kernel share its rows."""
    return 2 if core.function.core == "AIV" and len(of) > 1 else 1


def _total(cores: Sequence[Cores], weight: float, key: str) -> float:
    return sum(float(c.state[key].sum()) * weight * _sub_cores(c, cores)
               for c in cores if key in c.state)


def _moved(cores: Sequence[Cores], weight: float, launch: Launch) -> dict[int, float]:
    """Bytes of each tensor argument that cross to and from the chip."""
    return {i: _total(cores, weight, f"gm {i}") for i, a in enumerate(launch.args)
            if isinstance(a, Tensor) and _total(cores, weight, f"gm {i}")}


def _busy(cores: Sequence[Cores], clock: float) -> dict[str, float]:
    """Mean of a block, microseconds, of each kind of core and pipe."""
    return {f"{c.function.core} {key[5:]}": float(c.state[key].mean()) / (clock * 1e3)
            for c in cores for key in c.state if key.startswith("busy ")}


def _makespan(each: Times, weight: float, units: int) -> float:
    """Blocks start in their order, each on the core that is free first."""
    if weight > 1.0:
        return max(float(each.max()), float(each.sum()) * weight / units)
    free = [0.0] * units
    for us in each:
        heapq.heapreplace(free, free[0] + float(us))
    return max(free)
