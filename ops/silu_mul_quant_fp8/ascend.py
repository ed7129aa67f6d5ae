"""Ascend lowering: rows of one group at a time on the vector cores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from tvm.script.ir_builder import tirx as T

from .._ascend.casts import cast_rows, compiler_flags, row_space, silu_mul
from .._ascend.fp8 import codes, stored
from .._ascend.tile import constant, kernel
from ..fp8 import scale_count
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget

_ELEMENT_BYTES = 20                  # gate, up, the product, and what its rounding needs


def space(target: AscendTarget, shape: Shape) -> Space:
    """Rows of a tile."""
    group = int(shape["group_size"])
    return row_space(target, int(shape["tokens"]) * scale_count(int(shape["h"]), group),
                     group * _ELEMENT_BYTES)


def program(target: AscendTarget, shape: Shape, config: Config, masked: bool = False) -> Any:
    """silu_mul_quant(rows, eps [, experts, counts], x [rows, 2 H], q [rows, H], s [rows, groups]).

    Masked, a third axis of the grid is the expert, each of whom has rows / experts rows and uses
    the first counts[e] of them.
    """
    h, group, dtype = int(shape["h"]), int(shape["group_size"]), str(shape["dtype"])
    tile = int(config["rows"]), group
    with kernel("silu_mul_quant") as k:
        rows, eps = k.scalar("rows"), k.float_scalar("eps")
        if masked:
            experts = k.scalar("experts")
            counts = k.tensor("counts", (experts,), "int32")
        x = k.tensor("x", (rows, 2 * h), dtype)
        q = k.tensor("q", (rows, h), stored(target, "float8_e4m3fn"))
        s = k.tensor("s", (rows, scale_count(h, group)), "float32")
        r, end = k.block("x", T.ceildiv(rows, tile[0])) * tile[0], rows
        g = k.block("y", scale_count(h, group))
        c = g * group
        if masked:
            e = k.block("z", experts)
            room = rows // experts
            r, end = e * room + r, e * room + T.max(T.min(counts[e], room), 0)

        def inside(i: Any, j: Any) -> Any:
            return T.And(r + i < end, c + j < h) if h % group else r + i < end

        def half(first: int) -> Any:
            return k.new(tile, dtype, lambda i, j: T.if_then_else(
                inside(i, j), x[r + i, first + c + j], constant(0, dtype)))

        cast_rows(k, target, silu_mul(k, half(0), half(h)), eps, bool(shape["ue8m0"]),
                  lambda tile_, value: k.store(q, tile, lambda i, j: (r + i, c + j),
                                               lambda i, j: value(tile_, i, j), inside),
                  lambda scale: k.store(s, tile[:1], lambda i: (r + i, g), lambda i: scale[i],
                                        lambda i: r + i < end))
    return k.func


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """Scales in another layout go through a scratch tensor."""
    h = int(shape["h"])
    made, groups = program(target, shape, config), scale_count(h, int(shape["group_size"]))

    def run(x: Tensor, group_size: int, eps: float, column_major_scales: bool,
            tma_aligned_scales: bool, use_ue8m0: bool, *, out: Outputs) -> None:
        q, s = out
        if not x.numel():
            return
        flat = s if s.is_contiguous() else s.new_empty(s.shape)
        target.launch(made, (-(-x.shape[0] // int(config["rows"])), groups), x.shape[0], eps,
                      x.contiguous(), codes(target, q), flat, **compiler_flags(config))
        if flat is not s:
            s.copy_(flat)

    return run
