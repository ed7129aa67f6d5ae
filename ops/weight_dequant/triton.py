"""GPU lowering: a tile of rows and columns a program, whose blocks' scales are loaded once each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton.casts import first
from .._triton.fp8 import codes, decode
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import GridTarget


@triton.jit(do_not_specialize=["n"])
def dequant(q, s, w, n, q_n, s_n, s_k, K: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
            ROWS: tl.constexpr, COLUMNS: tl.constexpr, FP8: tl.constexpr):
    """w of ROWS rows by COLUMNS runs of WIDTH columns; no run crosses a block's edge."""
    RUNS: tl.constexpr = BLOCK // WIDTH          # WIDTH divides BLOCK
    ALL: tl.constexpr = (K + WIDTH - 1) // WIDTH
    SPANS: tl.constexpr = (ALL + COLUMNS - 1) // COLUMNS
    program, pair = tl.program_id(0), tl.arange(0, ROWS * COLUMNS)
    row = (program // SPANS).to(tl.int64) * ROWS + pair // COLUMNS
    place = program % SPANS * COLUMNS + pair % COLUMNS
    there = (row < n) & (place < ALL)
    scale = tl.load(s + row // BLOCK * s_n + place // RUNS * s_k, mask=there, other=0.0)
    column = place[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    mask = there[:, None]
    if K % WIDTH != 0:
        mask &= column < K
    v = decode(tl.load(q + row[:, None] * q_n + column, mask=mask), FP8) * scale[:, None]
    tl.store(w + row[:, None] * K + column, v.to(w.dtype.element_ty), mask=mask)


def run_width(block: int) -> int:
    """The largest power of two up to 128 that divides a block."""
    return min(block & -block, 128)


def space(target: GridTarget, shape: Shape) -> Space:
    """Rows and runs of columns a program, and its warps; 32 values a thread."""
    width = run_width(int(shape["block_size"]))
    runs = -(-int(shape["k"]) // width)
    pairs = max(4096 // width, 1)
    across = min(max(runs & -runs, 1), 8, pairs)
    down = min(pairs // across, triton.next_power_of_2(max(int(shape["n"]), 1)))
    warps = min(max(down * across * width // (32 * target.warp_size), 1), 8)
    best = (down, across, warps)

    def valid(c: Config) -> bool:
        each = (int(c["rows"]) * int(c["columns"]) * width
                // (int(c["warps"]) * target.warp_size))
        return (c["rows"], c["columns"], c["warps"]) == best or (
            8 <= each <= 64 and int(c["columns"]) <= triton.next_power_of_2(runs))

    return Space({"rows": first(down, 1, 2, 4, 8, 16, 32, 64), "warps": first(warps, 1, 2, 4, 8),
                  "columns": first(across, 1, 2, 4, 8, 16)}, valid)


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """Scales become float32; q without dense rows is copied."""
    k, block = int(shape["k"]), int(shape["block_size"])
    down, across, width = int(config["rows"]), int(config["columns"]), run_width(block)
    spans = triton.cdiv(triton.cdiv(k, width), across)

    def run(q: Tensor, s: Tensor, block_size: int, dtype: torch.dtype, *, out: Outputs) -> None:
        if not q.numel():
            return
        q = q if q.stride(1) == 1 else q.contiguous()
        s = s.float()
        target.launch(dequant, (triton.cdiv(q.shape[0], down) * spans,), codes(q, target.fp8), s,
                      out[0], q.shape[0], q.stride(0), *s.stride(), K=k, BLOCK=block, WIDTH=width,
                      ROWS=down, COLUMNS=across, FP8=target.fp8, num_warps=int(config["warps"]))

    return run
