"""GPU lowering: a tile of rows and groups a program, one pass, everything in registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from .._triton.casts import group_space, largest, pairs_of
from .._triton.int8 import int8_codes, int8_scale
from ..fp8 import scale_count
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import GridTarget


@triton.jit(do_not_specialize=["rows", "eps"])
def per_token_group_quant(x, q, s, rows, eps, x_m, K: tl.constexpr, GROUP: tl.constexpr,
                          WIDTH: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """q and s of ROWS rows by GROUPS groups; WIDTH is GROUP rounded up to a power of two."""
    ALL: tl.constexpr = (K + GROUP - 1) // GROUP
    row, group = pairs_of(tl.program_id(0), (ALL + GROUPS - 1) // GROUPS, ROWS, GROUPS)
    there = (row < rows) & (group < ALL)
    column = group[:, None] * GROUP + tl.arange(0, WIDTH)[None, :]
    mask = there[:, None]
    if GROUP != WIDTH:
        mask &= (tl.arange(0, WIDTH) < GROUP)[None, :]
    if K % GROUP != 0:
        mask &= column < K
    v = tl.load(x + row[:, None] * x_m + column, mask=mask, other=0.0).to(tl.float32)
    scale = int8_scale(largest(v), eps)
    tl.store(q + row[:, None] * K + column, int8_codes(v, scale), mask=mask)
    tl.store(s + row * ALL + group, scale, mask=there)


def space(target: GridTarget, shape: Shape) -> Space:
    """Tiles of (row, group) pairs; a group wider than a row is one row."""
    k, group = int(shape["k"]), _group(shape)
    tokens = int(shape["tokens"])
    return group_space(target, tokens, scale_count(k, group), triton.next_power_of_2(group), tokens)


def _group(shape: Shape) -> int:
    return max(min(int(shape["group_size"]), int(shape["k"])), 1)


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """Leading axes are flattened; x without dense rows of a common stride is copied."""
    k, group = int(shape["k"]), _group(shape)
    down, across = int(config["rows"]), int(config["groups"])
    columns = triton.cdiv(scale_count(k, group), across)

    def run(x: Tensor, group_size: int, eps: float, *, out: Outputs) -> None:
        q, s = out
        if not x.numel():
            return
        rows = x.reshape(-1, k)
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        target.launch(per_token_group_quant, (triton.cdiv(rows.shape[0], down) * columns,), rows,
                      q, s, rows.shape[0], eps, rows.stride(0), K=k, GROUP=group,
                      WIDTH=triton.next_power_of_2(group), ROWS=down, GROUPS=across,
                      num_warps=int(config["warps"]))

    return run
