"""Ascend lowering: tiles of rows and columns on the vector cores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from tvm.script.ir_builder import tirx as T

from .._ascend.casts import compiler_flags, narrowed, row_space, silu_mul
from .._ascend.tile import kernel
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget

_ELEMENT_BYTES = 20                  # gate, up and what lies between them and y, twice where copied


def space(target: AscendTarget, shape: Shape) -> Space:
    """Rows and columns of a tile."""
    h = int(shape["h"])
    columns = tuple(c for c in (512, 256, 1024, 128) if c < 2 * max(h, 128))
    made = row_space(target, int(shape["tokens"]) * -(-h // columns[0]),
                     columns[0] * _ELEMENT_BYTES)
    return Space({**made.knobs, "columns": columns})


def program(target: AscendTarget, shape: Shape, config: Config) -> Any:
    """silu_mul(rows, x [rows, 2 H], y [rows, H])."""
    h, dtype = int(shape["h"]), str(shape["dtype"])
    tile = int(config["rows"]), int(config["columns"])
    with kernel("silu_mul") as k:
        rows = k.scalar("rows")
        x, y = k.tensor("x", (rows, 2 * h), dtype), k.tensor("y", (rows, h), dtype)
        r = k.block("x", T.ceildiv(rows, tile[0])) * tile[0]
        c = k.block("y", -(-h // tile[1])) * tile[1]

        def inside(i: Any, j: Any) -> Any:
            return T.And(r + i < rows, c + j < h) if h % tile[1] else r + i < rows

        gate = k.new(tile, dtype, lambda i, j: x[r + i, c + j], inside)
        up = k.new(tile, dtype, lambda i, j: x[r + i, h + c + j], inside)
        product = silu_mul(k, gate, up)
        k.store(y, tile, lambda i, j: (r + i, c + j), lambda i, j: narrowed(product[i, j], dtype),
                inside)
    return k.func


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """Leading axes are flattened."""
    h = int(shape["h"])
    made = program(target, shape, config) if h else None

    def run(x: Tensor, *, out: Outputs) -> None:
        if not x.numel():
            return
        rows = x.contiguous().view(-1, 2 * h)
        grid = -(-rows.shape[0] // int(config["rows"])), -(-h // int(config["columns"]))
        target.launch(made, grid, rows.shape[0], rows, out[0], **compiler_flags(config))

    return run
