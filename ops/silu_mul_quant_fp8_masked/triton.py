"""GPU lowering: programs share out the tiles of one expert, and read its row count themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from .._triton.casts import (
    cast,
    first,
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

_GRID_Y = 65535                      # CUDA's limit of a grid's second axis


@triton.jit(do_not_specialize=["m_max", "eps", "expert"])
def silu_mul_quant_masked(x, masked_m, q, s, m_max, eps, expert, x_e, x_m, s_e, s_m, s_g,
                          H: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr,
                          ROWS: tl.constexpr, GROUPS: tl.constexpr, UE8M0: tl.constexpr,
                          TINY: tl.constexpr, FP8: tl.constexpr):
    """q and s of the first masked_m[e] rows of expert e = `expert` + program_id(1)."""
    ALL: tl.constexpr = (H + GROUP - 1) // GROUP
    SPANS: tl.constexpr = (ALL + GROUPS - 1) // GROUPS
    expert += tl.program_id(1)
    rows = tl.maximum(tl.minimum(tl.load(masked_m + expert), m_max), 0)
    at = expert.to(tl.int64)
    x += at * x_e
    q += at * m_max * H
    s += at * s_e
    for tile in range(tl.program_id(0), (rows + ROWS - 1) // ROWS * SPANS, tl.num_programs(0)):
        row, group = pairs_of(tile, SPANS, ROWS, GROUPS)
        there = (row < rows) & (group < ALL)
        v, column, mask = load_silu_mul(x, row * x_m, group, there, H, GROUP, WIDTH)
        scale = scale_from(largest(v), eps, UE8M0, TINY)
        tl.store(q + row[:, None] * H + column, cast(v, scale, UE8M0, TINY, FP8), mask=mask)
        tl.store(s + row * s_m + group * s_g, scale, mask=there)


def space(target: GridTarget, shape: Shape) -> Space:
    """Tiles of (row, group) pairs, and the programs that share the tiles of an expert."""
    h, group = int(shape["h"]), int(shape["group_size"])
    experts, m_max = int(shape["e"]), int(shape["m_max"])
    expected, groups = -(-m_max // 4), scale_count(h, group)
    tiles = group_space(target, experts * expected, groups, triton.next_power_of_2(group),
                        expected)
    best = tiles.default()
    most = -(-m_max // int(best["rows"])) * -(-groups // int(best["groups"]))
    programs = min(triton.next_power_of_2(max(most, 1)),
                   triton.next_power_of_2(max(16 * target.cores // max(experts, 1), 1)))
    return Space({**tiles.knobs, "programs": first(programs, 1, 4, 16, 64, 256)}, tiles.where)


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """x without dense rows is copied. The row counts stay on the device."""
    h, group = int(shape["h"]), int(shape["group_size"])

    def run(x: Tensor, masked_m: Tensor, group_size: int, eps: float, column_major_scales: bool,
            tma_aligned_scales: bool, use_ue8m0: bool, *, out: Outputs) -> None:
        if not x.numel():
            return
        q, s = out
        x = x if x.stride(2) == 1 else x.contiguous()
        masked_m = masked_m.contiguous()
        for start in range(0, x.shape[0], _GRID_Y):
            target.launch(silu_mul_quant_masked,
                          (int(config["programs"]), min(x.shape[0] - start, _GRID_Y)), x, masked_m,
                          codes(q, target.fp8), s, x.shape[1], eps, start, *x.stride()[:2],
                          *s.stride(), H=h, GROUP=group, WIDTH=triton.next_power_of_2(group),
                          ROWS=int(config["rows"]), GROUPS=int(config["groups"]),
                          UE8M0=use_ue8m0, TINY=tiny_scales(eps), FP8=target.fp8,
                          num_warps=int(config["warps"]))

    return run
