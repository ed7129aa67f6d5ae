"""What surrounds the GEMM tiles: activations to float32, row plans, spaces, and the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm.script import tirx as T

from ..fp8 import E4M3_MAX
from ..int8 import INT8_MAX
from ..numerics import as_dtype
from ..space import Space
from .emit import Buffer, Expr, put, scope, when, widen
from .exp import silu
from .fp8 import bits, encode_e4m3, floats, magnitude_bits
from .int8_cast import int8_code
from .registers import local
from .tiles import FP8, QUANTISED, Tiles, bits_of, storage, unit

if TYPE_CHECKING:
    from ...targets.base import VectorTarget

_SERIAL_WORK = 16_384                # elements below which waking the threads costs more
_LONG_K = 3072                       # columns of K whose float32 row crowds the first cache
_HEADER = 2                          # PLAN[0]: items, PLAN[1]: rows in them


def tensor(handle: Any, shape: tuple[Expr, ...], dtype: str) -> Buffer:
    """A parameter of any alignment: TVM takes 64 bytes for granted and would fault on a view."""
    align = as_dtype("int8" if dtype == FP8 else dtype).itemsize
    sizes = tuple(T.int64(s) if isinstance(s, int) else s for s in shape)
    return T.match_buffer(handle, sizes, storage(dtype), align=align)


def operand(handle: Any, shape: tuple[Expr, ...], dtype: str) -> Buffer:
    """A parameter that the tiles read: bfloat16 as its bits."""
    return tensor(handle, shape, bits_of(dtype))


def space(target: VectorTarget, decode: bool, w_dtype: str, pairs: bool, quarters: bool,
          k: int) -> Space:
    """Tiles and blocking; few rows tune the stream of weights, many rows the panels.

    Where converting is dear (codes) panels pay from four rows on, where nothing is converted
    (bfloat16 pairs) from 13, where codes are taken by the byte from 7, with eight lanes from 13
    (docs/facts.md); the last also gain from long runs. `k` is the larger K of the GEMMs.
    """
    tile = {16: ("6x4", "4x4", "4x6")}.get(target.lanes, ("3x4", "4x3", "2x4"))
    panel = {16: ("12x2", "8x3", "6x4")}.get(target.lanes, ("6x2", "4x3"))
    few = 3 if w_dtype in QUANTISED and not quarters else 12 if pairs else 6
    if target.lanes == 8:
        few = 12 if quarters else 5 if w_dtype == "bfloat16" else few
    panel_rows = (few, *(rows for rows in (3, 6, 12) if rows != few))
    ahead = _ahead(target.lanes, w_dtype, pairs, quarters, k)
    if decode:
        return Space({"tile": tile, "wide": (4,) if quarters else (4, 8),
                      "chunk": (128, 256, 512), "unroll": (1, 2), "order": ("item", "chunk"),
                      "kc": (2048,), "panel": panel[:1], "panel_rows": panel_rows,
                      "rows": (128,), "ahead": ahead})
    return Space({"tile": tile[:1], "wide": (4,), "chunk": (256, 128, 512), "unroll": (1,),
                  "order": ("item", "chunk"), "kc": (2048,), "panel": panel,
                  "panel_rows": panel_rows, "rows": (256, 128), "ahead": ahead[:1]})


def _ahead(lanes: int, w_dtype: str, pairs: bool, quarters: bool, k: int) -> tuple[int, int]:
    """By how many bytes a stream of weights is fetched early, best first (docs/facts.md).

    Where a row of X leaves no room in the first cache it makes the stream up to 1.35 times as
    fast, elsewhere it is level or loses.
    """
    if pairs:
        return 1024, 0
    size = 1 if w_dtype in QUANTISED else 2
    return (2048 * size, 0) if quarters or lanes == 8 and k >= _LONG_K else (0, 2048 * size)


def each_row(count: Expr, work: int, body: Callable[[Expr], None]) -> None:
    """body(row) for all rows: in parallel when there is enough to do."""
    def serial() -> None:
        with T.serial(count) as row:
            body(row)

    def parallel() -> None:
        with T.parallel(count) as row:
            body(row)

    when(count * work <= _SERIAL_WORK, serial, parallel)


def along(lanes: int, length: int, body: Callable[[Expr], None]) -> None:
    """body(column) for all columns, in vectors and a scalar tail."""
    if length >= lanes:
        with T.serial(length // lanes) as v, T.vectorized(lanes) as lane:
            body(v * lanes + lane)
    if length % lanes:
        with T.serial(length // lanes * lanes, length) as column:
            body(column)


def widen_row(lanes: int, X: Buffer, A: Buffer, scale: Buffer, row: Expr, k: int, dtype: str,
              block_k: int) -> None:
    """X[row] = float32 of A[row]; codes by their scale [row, K block]."""
    if dtype not in QUANTISED:
        along(lanes, k, lambda c: put(X, (row, c), widen(A[row, c], dtype)))
        return
    for first in range(0, k, block_k):
        def store(c: Expr, first: int = first) -> None:
            value = widen(A[row, first + c], dtype) * T.float32(unit(dtype))
            put(X, (row, first + c), value * scale[row, first // block_k])
        along(lanes, min(block_k, k - first), store)


def code_row(lanes: int, X: Buffer, A: Buffer, row: Expr, k: int) -> None:
    """X[row] = the bits of bfloat16 of the FP8 codes A[row], divided by 256: exact."""
    along(lanes, k, lambda c: put(
        X, (row, c), T.Cast("int16", bits(widen(A[row, c], FP8)) >> 16)))


def round_row(lanes: int, X: Buffer, A: Buffer, row: Expr, k: int, dtype: str,
              block_k: int, codes: str = FP8) -> None:
    """X[row] = A[row] after a round trip through FP8 or int8, as per_token_group_quant_* say."""
    largest = E4M3_MAX if codes == FP8 else INT8_MAX

    def one(first: int, length: int) -> None:
        with scope("group"):
            top, tops = local(1, "int32"), local(lanes, "int32")

            def read(c: Expr) -> Expr:
                return T.Cast("float32", A[row, first + c])

            with T.vectorized(lanes) as lane:
                put(tops, lane, bits(T.float32(1e-10)))
            with T.serial(length // lanes) as v, T.vectorized(lanes) as lane:
                put(tops, lane, T.max(tops[lane], magnitude_bits(read(v * lanes + lane))))
            put(top, 0, tops[0])
            for i in range(1, lanes):
                put(top, 0, T.max(top[0], tops[i]))
            if length % lanes:
                with T.serial(length // lanes * lanes, length) as c:
                    put(top, 0, T.max(top[0], magnitude_bits(read(c))))
            s = local(1)
            put(s, 0, floats(top[0]) / T.float32(largest))

            def store(c: Expr) -> None:
                if codes == FP8:
                    code = T.Cast("int8", encode_e4m3(read(c) / s[0]))
                else:
                    code = int8_code(read(c), s[0])
                put(X, (row, first + c), widen(code, codes) * T.float32(unit(codes)) * s[0])
            along(lanes, length, store)

    for first in range(0, k, block_k):
        one(first, min(block_k, k - first))


def scratch(g: Tiles) -> Buffer:
    """C of one task, with spare rows for the last tile."""
    shape = g.rows + max(g.mr, g.pm), g.halves * g.padded
    return T.alloc_buffer(shape, "float32", scope="global")


def write_tile(g: Tiles, C: Buffer, OUT: Buffer, rows: Expr, col: Expr, dtype: str,
               index: Callable[[Expr], tuple[Expr, ...]]) -> None:
    """OUT[*index(r), col + j] = C[r, j], or silu(gate) * up of the two halves.

    dtype "int16" stands for the bits of bfloat16.
    """
    with T.serial(rows) as r:
        if g.halves == 2:
            along(g.lanes, g.width, lambda j: put(
                C, (r, j), silu(C[r, j]) * C[r, g.padded + j]))
        along(g.lanes, g.width, lambda j: put(
            OUT, (*index(r), col + j),
            bfloat_bits(C[r, j]) if dtype == "int16" else T.Cast(dtype, C[r, j])))


def bfloat_bits(value: Expr) -> Expr:
    """The bits of a float32 rounded to bfloat16, as int16; a NaN stays one."""
    raw = bits(value)
    rounded = (raw + (T.int32(0x7FFF) + ((raw >> 16) & T.int32(1)))) >> 16
    quiet = T.Select(magnitude_bits(value) > T.int32(0x7F800000), T.int32(0x7FC0), rounded)
    return T.Cast("int16", quiet)


class Plan:
    """Items (expert, first row, rows) and, where rows are sorted, which row stands where.

    One int32 tensor: the header, three words an item, one a row, and one an expert.
    """

    def __init__(self, buffer: Buffer, limit: Expr):
        self.buffer = buffer
        self.items = buffer[0]
        self.total = buffer[1]
        self._rows = _HEADER + 3 * limit
        self._cursor = self._rows + limit

    @staticmethod
    def size(limit: Expr, experts: int) -> Expr:
        """int32 words for at most `limit` items and rows."""
        return _HEADER + 4 * limit + experts

    def expert(self, item: Expr) -> Expr:
        """The item's expert."""
        return T.Cast("int64", self.buffer[_HEADER + 3 * item])

    def first(self, item: Expr) -> Expr:
        """The item's first row."""
        return self.buffer[_HEADER + 3 * item + 1]

    def count(self, item: Expr) -> Expr:
        """The item's rows."""
        return self.buffer[_HEADER + 3 * item + 2]

    def span(self, item: Expr) -> tuple[Expr, Expr]:
        """The item's first row and how many there are."""
        return self.first(item), self.count(item)

    def row(self, position: Expr) -> Expr:
        """The row that the sort put there."""
        return self.buffer[self._rows + position]

    def clear(self) -> None:
        """No items yet."""
        put(self.buffer, 0, T.int32(0))
        put(self.buffer, 1, T.int32(0))

    def add(self, expert: Expr, first: Expr, count: Expr, at_most: int) -> None:
        """Append items for `count` rows from `first` on, about equal ones."""
        items = (count + (at_most - 1)) // at_most
        with T.serial(items) as part:
            base = _HEADER + 3 * self.buffer[0]
            start, end = (T.Cast("int64", count) * at // T.max(items, 1)
                          for at in (part, part + 1))
            put(self.buffer, base, T.Cast("int32", expert))
            put(self.buffer, base + 1, T.Cast("int32", first + start))
            put(self.buffer, base + 2, T.Cast("int32", end - start))
            put(self.buffer, 0, self.buffer[0] + 1)

    def sort(self, ids: Callable[[Expr], Expr], pairs: Expr, experts: int, at_most: int) -> None:
        """Counting sort of pairs by expert, in order; ids outside 0 .. experts-1 are dropped."""
        b, cursor = self.buffer, self._cursor

        def valid(p: Expr) -> Expr:
            return T.And(ids(p) >= 0, ids(p) < experts)

        self.clear()
        with T.serial(experts) as e:
            put(b, cursor + e, T.int32(0))
        with T.serial(pairs) as p, T.If(valid(p)), T.Then():
            put(b, cursor + ids(p), b[cursor + ids(p)] + 1)
        with T.serial(experts) as e, T.If(b[cursor + e] > 0), T.Then():
            self.add(e, b[1], b[cursor + e], at_most)
            put(b, 1, b[1] + b[cursor + e])
            put(b, cursor + e, b[1] - b[cursor + e])
        with T.serial(pairs) as p, T.If(valid(p)), T.Then():
            put(b, self._rows + b[cursor + ids(p)], T.Cast("int32", p))
            put(b, cursor + ids(p), b[cursor + ids(p)] + 1)


def each_task(items: Expr, chunks: int, order: str, body: Callable[[Expr, Expr], None]) -> None:
    """body(item, chunk) in parallel: neighbours share an item's rows, or a chunk's columns."""
    with T.parallel(items * chunks) as task:
        if order == "item":
            body(task // chunks, task % chunks)
        else:
            body(task % items, task // items)
