"""What a library call costs: its pipe, and cycles from bytes, elements and the unit's width.

Widths are those that CANN states (platform_config/Ascend910B*.ini and the matmul tiling of
asc-devkit); what nobody states is under ASSUMED. Absolute times are therefore worth little: the
model is for ordering configs of one operator.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .model_views import Tile

VECTOR_BYTES = 256                   # a cycle (vec_calc_size 128 of 16 bits)
L0A_BYTES, L0B_BYTES = 256, 128      # L1 to L0, a cycle (MTE1_L0A/B_BANDWIDTH of asc-devkit)
L2_BYTES = 110                       # GM that L2 has, a cycle and core (l2_rate)
HBM_BYTES = 32                       # GM that it has not (ddr_rate)
L0_HALF = 32 << 10                   # L0A and L0B are 64 KiB, used in halves
# cycles of the cube for 16 x 16 x (32 bytes): float32 runs at a quarter of float16's FLOP
_FRACTAL_CYCLES = {"float": 2.0}

ASSUMED: Mapping[str, float] = {
    "copy_start": 64.0,              # cycles; 16 KiB a copy then reach 89 % of the HBM width, 2 KiB
                                     # 50 %: Huawei's guide asks for 16 KiB and more
    "copy_run": 2.0,                 # of each run of bytes that stand side by side
    "vector_start": 20.0,            # of a vector instruction
    "slow_factor": 4.0,              # division, exp, roots and logarithms against an addition
    "reduce_factor": 2.0,
    "product_start": 50.0,
    "scalar_op": 1.0,
    "scalar_load": 60.0,             # of the scalar unit, from GM or UB
    "launch_us": 3.0,                # each further launch of a call
    "block_us": 0.5,                 # to start a block on a core
}

_SLOW = re.compile(r"v(?:div|exp|ln|sqrt|rsqrt|rec)s?_")
_REDUCE = re.compile(r"(?:enablevcg?_)?reduce_|transpose_")
_PRODUCT = re.compile(r"mma_tile_(\w+?)_to_\w+")
_COPY = {"load_gm_to_ubuf": "MTE2", "store_ubuf_to_gm": "MTE3", "nd2nz": "MTE2", "fixpipe": "FIX"}


@dataclass(frozen=True)
class Cost:
    """One call: cycles on its pipe, and what it moves between global memory and the chip."""

    pipe: str
    cycles: Any
    moved: Tile | None = None        # the end in global memory


@dataclass(frozen=True)
class Product:
    """One call of mma_tile: cycles to fill L0, cycles of the cube, and into how many parts."""

    fill: Any
    cube: Any
    parts: Any
    flops: Any


def product(name: str, args: Sequence[Any]) -> Product | None:
    """The cost of a product of tiles, or None when a call is none."""
    match = _PRODUCT.fullmatch(name)
    if match is None:
        return None
    a, b, _, m, k, n = args[:6]
    m, k, n = (_or(v, f) for v, f in ((m, _rows(a)), (k, _columns(a)), (n, _rows(b))))
    width = a.width
    depth = 32 / width               # a fractal is 16 x 32 bytes
    fractals = _up(m, 16) * _up(n, 16) * _up(k, depth)
    fill = 16 * 32 * _up(k, depth) * (_up(m, 16) / L0A_BYTES + _up(n, 16) / L0B_BYTES)
    largest = 16 * 32 * _up(k, depth) * np.maximum(_up(m, 16), _up(n, 16))
    return Product(fill, fractals * _FRACTAL_CYCLES.get(match[1], 1.0) + ASSUMED["product_start"],
                   np.maximum(_up(largest, L0_HALF), 1), 2.0 * m * n * k)


def call(name: str, args: Sequence[Any], gm_bytes: Any) -> Cost:
    """The cost of any other call; `gm_bytes(tile)` is how many GM delivers of it in a cycle."""
    tiles = [a for a in args if isinstance(a, Tile)]
    for prefix, pipe in _COPY.items():
        if name.startswith(prefix):
            outside = next((t for t in tiles if t.space == "gm"), tiles[0])
            size, run = outside.elements * outside.width, np.maximum(outside.run, 1)
            runs = outside.elements / run
            # a run is moved in whole blocks of 32 bytes
            whole = runs * _up(run * outside.width, 32) * 32
            return Cost(pipe, np.where(size > 0, ASSUMED["copy_start"] + whole / gm_bytes(outside)
                                       + runs * ASSUMED["copy_run"], 0.0), outside)
    if name.startswith("set_l1"):
        size = tiles[0].elements * tiles[0].width
        return Cost("MTE2", ASSUMED["vector_start"] + size / VECTOR_BYTES)
    widest = 0.0
    for tile in tiles:               # rows that do not follow each other are passes of their own
        run = np.maximum(tile.run, 1)
        widest = np.maximum(widest, tile.elements / run * np.maximum(
            run * tile.width / VECTOR_BYTES, 32 / VECTOR_BYTES))
    factor = (ASSUMED["slow_factor"] if _SLOW.match(name)
              else ASSUMED["reduce_factor"] if _REDUCE.match(name) else 1.0)
    return Cost("V", ASSUMED["vector_start"] + widest * factor)


def _or(value: Any, bound: Any) -> Any:
    return bound if value is None else value


def _up(size: Any, step: Any) -> Any:
    return np.ceil(size / step)


def _rows(tile: Tile) -> Any:
    """Of an operand in L1: [columns / c, rows / r, r, c]."""
    return (tile.sizes[1] or 1) * 16


def _columns(tile: Tile) -> Any:
    return (tile.sizes[0] or 1) * (32 / tile.width)
