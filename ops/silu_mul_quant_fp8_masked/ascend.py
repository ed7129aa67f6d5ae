"""Ascend lowering: silu_mul_quant_fp8's program with the experts as a third axis of its grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .._ascend.casts import compiler_flags
from .._ascend.fp8 import codes
from ..fp8 import scale_count
from ..silu_mul_quant_fp8.ascend import program
from ..silu_mul_quant_fp8.ascend import space as rows_space
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget


def space(target: AscendTarget, shape: Shape) -> Space:
    """Rows of a tile."""
    return rows_space(target, {**shape, "tokens": int(shape["e"]) * int(shape["m_max"])})


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """Rows past masked_m are neither read nor written."""
    h = int(shape["h"])
    made = program(target, shape, config, masked=True)
    groups, tile = scale_count(h, int(shape["group_size"])), int(config["rows"])

    def run(x: Tensor, masked_m: Tensor, group_size: int, eps: float, column_major_scales: bool,
            tma_aligned_scales: bool, use_ue8m0: bool, *, out: Outputs) -> None:
        q, s = out
        if not x.numel():
            return
        experts, room = x.shape[:2]
        flat = s if s.is_contiguous() else s.contiguous()
        target.launch(made, (-(-room // tile), groups, experts), experts * room, eps, experts,
                      masked_m.contiguous(), x.contiguous(), codes(target, q), flat,
                      **compiler_flags(config))
        if flat is not s:
            s.copy_(flat)

    return run
