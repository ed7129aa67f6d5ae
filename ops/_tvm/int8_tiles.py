"""Sizes of the int8 GEMMs, and how their activations are packed.

A packed block of `lanes` rows holds for each scale block along K: the rows' scales as float32 bits,
then the words of K, four bytes each (for VNNI plus 128), or two int16 ("madd"). A word of all rows
is a vector; sixteen of them are an AMX tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from .emit import Buffer, Expr, put, when
from .int8dot import SIGNS, TILE, is_offset, tail_word, word_at

HEAD = 1                             # words before those of K: the scales
FEW = 4                              # rows that run along K: one thread reads at memory speed
FEW_PAIRS, TILE_PAIRS = 12, 6        # the same of "madd", where weights stay near for a few tiles
REGISTERS = ((4, 6), (2, 12), (1, 12))   # vectors of rows x columns: 24 of 32 accumulate
PAIRS = {16: ((4, 6), (2, 6), (1, 6)), 8: ((2, 6), (1, 6)), 4: ((2, 6), (1, 6))}   # of "madd"


@dataclass(frozen=True)
class Int8Tiles:
    """All that is static about one GEMM."""

    kind: str                        # int8dot.kind_of
    lanes: int
    n: int                           # columns (of each half)
    k: int
    block_n: int                     # rows and columns of W per scale
    block_k: int
    chunk: int                       # columns of a task
    rows: int                        # rows of an item at most
    halves: int = 1                  # 2: gate and up, W is [E, 2n, K]

    @property
    def step(self) -> int:
        """Columns of K under one scale."""
        return max(min(self.block_k, self.k), 1)

    @property
    def k_blocks(self) -> int:
        """Scales along K."""
        return -(-self.k // self.step)

    @property
    def even(self) -> bool:
        """Whether all scale blocks are of one length."""
        return self.k % self.step == 0

    @property
    def tiled(self) -> bool:
        """Whether AMX takes it: whole tiles of W along K, and rows of W to fill one."""
        return (self.kind == "amx" and self.even and self.step % 64 == 0 and self.width >= TILE)

    @property
    def offset(self) -> bool:
        """Whether packed activations are plus 128."""
        return is_offset(self.kind) and not self.tiled

    @property
    def pairs(self) -> bool:
        """Whether codes are multiplied as int16, two a lane, of weights widened beforehand."""
        return self.kind == "madd"

    @property
    def run(self) -> int:
        """Codes of a vector along K."""
        return 2 * self.lanes if self.pairs else 4 * self.lanes

    @property
    def few(self) -> int:
        """Rows of an item that runs along K."""
        return FEW_PAIRS if self.pairs else FEW

    @property
    def tile_rows(self) -> int:
        """Rows of a tile of it."""
        return TILE_PAIRS if self.pairs else FEW

    @property
    def ragged(self) -> bool:
        """Whether some scale block is not made of whole vectors."""
        return bool(self.step % self.run or self.k % self.run)

    @property
    def wide(self) -> int:
        """Vectors of rows that a tile has at most."""
        return (PAIRS[self.lanes] if self.pairs else REGISTERS)[0][0]

    def columns(self, rows: int) -> int:
        """Columns of a tile of so few rows that it runs along K."""
        if self.pairs and self.lanes < 16:       # 16 registers
            return {1: 6, 2: 4, 3: 3}.get(rows, 2)
        return min(8, (12 if self.k_blocks > 1 else 20) // rows)

    @property
    def slot(self) -> int:
        """Words of a packed row per scale block."""
        return HEAD + -(-self.step // (2 if self.pairs else 4))

    @property
    def words(self) -> int:
        """Words of a packed row."""
        return self.k_blocks * self.slot

    @property
    def width(self) -> int:
        """Columns of a task; the last chunk overlaps its neighbour rather than being narrower."""
        return min(self.chunk, self.n)

    @property
    def padded(self) -> int:
        """Columns of one half in the scratch."""
        return self.width

    @property
    def chunks(self) -> int:
        """Tasks per item."""
        return -(-self.n // self.width)

    def column(self, chunk: Expr) -> Expr:
        """The first column of a chunk."""
        return T.min(chunk * self.width, self.n - self.width)

    def blocks(self, rows: int, items: int) -> int:
        """Packed blocks at most: item i, whose rows start at r, has those from r // lanes + i."""
        return rows // self.lanes + items + 1

    def length(self, kb: Expr) -> Expr:
        """Columns of K under scale kb."""
        return self.step if self.even else T.min(self.step, self.k - kb * self.step)


def scratch(g: Int8Tiles) -> Buffer:
    """C of one task, with spare rows for the last tile."""
    return T.alloc_buffer((g.rows + g.wide * g.lanes, g.halves * g.padded), "float32",
                          scope="global")


def pack_block(g: Int8Tiles, A: Buffer, AS: Buffer, XP: Buffer, item: Expr, b: Expr, first: Expr,
               count: Expr, row: Callable[[Expr], Expr]) -> None:
    """Pack block b of the rows first .. first + count of an item; `row` maps them to A's."""
    L = g.lanes
    block = T.Cast("int64", first // L + item + b)

    def lane(l: Expr) -> None:
        r = T.Cast("int64", row(first + b * L + l))
        with T.serial(g.k_blocks) as kb:
            at, k0, length = kb * g.slot, kb * g.step, g.length(kb)
            put(XP, (block, at, l), T.reinterpret("int32", AS[r, kb]))
            if g.pairs:
                pairs(l, r, at, k0, length)
                return
            with T.serial(length // 4) as w:
                word = word_at(A, r, k0 + 4 * w)
                put(XP, (block, at + HEAD + w, l), word ^ T.int32(SIGNS) if g.offset else word)
            if g.step % 4 or g.k % 4:
                with T.If(length % 4 > 0), T.Then():
                    put(XP, (block, at + HEAD + length // 4, l),
                        tail_word(A, k0 + length, g.offset, r, k0 + length // 4 * 4))

    def pairs(l: Expr, r: Expr, at: Expr, k0: Expr, length: Expr) -> None:
        with T.serial(length // 2) as w:
            two = T.Cast("int16x2", A[r, T.Ramp(k0 + 2 * w, 1, 2)])
            put(XP, (block, at + HEAD + w, l), T.reinterpret("int32", two))
        if g.step % 2 or g.k % 2:
            with T.If(length % 2 > 0), T.Then():
                last = T.Cast("int32", A[r, k0 + length - 1]) & T.int32(0xFFFF)
                put(XP, (block, at + HEAD + length // 2, l), last)

    def nothing(l: Expr) -> None:
        with T.serial(g.words) as w:
            put(XP, (block, w, l), T.int32(0))

    with T.If(T.And(count > g.few, b * L < count)), T.Then(), T.serial(L) as l:
        when(b * L + l < count, lambda: lane(l), lambda: nothing(l))
