"""Ascend lowering: the runs inside each window of rows are a list that a few programs walk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._ascend.grouped import grouped_space, launch, pieces_of_runs, program
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget


def space(target: AscendTarget, shape: Shape) -> Space:
    """Tiles for the rows of an expert; a window of few-row runs is shared by programs."""
    tokens = int(shape["tokens"])
    rows = -(-tokens // max(int(shape["e"]), 1))
    return grouped_space(target, shape, rows, -(-min(tokens, 128) // max(rows, 1)))


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """Rows of no expert are not read, and their output is left alone."""
    made, e, n = program(target, shape, config), int(shape["e"]), int(shape["n"])

    def run(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None,
            m_indices: Tensor, block_n: int, block_k: int, out_dtype: torch.dtype, *,
            out: Outputs) -> None:
        if not out[0].numel() or not e:
            return
        pieces, lengths = pieces_of_runs(m_indices, e, int(config["block_m"]))
        launch(target, made, config, n, pieces, lengths, a, a_scale, b.flatten(0, 1),
               None if b_scale is None else b_scale.flatten(0, 1), out)

    return run
