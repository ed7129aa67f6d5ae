"""Keys that become float32 while scores are computed, and are fetched two tiles ahead.

With 16 heads waiting for a cache row takes a fifth of its products' time and converting it a tenth;
both fit beside the products, which leave a third of the instruction slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from ..numerics import as_dtype
from .attention import Buffer, Expr, Tile, put
from .fetch import fence, fetch

_LINE = 64                           # bytes of a cache line
AHEAD = 2                            # tiles; one is 1 % slower, none 16 %


@dataclass(frozen=True)
class Feed:
    """Rows of a cache for the tiles of one block; emitted inside `importing()`."""

    tile: Tile
    keys: Buffer                     # the block's scratch
    source: Buffer                   # [elements], in dtype
    row: Buffer                      # int64: rows of the source that hold the block's keys, and
    dtype: str                       # those of AHEAD tiles more
    width: int                       # elements of a row of the source
    beside: Buffer | None = None     # [elements] of values that are read next, in dtype
    beside_width: int = 0

    @property
    def line(self) -> int:
        """Elements of a cache line."""
        return _LINE // as_dtype(self.dtype).itemsize

    @property
    def chunks(self) -> int:
        """Vectors of a key that are in whole lines."""
        return self.tile.q_steps // self.line * (self.line // self.tile.lanes)

    def products(self, jt: Expr, step: Callable[[Expr], None]) -> None:
        """step(d) for each element of the keys of tile jt, written before one by one vector."""
        t, per, last = self.tile, self.line // self.tile.lanes, self.chunks - 1
        done = self.chunks * t.lanes
        if self.chunks:
            self._vector(jt, 0)
            with T.serial(self.chunks // per) as line:
                self._ahead(jt, line)
                with T.serial(per) as c:
                    at = line * per + c
                    fence()
                    self._vector(jt, T.min(at + 1, last))
                    for u in range(t.lanes):
                        step(at * t.lanes + u)
        if done < t.q_steps:
            with T.serial(done, t.q_steps) as c:
                for j in range(t.nk):
                    k = jt * t.nk + j
                    put(self.keys, (k, c), T.Cast(
                        "float32", self.source[self.row[k] * self.width + c]))
            fence()
            with T.serial(done, t.q_steps) as d:
                step(d)

    def _vector(self, jt: Expr, c: Expr) -> None:
        """Vector c of the keys of tile jt."""
        t = self.tile
        for j in range(t.nk):
            k = jt * t.nk + j
            with T.vectorized(t.lanes) as l:
                put(self.keys, (k, c * t.lanes + l),
                    T.Cast("float32", self.source[self.row[k] * self.width + (c * t.lanes + l)]))

    def _ahead(self, jt: Expr, line: Expr) -> None:
        """Ask for a line of the keys of the next tile but one, and of their values."""
        for j in range(self.tile.nk):
            row = self.row[(jt + AHEAD) * self.tile.nk + j]
            fetch(self.source[row * self.width + line * self.line])
            if self.beside is not None:
                at = T.min(line * self.line, self.beside_width - 1)
                fetch(self.beside[row * self.beside_width + at])


def rows_of(tile: Tile) -> Buffer:
    """The place for a feed's rows."""
    return T.alloc_buffer((tile.key_rows + AHEAD * tile.nk,), "int64", scope="global")
