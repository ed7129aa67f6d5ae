"""Ascend lowering: rows of one group at a time on the vector cores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from tvm.script.ir_builder import tirx as T

from .._ascend.casts import cast_rows, compiler_flags, row_space
from .._ascend.fp8 import codes, stored
from .._ascend.tile import constant, kernel
from ..fp8 import scale_count
from ..fp8_format import E4M3, Format
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget

_ROW_BYTES = 14                      # of an element: x, the ratio, and what its rounding needs


def _pairs(shape: Shape) -> tuple[int, int]:
    """Groups of a row and columns of a row, as the program sees them.

    Where groups divide the row, each group is a row of its own: tiles are contiguous then.
    """
    k, group = int(shape["k"]), int(shape["group_size"])
    return (1, group) if k % group == 0 else (scale_count(k, group), k)


def space(target: AscendTarget, shape: Shape) -> Space:
    """Tiles of groups."""
    groups, columns = _pairs(shape)
    rows = int(shape["tokens"]) * (int(shape["k"]) // columns if columns else 0)
    return row_space(target, rows * groups, int(shape["group_size"]) * _ROW_BYTES)


def program(target: AscendTarget, shape: Shape, config: Config, to: Format = E4M3) -> Any:
    """quant(rows, eps, x [rows, K], q [rows, K], s [rows, groups]); a block per tile and group."""
    group, tile = int(shape["group_size"]), int(config["rows"])
    groups, columns = _pairs(shape)
    with kernel("per_token_group_quant") as k:
        rows, eps = k.scalar("rows"), k.float_scalar("eps")
        x = k.tensor("x", (rows, columns), str(shape["dtype"]))
        q = k.tensor("q", (rows, columns), stored(target, to.dtype))
        s = k.tensor("s", (rows, groups), "float32")
        first = k.block("x", T.ceildiv(rows, tile)) * tile
        g = k.block("y", groups)

        def inside(i: Any, j: Any) -> Any:
            there = first + i < rows
            return there if columns % group == 0 else T.And(there, g * group + j < columns)

        raw = k.new((tile, group), str(shape["dtype"]), lambda i, j: T.if_then_else(
            inside(i, j), x[first + i, g * group + j], constant(0, str(shape["dtype"]))))
        cast_rows(
            k, target, k.new((tile, group), "float32", lambda i, j: T.Cast("float32", raw[i, j])),
            eps, bool(shape["ue8m0"]),
            lambda tile_, value: k.store(q, (tile, group), lambda i, j: (first + i, g * group + j),
                                         lambda i, j: value(tile_, i, j), inside),
            lambda scale: k.store(s, (tile,), lambda i: (first + i, g), lambda i: scale[i],
                                  lambda i: first + i < rows), to)
    return k.func


def build(target: AscendTarget, shape: Shape, config: Config, to: Format = E4M3) -> Kernel:
    """Leading axes are flattened; scales in another layout go through a scratch tensor."""
    groups, columns = _pairs(shape)
    made = program(target, shape, config, to) if columns else None

    def run(x: Tensor, group_size: int, eps: float, column_major_scales: bool,
            tma_aligned_scales: bool, use_ue8m0: bool, *, out: Outputs) -> None:
        q, s = out
        if not x.numel():
            return
        rows = x.contiguous().view(-1, columns)
        flat = s if s.is_contiguous() else s.new_empty(s.shape)
        target.launch(made, (-(-rows.shape[0] // int(config["rows"])), groups), rows.shape[0], eps,
                      rows, codes(target, q), flat, **compiler_flags(config))
        if flat is not s:
            s.copy_(flat)

    return run
