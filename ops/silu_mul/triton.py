"""GPU lowering: a tile of rows and columns a program, one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from .._triton.casts import first, silu_mul
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import GridTarget


@triton.jit(do_not_specialize=["rows"])
def silu_mul_rows(x, y, rows, x_m, H: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """y[r, c] of ROWS rows by COLUMNS columns; row r of x stands at x + r * x_m."""
    SPANS: tl.constexpr = (H + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    row = (program // SPANS).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = program % SPANS * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < rows)[:, None]
    if H % COLUMNS != 0:
        mask &= column < H
    gate = x + row[:, None] * x_m + column
    v = silu_mul(tl.load(gate, mask=mask, other=0.0).to(tl.float32),
                 tl.load(gate + H, mask=mask, other=0.0).to(tl.float32))
    tl.store(y + row[:, None] * H + column, v.to(y.dtype.element_ty), mask=mask)


def space(target: GridTarget, shape: Shape) -> Space:
    """Rows and columns a program, and its warps; 16 values a thread, unless programs are few."""
    h, rows = int(shape["h"]), int(shape["tokens"])
    wide = max(triton.next_power_of_2(h), 1)
    share = rows * h // (2 * target.cores)
    values = max(min(2048, triton.next_power_of_2(max(share, 1))), 256)
    fits = max(h & -h, min(wide, 256))           # no idle column, or 256 of them
    columns = min(fits, values)
    down = min(values // columns, triton.next_power_of_2(max(rows, 1)))
    warps = min(max(down * columns // (16 * target.warp_size), 1), 16)
    best = (down, columns, warps)

    def valid(c: Config) -> bool:
        each = int(c["rows"]) * int(c["columns"]) // (int(c["warps"]) * target.warp_size)
        return (c["rows"], c["columns"], c["warps"]) == best or (
            4 <= each <= 64 and int(c["columns"]) <= wide)

    return Space({"rows": first(down, 1, 2, 4, 8), "warps": first(warps, 1, 2, 4, 8),
                  "columns": first(columns, 256, 512, 1024, 2048, 4096, 8192)}, valid)


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """Leading axes are flattened; x without dense rows of a common stride is copied."""
    h, down, columns = int(shape["h"]), int(config["rows"]), int(config["columns"])

    def run(x: Tensor, *, out: Outputs) -> None:
        if not x.numel():
            return
        rows = x.reshape(-1, 2 * h)
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        target.launch(silu_mul_rows,
                      (triton.cdiv(rows.shape[0], down) * triton.cdiv(h, columns),), rows, out[0],
                      rows.shape[0], rows.stride(0), H=h, ROWS=down, COLUMNS=columns,
                      num_warps=int(config["warps"]))

    return run
