"""Ascend lowering: rows of one group at a time on the vector cores; long groups piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from tvm.script.ir_builder import tirx as T

from .._ascend.casts import compiler_flags, row_space
from .._ascend.int8 import int8_codes, int8_scale
from .._ascend.tile import constant, kernel
from ..fp8 import scale_count
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget

_ELEMENT_BYTES = 20                  # x, the ratio, its integers; some twice where copies overlap
_PIECE = 2048                        # columns of a group that stand on the chip together


def _group(shape: Shape) -> int:
    return max(min(int(shape["group_size"]), int(shape["k"])), 1)


def _pairs(shape: Shape) -> tuple[int, int]:
    """Groups of a row and columns of a row, as the program sees them.

    Where groups divide the row, each group is a row of its own: tiles are contiguous then.
    """
    k, group = int(shape["k"]), _group(shape)
    return (1, group) if k % group == 0 else (scale_count(k, group), k)


def space(target: AscendTarget, shape: Shape) -> Space:
    """Tiles of groups."""
    groups, columns = _pairs(shape)
    rows = int(shape["tokens"]) * (int(shape["k"]) // columns if columns else 0)
    return row_space(target, rows * groups, min(_group(shape), _PIECE) * _ELEMENT_BYTES)


def program(target: AscendTarget, shape: Shape, config: Config) -> Any:
    """quant(rows, eps, x [rows, K], q [rows, K], s [rows, groups]); a block per tile and group."""
    group, tile, dtype = _group(shape), int(config["rows"]), str(shape["dtype"])
    width = min(group, _PIECE)
    pieces = -(-group // width)
    groups, columns = _pairs(shape)
    with kernel("per_token_group_quant_int8") as k:
        rows, eps = k.scalar("rows"), k.float_scalar("eps")
        x = k.tensor("x", (rows, columns), dtype)
        q = k.tensor("q", (rows, columns), "int8")
        s = k.tensor("s", (rows, groups), "float32")
        first = k.block("x", T.ceildiv(rows, tile)) * tile
        g = k.block("y", groups)

        def read(start: Any) -> Any:
            """Columns start ... of the group in float32, 0 past its end."""
            raw = k.new((tile, width), dtype, lambda i, j: T.if_then_else(
                inside(start, i, j), x[first + i, g * group + start + j], constant(0, dtype)))
            return k.new((tile, width), "float32", lambda i, j: T.Cast("float32", raw[i, j]))

        def inside(start: Any, i: Any, j: Any) -> Any:
            there = first + i < rows
            if columns % group:
                there = T.And(there, g * group + start + j < columns)
            return T.And(there, start + j < group) if group % width else there

        def write(start: Any, wide: Any, scale: Any) -> None:
            codes = int8_codes(k, wide, scale)
            k.store(q, (tile, width), lambda i, j: (first + i, g * group + start + j),
                    lambda i, j: codes[i, j], lambda i, j: inside(start, i, j))

        top = k.fill((tile,), "float32", 0)
        if pieces == 1:
            wide = read(0)
            k.reduce("max", top, (tile, width), lambda i, j: T.fabs(wide[i, j]))
            scale = int8_scale(k, top, eps)
            write(0, wide, scale)
        else:
            with k.loop(pieces) as piece:
                part = read(piece * width)
                k.reduce("max", top, (tile, width), lambda i, j: T.fabs(part[i, j]))
            scale = int8_scale(k, top, eps)
            with k.loop(pieces) as piece:
                write(piece * width, read(piece * width), scale)
        k.store(s, (tile,), lambda i: (first + i, g), lambda i: scale[i],
                lambda i: first + i < rows)
    return k.func


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """Leading axes are flattened."""
    groups, columns = _pairs(shape)
    made = program(target, shape, config) if columns else None

    def run(x: Tensor, group_size: int, eps: float, *, out: Outputs) -> None:
        q, s = out
        if not x.numel():
            return
        rows = x.contiguous().view(-1, columns)
        target.launch(made, (-(-rows.shape[0] // int(config["rows"])), groups), rows.shape[0], eps,
                      rows, q, s, **compiler_flags(config))

    return run
