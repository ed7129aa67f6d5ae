"""Ascend lowering: tiles within one block of scales on the vector cores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from .._ascend.casts import compiler_flags, narrowed, row_space
from .._ascend.fp8 import codes, decoded, stored
from .._ascend.tile import kernel
from ..fp8 import scale_count
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget

_ELEMENT_BYTES = 20


def space(target: AscendTarget, shape: Shape) -> Space:
    """Rows of a tile: they divide a block's."""
    block = int(shape["block_size"])
    made = row_space(target, int(shape["n"]) * scale_count(int(shape["k"]), block),
                     block * _ELEMENT_BYTES)
    rows = tuple(r for r in made.knobs["rows"] if block % int(r) == 0)
    return Space({**made.knobs, "rows": rows or (1,)})


def program(target: AscendTarget, shape: Shape, config: Config) -> Any:
    """dequant(n, q [n, K], s [ceil(n / block), ceil(K / block)], w [n, K])."""
    columns, block, dtype = int(shape["k"]), int(shape["block_size"]), str(shape["dtype"])
    tile = int(config["rows"]), block
    with kernel("weight_dequant") as k:
        n = k.scalar("n")
        held = stored(target, "float8_e4m3fn")
        q = k.tensor("q", (n, columns), held)
        s = k.tensor("s", (T.ceildiv(n, block), scale_count(columns, block)), "float32")
        w = k.tensor("w", (n, columns), dtype)
        r = k.block("x", T.ceildiv(n, tile[0])) * tile[0]
        column = k.block("y", scale_count(columns, block))
        c = column * block

        def inside(i: Any, j: Any) -> Any:
            return T.And(r + i < n, c + j < columns) if columns % block else r + i < n

        raw = k.new(tile, held, lambda i, j: q[r + i, c + j], inside)
        if target.fp8 == "native":
            wide = k.new(tile, "float32", lambda i, j: T.Cast("float32", raw[i, j]))
        else:
            wide = decoded(k, tile, lambda i, j: raw[i, j], "float32", nan=True)
        k.store(w, tile, lambda i, j: (r + i, c + j), lambda i, j: narrowed(
            wide[i, j] * s[r // block, column], dtype), inside)
    return k.func


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """UE8M0 scales are widened first."""
    made, block = program(target, shape, config), int(shape["block_size"])

    def run(q: Tensor, s: Tensor, block_size: int, dtype: torch.dtype, *, out: Outputs) -> None:
        if not q.numel():
            return
        grid = -(-q.shape[0] // int(config["rows"])), scale_count(q.shape[1], block)
        target.launch(made, grid, q.shape[0], codes(target, q.contiguous()),
                      s.float().contiguous(), out[0], **compiler_flags(config))

    return run
