"""Rows into and out of the scratch of attention.py: plain, bfloat16 pairs and fp8 codes.

Pairs of values are two keys of one feature. They are made from two rows of feature pairs by masks
and shifts alone, which leaves a vector of even features beside one of odd features; the output has
the same order until it is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from .attention import HIGH, LOW, Block, Buffer, Expr, Tile, put, scope, when
from .exp2 import LN_2
from .fetch import fetch
from .fp8 import bits, decode_e4m3
from .registers import local
from .transpose import COLUMNS, transpose

Row = Callable[[Expr], Expr]         # element of an operand -> its float32 or its pair


def takes_pairs(dots: tuple[str, ...], dtype: str, kv_dtype: str, *widths: int) -> bool:
    """Whether both products run on bfloat16 pairs: they must be exact, and widths even."""
    return ("bf16" in dots and dtype == "bfloat16" and kv_dtype in ("bfloat16", "fp8")
            and not any(w % 2 for w in widths))


def code_pair(codes: Expr) -> Expr:
    """The pair of two e4m3 codes in the low half of an int32; exact, NaN codes read as 480."""
    low, high = (bits(decode_e4m3(c)) for c in (codes, codes >> T.int32(8)))
    return ((low >> T.int32(16)) & T.int32(LOW)) | (high & T.int32(HIGH))


def along(lanes: int, first: Any, end: int, body: Callable[[Expr], None]) -> None:
    """body(c) for first <= c < end: in vectors as far as they go."""
    vectors = (end - first) // lanes
    if vectors:
        with T.serial(vectors) as c, T.vectorized(lanes) as l:
            body(first + c * lanes + l)
    if first + vectors * lanes < end:
        with T.serial(first + vectors * lanes, end) as c:
            body(c)


def copy(t: Tile, out: Buffer, index: tuple[Expr, ...], row: Row, first: int, end: int) -> None:
    """out[index, c] = row(c - first) for first <= c < end."""
    along(t.lanes, first, end, lambda c: put(out, (*index, c), row(c - first)))


def zero(t: Tile, out: Buffer, index: tuple[Expr, ...], first: int, end: int) -> None:
    """out[index, c] = 0 for first <= c < end."""
    along(t.lanes, first, end, lambda c: put(out, (*index, c), T.Cast(t.unit, 0)))


def load_queries(t: Tile, block: Block, count: Expr, rows: Expr,
                 element: Callable[[Expr, Expr], Expr]) -> None:
    """The query panels: row r stands in lane r % lanes; rows past count are 0.

    element(r, d) is a load from the caller's tensor, whose rows may stand far apart.
    """
    V, N = t.lanes, t.lanes * COLUMNS
    whole = t.q_steps // COLUMNS * COLUMNS

    def row(r: Expr) -> Row:
        return lambda d: element(r, d) if t.pairs else T.Cast("float32", element(r, d))

    with T.serial(count // V) as v:
        with T.serial(whole // COLUMNS) as c, scope("queries"):
            piece = local(N, t.unit)
            for i in range(V):
                fetch(element(T.min((v + 1) * V + i, count - 1), c * COLUMNS))
                with T.vectorized(COLUMNS) as l:
                    put(piece, i * COLUMNS + l, row(v * V + i)(c * COLUMNS + l))
            put(block.q, (v, T.Ramp(c * N, 1, N)),
                transpose(piece[T.Ramp(0, 1, N)], V, t.unit))
        with T.serial(V) as i, T.serial(whole, t.q_steps) as d:
            put(block.q, (v, d * V + i), row(v * V + i)(d))
    with T.serial(count // V * V, rows) as r, T.If(r < count):
        with T.Then(), T.serial(t.q_steps) as d:
            put(block.q, (r // V, d * V + r % V), row(r)(d))
        with T.Else(), T.serial(t.q_steps) as d:
            put(block.q, (r // V, d * V + r % V), T.Cast(t.unit, 0))


def pair_rows(t: Tile, values: Buffer, k: Expr, low: Row, high: Row, end: int) -> None:
    """values[k] = rows low and high of feature pairs, as key pairs of even, then odd features.

    `end` is the number of feature pairs; whole vectors of them must be readable.
    """
    with T.serial(-(-end // t.lanes)) as c:
        with T.vectorized(t.lanes) as l:
            put(values, (k, 2 * c * t.lanes + l),
                (low(c * t.lanes + l) & T.int32(LOW)) | (high(c * t.lanes + l) << T.int32(16)))
        with T.vectorized(t.lanes) as l:
            put(values, (k, (2 * c + 1) * t.lanes + l),
                ((low(c * t.lanes + l) >> T.int32(16)) & T.int32(LOW))
                | (high(c * t.lanes + l) & T.int32(HIGH)))


def drop_odd(t: Tile, values: Buffer, n: Expr) -> None:
    """Zero the second key of the last pair when n keys are an odd number."""
    with when(n % 2 == 1):
        along(t.lanes, 0, t.columns, lambda c: put(values, (n // 2, c),
                                                   values[n // 2, c] & T.int32(LOW)))


def nearest_pair(low: Expr, high: Expr) -> Expr:
    """Two float32 as bfloat16 in one int32, to nearest even."""
    def rounded(value: Expr) -> Expr:
        raw = bits(value)
        return raw + (T.int32(0x7FFF) + ((raw >> T.int32(16)) & T.int32(1)))

    return ((rounded(low) >> T.int32(16)) & T.int32(LOW)) | (rounded(high) & T.int32(HIGH))


def store_output(t: Tile, out: Buffer, index: tuple[Expr, ...], row: Row, dtype: str) -> None:
    """out[index] = the first d_v features of row(c), a row of `acc`; pairs if t has pairs."""
    if not t.pairs:
        along(t.lanes, 0, t.d_v, lambda c: put(out, (*index, c), T.Cast(dtype, row(c))))
        return
    V = t.lanes
    with scope("store"):
        even = local(V)
        odd = local(V)

        def block(c: Any, count: int) -> None:
            with T.vectorized(V) as l:           # stores between: rounding repeats its argument
                put(even, l, row(2 * c * V + l))
            with T.vectorized(V) as l:
                put(odd, l, row((2 * c + 1) * V + l))
            with T.vectorized(count) as l:
                put(out, (*index, c * V + l), nearest_pair(even[l], odd[l]))

        whole, rest = divmod(t.d_v // 2, V)
        if whole:
            with T.serial(whole) as c:
                block(c, V)
        if rest:
            block(whole, rest)


def inverse(total: Expr) -> Expr:
    """1 / total; 0 for a row that saw no key."""
    return T.if_then_else(total > T.float32(0), T.float32(1) / total, T.float32(0))


def log_sum(top: Expr, total: Expr) -> Expr:
    """The natural log-sum-exp from a row's maximum (in log2) and sum."""
    return T.if_then_else(total > T.float32(0), top * T.float32(LN_2) + T.log(total),
                          -T.infinity("float32"))

