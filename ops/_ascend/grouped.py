"""Grouped GEMMs: a program walks a list of pieces, rows of one expert that stand together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from ..space import Config, Space
from ..spec import Outputs, Shape
from .fp8 import codes
from .gemm import gemm_flags, gemm_of, operands, product, tile_space, write
from .tile import kernel

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget

FIELDS = 3                           # of a piece: first row, rows, expert


def grouped_space(target: AscendTarget, shape: Shape, rows: int, pieces: int) -> Space:
    """Tiles, and programs that share one list; `pieces` is the usual length of a list."""
    tiles = tile_space(target, shape, rows)
    lanes = 1 << max(pieces - 1, 0).bit_length()
    first = min(lanes, 8)
    choices = (first, *(n for n in (1, 2, 4, 8) if n != first))
    return Space({**tiles.knobs, "lanes": choices}, tiles.where)


def program(target: AscendTarget, shape: Shape, config: Config) -> Any:
    """grouped_gemm(rows, lists, room, pieces [lists, room, 3], lengths [lists], a ... out)."""
    g, lanes = gemm_of(target, shape, config), int(config["lanes"])
    with kernel("grouped_gemm") as k:
        rows, lists, room = k.scalar("rows"), k.scalar("lists"), k.scalar("room")
        pieces = k.tensor("pieces", (lists, room, FIELDS), "int32")
        lengths = k.tensor("lengths", (lists,), "int32")
        t = operands(k, target, g, rows, int(shape["e"]))
        at = k.block("x", lists)
        column = k.block("y", -(-g.n // g.block_n)) * g.block_n
        lane = k.block("z", lanes)
        with k.loop(T.max(lengths[at] - lane + lanes - 1, 0) // lanes) as turn:
            piece = turn * lanes + lane
            first, count, expert = (pieces[at, piece, f] for f in range(FIELDS))
            acc = product(k, g, t, lambda i: first + i, count, expert, column)
            write(k, g, t, acc, lambda i: first + i, count, column)
    return k.func


def launch(target: AscendTarget, made: Any, config: Config, n: int, pieces: Tensor,
           lengths: Tensor, a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None,
           out: Outputs) -> None:
    """Run `program` on flat operands."""
    given = [codes(target, x.contiguous()) for x in (a, a_scale, b, b_scale) if x is not None]
    grid = pieces.shape[0], -(-n // int(config["block_n"])), int(config["lanes"])
    target.launch(made, grid, a.shape[0], *pieces.shape[:2], pieces.contiguous(),
                  lengths.contiguous(), *given, *out, **gemm_flags(config))


def pieces_of_experts(masked_m: Tensor, m_max: int, block_m: int) -> tuple[Tensor, Tensor]:
    """Lists of the tiles of each expert, whose rows start at e * m_max."""
    e = torch.arange(masked_m.shape[0], dtype=torch.int32, device=masked_m.device)
    first = torch.arange(0, m_max, block_m, dtype=torch.int32, device=masked_m.device)
    rows = masked_m.clamp(0, m_max)
    starts = e[:, None] * m_max + first
    counts = (rows[:, None] - first).clamp(0, block_m)
    pieces = torch.stack((starts, counts, e[:, None].expand_as(starts)), -1)
    return pieces.int(), ((rows + block_m - 1) // block_m).int()


def pieces_of_runs(m_indices: Tensor, experts: int, block_m: int) -> tuple[Tensor, Tensor]:
    """Lists of the runs of one expert inside each window of block_m rows.

    Nothing here waits for the host: sizes follow from the number of rows.
    """
    m, device = m_indices.shape[0], m_indices.device
    windows = -(-m // block_m)
    expert = torch.full((windows * block_m,), -1, dtype=torch.int32, device=device)
    expert[:m] = torch.where((m_indices >= 0) & (m_indices < experts), m_indices, -1)
    expert = expert.view(windows, block_m)
    starts = expert >= 0
    starts[:, 1:] &= expert[:, 1:] != expert[:, :-1]
    run = starts.cumsum(1) - 1       # of each row; what belongs to no run goes to a spare place
    place = torch.where(expert >= 0, run, block_m)
    row = torch.arange(windows * block_m, dtype=torch.int32, device=device).view(windows, block_m)

    def spread(values: Tensor, how: str, initial: int) -> Tensor:
        into = torch.full((windows, block_m + 1), initial, dtype=torch.int32, device=device)
        return into.scatter_reduce(1, place, values, how)[:, :block_m]

    first = spread(row, "amin", windows * block_m)
    count = spread(torch.ones_like(row), "sum", 0)
    owner = spread(expert, "amax", 0)
    return torch.stack((first, count, owner), -1), starts.sum(1).int()
