"""GPU lowering: a tile of rows and groups a program, one pass, everything in registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from .._triton.casts import cast, group_space, largest, pairs_of, scale_from, tiny_scales
from .._triton.fp8 import codes
from ..fp8 import scale_count
from ..fp8_format import E4M3, Format
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import GridTarget


@triton.jit(do_not_specialize=["rows", "lead", "eps"])
def per_token_group_quant(x, q, s, rows, lead, eps, x_m, s_b, s_m, s_g, K: tl.constexpr,
                          GROUP: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
                          GROUPS: tl.constexpr, UE8M0: tl.constexpr, TINY: tl.constexpr,
                          FP8: tl.constexpr, NESTED: tl.constexpr, MOST: tl.constexpr,
                          TO: tl.constexpr):
    """q (of dtype TO) and s of ROWS rows by GROUPS groups; WIDTH: the power of two >= GROUP.

    Row r of x stands at x + r * x_m; its scales at s + r * s_m, and where leading axes are NESTED
    at s + r // lead * s_b + r % lead * s_m.
    """
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
    scale = scale_from(largest(v), eps, UE8M0, TINY, MOST)
    tl.store(q + row[:, None] * K + column, cast(v, scale, UE8M0, TINY, FP8, TO), mask=mask)
    if NESTED:
        s += row // lead * s_b + row % lead * s_m
    else:
        s += row * s_m
    tl.store(s + group * s_g, scale, mask=there)


def space(target: GridTarget, shape: Shape) -> Space:
    """Tiles of (row, group) pairs."""
    k, group = int(shape["k"]), int(shape["group_size"])
    tokens = int(shape["tokens"])
    return group_space(target, tokens, scale_count(k, group), triton.next_power_of_2(group), tokens)


def build(target: GridTarget, shape: Shape, config: Config, to: Format = E4M3) -> Kernel:
    """Leading axes are flattened; x without dense rows of a common stride is copied."""
    k, group = int(shape["k"]), int(shape["group_size"])
    down, across = int(config["rows"]), int(config["groups"])
    columns = triton.cdiv(scale_count(k, group), across)

    def run(x: Tensor, group_size: int, eps: float, column_major_scales: bool,
            tma_aligned_scales: bool, use_ue8m0: bool, *, out: Outputs) -> None:
        q, s = out
        if not x.numel():
            return
        rows = x.reshape(-1, k)
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        lead = s.shape[-2] if s.ndim > 1 else 1
        target.launch(per_token_group_quant, (triton.cdiv(rows.shape[0], down) * columns,), rows,
                      codes(q, target.fp8), s, rows.shape[0], lead, eps, rows.stride(0),
                      s.stride(-3) if s.ndim > 2 else 0, s.stride(-2) if s.ndim > 1 else 0,
                      s.stride(-1), K=k, GROUP=group, WIDTH=triton.next_power_of_2(group),
                      ROWS=down, GROUPS=across, UE8M0=use_ue8m0, TINY=tiny_scales(eps, to),
                      FP8=target.fp8, NESTED=s.ndim > 2 and not s.is_contiguous(),
                      MOST=to.most, TO=to.dtype, num_warps=int(config["warps"]))

    return run
