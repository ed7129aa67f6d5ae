"""What happens beside the products of scores: keys become float32, and later keys are fetched.

With 16 heads waiting for a cache row takes a fifth of its products' time and converting it a tenth;
both fit beside the products, which leave a third of the instruction slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from ..numerics import as_dtype
from .attention import UNROLL, Buffer, Expr, Tile, put, steps
from .fetch import fence, fetch

_LINE = 64                           # bytes of a cache line
AHEAD = 2                            # tiles; one is 1 % slower, none 16 %


@dataclass(frozen=True)
class Lines:
    """The cache lines of rows."""

    source: Buffer                   # [elements]
    width: int                       # elements of a row
    dtype: str

    @property
    def each(self) -> int:
        """Elements of a line."""
        return _LINE // as_dtype(self.dtype).itemsize

    @property
    def count(self) -> int:
        """Lines that a row touches, if it starts with one."""
        return -(-self.width // self.each)

    def fetch(self, row: Expr, line: Expr) -> None:
        """Ask for a line of a row; the last one for those after it."""
        at = line * self.each
        fetch(self.source[row * self.width + (
            at if isinstance(line, int) else T.min(at, self.width - 1))])


@dataclass(frozen=True)
class Part:
    """Elements first..end of a key, which become float32 in the same way."""

    first: int
    end: int
    line: int                        # of them in a cache line
    element: Callable[[int, Expr, Expr, Expr], Expr]     # key of the tile, row, c, l: element c + l
    begin: Callable[[int, Expr], None] | None = None     # key of the tile, row: before its elements


def plain(lines: Lines) -> Part:
    """The elements of a row as they stand."""
    def element(j: int, row: Expr, c: Expr, l: Expr) -> Expr:
        return T.Cast("float32", lines.source[row * lines.width + (c + l)])

    return Part(0, lines.width, lines.each, element)


@dataclass(frozen=True)
class Feed:
    """Rows of a cache for the tiles of one block; emitted inside `importing()`."""

    tile: Tile
    keys: Buffer                     # the block's scratch
    parts: tuple[Part, ...]
    row: Buffer                      # int64: rows that hold the block's keys, and those of AHEAD
    lines: Lines                     # tiles more; they are fetched, and
    beside: Lines | None = None      # values that are read next

    def products(self, jt: Expr, first: int, count: int, step: Callable[[Expr], None]) -> None:
        """step(d) for each element of the keys of tile jt, written before one by one vector."""
        line = 0
        for part in self.parts:
            if part.begin:
                for j in range(self.tile.nk):
                    part.begin(j, self.row[jt * self.tile.nk + j])
            self._products(part, jt, line, step)
            line += (part.end - part.first) // part.line

    def _products(self, part: Part, jt: Expr, line: int, step: Callable[[Expr], None]) -> None:
        t, per = self.tile, part.line // self.tile.lanes
        lines = (part.end - part.first) // part.line
        done = part.first + lines * part.line
        if lines:
            self._vector(part, jt, 0)
            with T.serial(lines) as i:
                self._ahead(jt, line + i)
                with T.serial(per) as c:
                    at = i * per + c
                    fence()
                    self._vector(part, jt, T.min(at + 1, lines * per - 1))
                    for u in range(t.lanes):
                        step(part.first + (at * t.lanes + u))
        if done < part.end:
            with T.serial(done, part.end) as d:
                for j in range(t.nk):
                    k = jt * t.nk + j
                    put(self.keys, (k, d), part.element(j, self.row[k], d - part.first, 0))
            fence()
            with T.serial(done, part.end) as d:
                step(d)

    def _vector(self, part: Part, jt: Expr, v: Expr) -> None:
        """Vector v of a part of the keys of tile jt."""
        t = self.tile
        for j in range(t.nk):
            k, c = jt * t.nk + j, v * t.lanes
            with T.vectorized(t.lanes) as l:
                put(self.keys, (k, part.first + c + l), part.element(j, self.row[k], c, l))

    def _ahead(self, jt: Expr, line: Expr) -> None:
        """Ask for a line of the keys of the next tile but one, and of their values."""
        for j in range(self.tile.nk):
            row = self.row[(jt + AHEAD) * self.tile.nk + j]
            self.lines.fetch(row, line)
            if self.beside is not None:
                self.beside.fetch(row, line)


@dataclass(frozen=True)
class Ahead:
    """Rows of the next block of keys, fetched while this one's are used; inside `importing()`."""

    tile: Tile
    row: Buffer                      # int64: rows of this block's keys, then of the next one's
    n: Expr                          # keys of this block
    lines: Lines

    def products(self, jt: Expr, first: int, count: int, step: Callable[[Expr], None]) -> None:
        """step(d) for `count` elements; beside them a share of the lines of tile jt."""
        t, lines = self.tile, self.lines.count
        total = t.nk * lines
        per = -(-total // (t.q_steps // UNROLL))

        def beside(i: Expr) -> None:
            for u in range(per):
                at = T.min(i * per + u, total - 1)
                self.lines.fetch(self.row[self.n + jt * t.nk + at // lines], at % lines)

        steps(first, count, step, beside)


def rows_of(tile: Tile) -> Buffer:
    """The place for the rows of a block's keys and of those that are fetched."""
    more = tile.key_rows if tile.pairs else AHEAD * tile.nk
    return T.alloc_buffer((tile.key_rows + more,), "int64", scope="global")
