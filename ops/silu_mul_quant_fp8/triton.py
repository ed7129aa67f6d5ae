"""GPU lowering: a tile of rows and groups a program; the activation lives in registers only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from .._triton.casts import (
    cast,
    group_space,
    largest,
    load_silu_mul,
    pairs_of,
    scale_from,
    tiny_scales,
)
from .._triton.fp8 import codes
from ..fp8 import scale_count
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import GridTarget


@triton.jit(do_not_specialize=["rows", "eps"])
def silu_mul_quant(x, q, s, rows, eps, x_m, s_m, s_g, H: tl.constexpr, GROUP: tl.constexpr,
                   WIDTH: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
                   UE8M0: tl.constexpr, TINY: tl.constexpr, FP8: tl.constexpr):
    """q and s of ROWS rows by GROUPS groups; WIDTH is GROUP rounded up to a power of two."""
    ALL: tl.constexpr = (H + GROUP - 1) // GROUP
    row, group = pairs_of(tl.program_id(0), (ALL + GROUPS - 1) // GROUPS, ROWS, GROUPS)
    there = (row < rows) & (group < ALL)
    v, column, mask = load_silu_mul(x, row * x_m, group, there, H, GROUP, WIDTH)
    scale = scale_from(largest(v), eps, UE8M0, TINY)
    tl.store(q + row[:, None] * H + column, cast(v, scale, UE8M0, TINY, FP8), mask=mask)
    tl.store(s + row * s_m + group * s_g, scale, mask=there)


def space(target: GridTarget, shape: Shape) -> Space:
    """Tiles of (row, group) pairs."""
    h, group = int(shape["h"]), int(shape["group_size"])
    tokens = int(shape["tokens"])
    return group_space(target, tokens, scale_count(h, group), triton.next_power_of_2(group), tokens)


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """x without dense rows is copied."""
    h, group = int(shape["h"]), int(shape["group_size"])
    down, across = int(config["rows"]), int(config["groups"])
    columns = triton.cdiv(scale_count(h, group), across)

    def run(x: Tensor, group_size: int, eps: float, column_major_scales: bool,
            tma_aligned_scales: bool, use_ue8m0: bool, *, out: Outputs) -> None:
        if not x.numel():
            return
        q, s = out
        x = x if x.stride(1) == 1 else x.contiguous()
        target.launch(silu_mul_quant, (triton.cdiv(x.shape[0], down) * columns,), x,
                      codes(q, target.fp8), s, x.shape[0], eps, x.stride(0), *s.stride(), H=h,
                      GROUP=group, WIDTH=triton.next_power_of_2(group), ROWS=down, GROUPS=across,
                      UE8M0=use_ue8m0, TINY=tiny_scales(eps), FP8=target.fp8,
                      num_warps=int(config["warps"]))

    return run
