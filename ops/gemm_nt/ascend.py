"""Ascend lowering: a block of the grid for each tile of the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from .._ascend.fp8 import codes
from .._ascend.gemm import gemm_flags, gemm_of, operands, product, tile_space, write
from .._ascend.tile import kernel
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget


def space(target: AscendTarget, shape: Shape) -> Space:
    """Tiles for that many rows."""
    return tile_space(target, shape, int(shape["tokens"]))


def program(target: AscendTarget, shape: Shape, config: Config) -> Any:
    """gemm(rows, a [, a_scale], b [, b_scale], out)."""
    g = gemm_of(target, shape, config)
    with kernel("gemm_nt") as k:
        rows = k.scalar("rows")
        t = operands(k, target, g, rows, 1)
        first = k.block("x", T.ceildiv(rows, g.block_m)) * g.block_m
        column = k.block("y", -(-g.n // g.block_n)) * g.block_n
        acc = product(k, g, t, lambda i: first + i, rows - first, 0, column)
        write(k, g, t, acc, lambda i: first + i, rows - first, column)
    return k.func


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """Operands whose rows are not dense are copied."""
    made = program(target, shape, config)
    block_m, block_n = int(config["block_m"]), int(config["block_n"])

    def run(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, scale_n: int,
            scale_k: int, out_dtype: torch.dtype, *, out: Outputs) -> None:
        c = out[0]
        if not c.numel():
            return
        given = [codes(target, x.contiguous()) for x in (a, a_scale, b, b_scale) if x is not None]
        target.launch(made, (-(-c.shape[0] // block_m), -(-c.shape[1] // block_n)), c.shape[0],
                      *given, c, **gemm_flags(config))

    return run
