"""Ascend lowering: each expert's tiles are a list that a few programs walk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._ascend.grouped import grouped_space, launch, pieces_of_experts, program
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget


def space(target: AscendTarget, shape: Shape) -> Space:
    """Tiles for the expected rows of an expert."""
    rows = int(shape["expected_m"])
    return grouped_space(target, shape, rows, -(-rows // 128))


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """Rows past masked_m are neither read nor written."""
    made, n = program(target, shape, config), int(shape["n"])

    def run(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, masked_m: Tensor,
            expected_m: int | None, block_n: int, block_k: int, out_dtype: torch.dtype, *,
            out: Outputs) -> None:
        if not out[0].numel():
            return
        pieces, lengths = pieces_of_experts(masked_m, a.shape[1], int(config["block_m"]))
        launch(target, made, config, n, pieces, lengths, a.flatten(0, 1),
               None if a_scale is None else a_scale.flatten(0, 1), b.flatten(0, 1),
               None if b_scale is None else b_scale.flatten(0, 1), (out[0].view(-1, n),))

    return run
