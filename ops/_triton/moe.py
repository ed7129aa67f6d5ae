"""Rows by expert on the device: which (token, slot) pairs each row tile of a grouped GEMM takes.

A pair is numbered token * top_k + slot; ids outside [0, E) belong to no tile. Two forms, both
stable, without atomics and without a word to the host:

- few pairs: every program finds its own tile by comparing all ids (`led_tile`): no launch at all.
  There are as many tiles as pairs; tile t exists if pair t leads one: if a multiple of BLOCK_M
  pairs before it have its expert.
- many pairs: a counting sort in three launches (`sort_pairs`); `planned_tile` reads its tables.

The tables stand in one int32 tensor, the plan, so that a kernel takes one pointer and offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from ...targets.base import GridTarget

CHUNK = 256                          # pairs a program
_RANKED = 32                         # of which each is compared with so many at a time
LED_PAIRS = tl.constexpr(512)        # up to that many, looking at all ids is the cheaper form
_SCANNED = 16                        # chunks whose counts are added up at a time


@dataclass(frozen=True)
class Plan:
    """Offsets into the plan: [0] is the number of tiles, then come the tables."""

    pairs: int
    experts: int
    block_m: int

    @property
    def tiles(self) -> int:
        """The most tiles that any ids can make: one more full tile for each expert reached."""
        reached = min(self.pairs, self.experts)
        return reached + (self.pairs - reached) // self.block_m

    @property
    def bins(self) -> int:
        """Experts, and one bin for foreign ids, rounded up."""
        return int(triton.next_power_of_2(self.experts + 1))

    @property
    def chunks(self) -> int:
        """Programs that count."""
        return -(-self.pairs // CHUNK)

    @property
    def table(self) -> int:
        """Expert, first row and rows of each tile."""
        return 4

    @property
    def order(self) -> int:
        """Pairs sorted by expert."""
        return self.table + 3 * self.tiles

    @property
    def counts(self) -> int:
        """Pairs of each expert in each chunk."""
        return self.order + self.pairs

    @property
    def before(self) -> int:
        """Pairs of each expert in earlier chunks."""
        return self.counts + self.chunks * self.bins

    @property
    def totals(self) -> int:
        """Of each expert: its pairs, its first row, its first tile."""
        return self.before + self.chunks * self.bins

    @property
    def size(self) -> int:
        """int32 elements of the whole plan."""
        return self.totals + 3 * self.bins


@triton.jit
def bin_of(ids, at, pairs, E: tl.constexpr):
    """The expert of each pair; E for foreign ids and past the end."""
    expert = tl.load(ids + at, mask=at < pairs, other=-1)
    return tl.where((expert >= 0) & (expert < E), expert, E)


@triton.jit(do_not_specialize=["pairs", "counts"])
def count_pairs(ids, plan, pairs, counts, E: tl.constexpr, BINS: tl.constexpr,
                CHUNK: tl.constexpr):
    """How many pairs of a chunk each expert has."""
    chunk = tl.program_id(0)
    expert = bin_of(ids, chunk * CHUNK + tl.arange(0, CHUNK), pairs, E)
    tl.store(plan + counts + chunk * BINS + tl.arange(0, BINS), tl.histogram(expert, BINS))


@triton.jit(do_not_specialize=["chunks", "counts", "before", "totals"])
def scan_counts(plan, chunks, counts, before, totals, BLOCK_M: tl.constexpr, E: tl.constexpr,
                BINS: tl.constexpr, ROWS: tl.constexpr):
    """Running sums over the chunks, then over the experts; the number of tiles. One program."""
    expert = tl.arange(0, BINS)
    total = tl.zeros((BINS,), tl.int32)
    for first in range(0, chunks, ROWS):
        chunk = first + tl.arange(0, ROWS)
        at = (chunk * BINS)[:, None] + expert[None, :]
        count = tl.load(plan + counts + at, mask=(chunk < chunks)[:, None], other=0)
        earlier = tl.cumsum(count, 0) - count + total[None, :]
        tl.store(plan + before + at, earlier, mask=(chunk < chunks)[:, None])
        total += tl.sum(count, 0)
    total = tl.where(expert < E, total, 0)
    tiles = (total + BLOCK_M - 1) // BLOCK_M
    tl.store(plan + totals + expert, total)
    tl.store(plan + totals + BINS + expert, tl.cumsum(total, 0) - total)
    tl.store(plan + totals + 2 * BINS + expert, tl.cumsum(tiles, 0) - tiles)
    tl.store(plan, tl.sum(tiles, 0))


@triton.jit(do_not_specialize=["pairs", "table", "order", "before", "totals"])
def place_pairs(ids, plan, pairs, table, order, before, totals, BLOCK_M: tl.constexpr,
                E: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr, STEP: tl.constexpr):
    """Every pair of a chunk goes to its row; the first of each tile describes the tile."""
    chunk = tl.program_id(0)
    i = tl.arange(0, CHUNK)
    expert = bin_of(ids, chunk * CHUNK + i, pairs, E)
    ours = expert < E
    rank = tl.zeros((CHUNK,), tl.int32)
    for first in range(0, CHUNK, STEP):
        j = first + tl.arange(0, STEP)
        other = bin_of(ids, chunk * CHUNK + j, pairs, E)
        earlier = (expert[:, None] == other[None, :]) & (j[None, :] < i[:, None])
        rank += tl.sum(earlier.to(tl.int32), 1)
    rank += tl.load(plan + before + chunk * BINS + expert, mask=ours, other=0)
    row = rank + tl.load(plan + totals + BINS + expert, mask=ours, other=0)
    tl.store(plan + order + row, chunk * CHUNK + i, mask=ours)
    leads = ours & (rank % BLOCK_M == 0)
    tile = tl.load(plan + totals + 2 * BINS + expert, mask=leads, other=0) + rank // BLOCK_M
    total = tl.load(plan + totals + expert, mask=leads, other=0)
    tl.store(plan + table + 3 * tile, expert, mask=leads)
    tl.store(plan + table + 3 * tile + 1, row, mask=leads)
    tl.store(plan + table + 3 * tile + 2, tl.minimum(total - rank, BLOCK_M), mask=leads)


def sort_pairs(target: GridTarget, ids: Tensor, plan: Plan) -> Tensor:
    """Fill a plan for int32 ids [pairs], contiguous."""
    made = torch.empty(plan.size, dtype=torch.int32, device=ids.device)
    sizes = {"E": plan.experts, "BINS": plan.bins, "num_warps": 8}
    target.launch(count_pairs, (plan.chunks,), ids, made, plan.pairs, plan.counts, CHUNK=CHUNK,
                  **sizes)
    target.launch(scan_counts, (1,), made, plan.chunks, plan.counts, plan.before, plan.totals,
                  BLOCK_M=plan.block_m, ROWS=_SCANNED, **sizes)
    target.launch(place_pairs, (plan.chunks,), ids, made, plan.pairs, plan.table, plan.order,
                  plan.before, plan.totals, BLOCK_M=plan.block_m, CHUNK=CHUNK, STEP=_RANKED,
                  **sizes)
    return made


@triton.jit
def planned_expert(plan, table, tile):
    """The expert of a tile; -1 past the last tile."""
    expert = -1
    if tile < tl.load(plan):
        expert = tl.load(plan + table + 3 * tile)
    return expert


@triton.jit
def planned_rows(plan, table, order, tile, BLOCK_M: tl.constexpr):
    """Pairs int32 [BLOCK_M] of a tile that exists, and which of them are there."""
    m = tl.arange(0, BLOCK_M)
    there = m < tl.load(plan + table + 3 * tile + 2)
    row = tl.load(plan + table + 3 * tile + 1) + m
    return tl.load(plan + order + row, mask=there, other=0), there


@triton.jit
def led_expert(ids, tile, E: tl.constexpr, BLOCK_M: tl.constexpr):
    """The expert of the tile that pair `tile` leads; -1 if it leads none."""
    expert = tl.load(ids + tile)
    before = 0
    for first in range(0, tile, LED_PAIRS):
        j = first + tl.arange(0, LED_PAIRS)
        same = tl.load(ids + j, mask=j < tile, other=-1) == expert
        before += tl.sum(same.to(tl.int32), 0)
    return tl.where((before % BLOCK_M == 0) & (expert >= 0) & (expert < E), expert, -1)


@triton.jit
def led_rows(ids, pairs, tile, expert, BLOCK_M: tl.constexpr):
    """Pairs int32 [BLOCK_M] of the tile that pair `tile` leads, and which of them are there."""
    STEP: tl.constexpr = 2048 // BLOCK_M         # ids at a time: 16 comparisons a thread
    m = tl.arange(0, BLOCK_M)
    pair = tl.zeros((BLOCK_M,), tl.int32)
    found = 0
    for first in range(tile, pairs, STEP):
        j = first + tl.arange(0, STEP)
        same = (tl.load(ids + j, mask=j < pairs, other=-1) == expert).to(tl.int32)
        rank = found + tl.cumsum(same, 0) - same
        hit = (same[None, :] != 0) & (rank[None, :] == m[:, None])
        pair += tl.sum(tl.where(hit, j[None, :], 0), 1)
        found += tl.sum(same, 0)
    return pair, m < found


@triton.jit
def tile_expert(ids, plan, table, tile, E: tl.constexpr, BLOCK_M: tl.constexpr,
                LED: tl.constexpr):
    """The expert of a tile, -1 where there is none; unless LED by the plan."""
    if LED:
        return led_expert(ids, tile, E, BLOCK_M)
    else:
        return planned_expert(plan, table, tile)


@triton.jit
def tile_rows(ids, plan, pairs, table, order, tile, expert, BLOCK_M: tl.constexpr,
              LED: tl.constexpr):
    """Pairs [BLOCK_M] of a tile that exists, and which are there; unless LED by the plan."""
    if LED:
        return led_rows(ids, pairs, tile, expert, BLOCK_M)
    else:
        return planned_rows(plan, table, order, tile, BLOCK_M)
