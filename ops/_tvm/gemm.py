"""CPU tiles of X @ W^T on weights as they stand in a checkpoint: [E, N, K], never packed.

A tile is a block of dot products: MR x NR vector accumulators run along K, summed across lanes
once at the end (register tiling as in Goto and van de Geijn 2008, with the reduction in the
lanes). One task is one item (rows of one expert) times one chunk of columns. Few rows stream the
weights and convert them in registers; many rows convert a panel of the chunk to float32 once.

These are plain Python functions that emit statements into the TVMScript function that calls them:
an order of magnitude faster to parse than T.inline, which walks the Python stack at every use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from .tiles import FP8, Tiles

_HALF_MASK = 0xBF80 - (1 << 16)      # sign and the seven magnitude bits of e4m3, moved into float16
_HALF_SCALE = 256.0                  # two to float16's exponent bias (15) less that of e4m3 (7)

Expr = Any                           # a TVM expression
Buffer = Any                         # a TVM buffer


def widen(value: Expr, dtype: str, lanes: int = 1) -> Expr:
    """The float32 value of a stored element (or vector); an fp8 element comes divided by 256.

    e4m3 bits moved by seven are a float16 of value / 256, exact for all finite codes, subnormals
    included; one hardware conversion follows. The NaN code reads as 480.
    """
    if dtype == FP8:
        half = (T.Cast(vector("int16", lanes), value) << T.int16(7)) & T.int16(_HALF_MASK)
        return T.Cast(vector("float32", lanes), T.reinterpret(vector("float16", lanes), half))
    return T.Cast(vector("float32", lanes), value)


def vector(dtype: str, lanes: int) -> str:
    """TVM's name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def put(buffer: Buffer, index: Expr, value: Expr) -> None:
    """buffer[index] = value."""
    T.buffer_store(buffer, value, list(index) if isinstance(index, tuple) else [index])


def when(condition: Expr, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """if condition: then() else: otherwise()."""
    with T.If(condition):
        with T.Then():
            then()
        with T.Else():
            otherwise()


@contextmanager
def scope(name: str) -> Iterator[None]:
    """A block for scratch. Its regions are not derived: they would name buffers inside it."""
    with T.sblock(name):
        T.reads([])
        T.writes([])
        yield


def local(size: int, dtype: str = "float32") -> Buffer:
    """Registers: constant indices only."""
    return T.alloc_buffer((size,), dtype, scope="local")


@dataclass(frozen=True)
class Task:
    """One task: C[row, half * padded + column] = X[x_row(row)] . W[e, half * n + column]."""

    g: Tiles
    X: Buffer                        # [rows, K] float32
    x_row: Callable[[Expr], Expr]    # row of the numbering of items -> row of X
    W: Buffer                        # [E, halves * n, K]
    S: Buffer                        # [E, N blocks, K blocks]; unused for plain weights
    C: Buffer                        # [rows + mr, halves * padded] float32
    e: Expr                          # int64: the expert
    first: Expr                      # first row, in the numbering of items
    rows: Expr
    col: Expr                        # first column

    def emit(self) -> None:
        """The whole task."""
        g = self.g
        if g.dtype == "float32":     # used where it stands: nothing to convert
            self._streamed()
        else:
            when(self.rows <= g.panel_rows, self._streamed, self._panels)

    def _streamed(self) -> None:
        g = self.g
        with T.serial((self.rows + (g.mr - 1)) // g.mr) as rt:
            self._stream_rows(rt * g.mr, T.min(g.mr, self.rows - rt * g.mr), g.mr)

    def _stream_rows(self, r: Expr, count: Expr, m: int) -> None:
        """One branch for each exact number of rows: no padding, each weight is read once."""
        if m == 1:
            self._stream_exact(r, 1)
        else:
            when(count == m, lambda: self._stream_exact(r, m),
                 lambda: self._stream_rows(r, count, m - 1))

    def _stream_exact(self, r: Expr, m: int) -> None:
        g = self.g
        nr = g.columns(m)
        apart = -(-g.width // nr)
        with T.serial(g.halves) as half, T.serial(apart) as nt:
            # The columns of a tile stand far apart, so that each is a long run through memory of
            # its own: nearly twice as fast as neighbours, whose runs end with every row of W.
            self._stream_tile(r, m, nr, half, lambda n: T.min(nt + n * apart, g.width - 1))

    def _stream_tile(self, r: Expr, m: int, nr: int, half: Expr,
                     at: Callable[[int], Expr]) -> None:
        g = self.g
        with scope("stream"):
            # few accumulators leave registers to scale each block's sums rather than its weights
            late = g.quantised and 2 * m * nr + nr < (32 if g.lanes == 16 else 16)
            t = _Registers(g, self.X, m, nr, late)
            t.start(lambda i: self.x_row(self.first + r + i))
            sc = local(nr)
            row = local(nr, "int64")
            for n in range(nr):
                put(row, n, T.Cast("int64", half * g.n + self.col + at(n)))

            def block(kb: Expr, length: Expr) -> None:
                def weight(n: int, k: Expr, lanes: int) -> Expr:
                    w = widen(self.W[self.e, row[n], kb * g.step_k + k], g.dtype, lanes)
                    return w * sc[n] if g.quantised and (not late or lanes == 1) else w

                if g.quantised:
                    for n in range(nr):
                        put(sc, n, self._scale(row[n], kb))
                t.dot(kb * g.step_k, length, weight)
                if late:
                    t.scale(sc)

            with T.serial(g.k_blocks) as kb:
                block(kb, g.step_k if g.k % g.step_k == 0 else
                      T.min(g.step_k, g.k - kb * g.step_k))
            t.finish()
            t.each(lambda i, n, value: put(self.C, (r + i, half * g.padded + at(n)), value))

    def _scale(self, row: Expr, kb: Expr) -> Expr:
        return self.S[self.e, row // self.g.block_n, kb] * T.float32(_HALF_SCALE)

    def _panels(self) -> None:
        g = self.g
        with scope("panels"):
            # one vector more than needed: rows then fall into different cache sets
            P = T.alloc_buffer((g.halves * g.padded, g.panel_k + g.lanes), "float32",
                                      scope="global")
            with T.serial(-(-g.k // g.panel_k)) as kc:
                k0 = kc * g.panel_k
                length = g.panel_k if g.k % g.panel_k == 0 else T.min(g.panel_k, g.k - k0)
                with T.serial(g.halves) as half, T.serial(g.width) as n:
                    self._convert(P, half * g.n + self.col + n, half * g.padded + n, k0, length)
                with T.serial((self.rows + (g.mr - 1)) // g.mr) as rt:
                    self._panel_rows(P, rt * g.mr, k0, length)

    def _convert(self, P: Buffer, row: Expr, column: Expr, k0: Expr, length: Expr) -> None:
        """P[column, k - k0] = W[e, row, k], scaled."""
        g = self.g
        if not g.quantised:
            _along(g, length, 1, lambda k: put(
                P, (column, k), widen(self.W[self.e, row, k0 + k], g.dtype)))
            return
        with T.serial((length + (g.step_k - 1)) // g.step_k) as kb, scope("convert"):
            sc = local(1)
            put(sc, 0, self._scale(row, k0 // g.step_k + kb))
            left = g.step_k if g.k % g.step_k == 0 else T.min(g.step_k, length - kb * g.step_k)
            _along(g, left, 1, lambda k: put(
                P, (column, kb * g.step_k + k),
                widen(self.W[self.e, row, k0 + kb * g.step_k + k], g.dtype) * sc[0]))

    def _panel_rows(self, P: Buffer, r: Expr, k0: Expr, length: Expr) -> None:
        g = self.g

        def tile(m: int) -> None:
            self._panel_exact(P, r, m, k0, length)

        if g.mr == 1:
            tile(1)
        else:
            when(self.rows - r > g.mr // 2, lambda: tile(g.mr), lambda: tile(g.mr // 2))

    def _panel_exact(self, P: Buffer, r: Expr, m: int, k0: Expr, length: Expr) -> None:
        g = self.g
        with T.serial(g.halves * g.padded // g.nr) as nt:
            column = nt * g.nr
            with scope("panel"):
                t = _Registers(g, self.X, m, g.nr)
                # rows past the item's end repeat its last row and land in spare rows of C
                t.start(lambda i: self.x_row(self.first + T.min(r + i, self.rows - 1)))
                t.dot(k0, length, lambda n, k, _: P[column + n, k])
                t.finish()
                when(k0 == 0,
                     lambda: t.each(lambda i, n, v: put(self.C, (r + i, column + n), v)),
                     lambda: t.each(lambda i, n, v: put(
                         self.C, (r + i, column + n), self.C[r + i, column + n] + v)))


class _Registers:
    """The accumulators of one tile of m rows and nr columns."""

    def __init__(self, g: Tiles, X: Buffer, m: int, nr: int, late: bool = False):
        self.g, self.X, self.m, self.nr, self.late = g, X, m, nr, late
        # vectors as elements: a tenth of the statements, and of the compile time, of lane loops
        self.acc = local(m * nr, vector("float32", g.lanes))
        self.part = local(m * nr, vector("float32", g.lanes)) if late else self.acc
        self.w = local(nr, vector("float32", g.lanes))
        self.red = local(m * nr)     # what is left of K beside whole vectors
        self.lane = local(m * nr * g.lanes)
        self.row = local(m, "int64")

    def start(self, row: Callable[[int], Expr]) -> None:
        """Zero the accumulators and look up the rows of X."""
        for i in range(self.m):
            put(self.row, i, T.Cast("int64", row(i)))
        for q in range(self.m * self.nr):
            put(self.acc, q, T.Broadcast(T.float32(0), self.g.lanes))
            if self.g.ragged:
                put(self.red, q, T.float32(0))

    def dot(self, k0: Expr, length: Expr, weight: Callable[[int, Expr, int], Expr]) -> None:
        """Add X[row, k0 + k] * weight(n, k) for k below length; k may be a ramp."""
        lanes, nr, acc, red = self.g.lanes, self.nr, self.part, self.red
        if self.late:
            for q in range(self.m * nr):
                put(acc, q, T.Broadcast(T.float32(0), lanes))

        def step(k: Expr) -> None:
            for n in range(nr):
                put(self.w, n, weight(n, T.Ramp(k, 1, lanes), lanes))
            for i in range(self.m):
                for n in range(nr):
                    x = self.X[self.row[i], T.Ramp(k0 + k, 1, lanes)]
                    put(acc, i * nr + n, acc[i * nr + n] + x * self.w[n])

        def tail(k: Expr) -> None:
            for i in range(self.m):
                for n in range(nr):
                    put(red, i * nr + n, red[i * nr + n]
                        + self.X[self.row[i], k0 + k] * weight(n, k, 1))

        unroll = self.g.unroll
        with T.serial(length // (lanes * unroll)) as kv, T.unroll(unroll) as u:
            step((kv * unroll + u) * lanes)
        if unroll > 1:
            with T.serial(length // (lanes * unroll) * unroll, length // lanes) as kv:
                step(kv * lanes)
        if self.g.ragged:
            with T.serial(length // lanes * lanes, length) as k:
                tail(k)

    def scale(self, by: Buffer) -> None:
        """Add the sums since the last scaling, each column times its scale."""
        for i in range(self.m):
            for n in range(self.nr):
                q = i * self.nr + n
                put(self.acc, q, self.acc[q]
                    + self.part[q] * T.Broadcast(by[n], self.g.lanes))

    def finish(self) -> None:
        """Sum across lanes, by halving."""
        for q in range(self.m * self.nr):
            at, half = q * self.g.lanes, self.g.lanes // 2
            put(self.lane, T.Ramp(at, 1, self.g.lanes), self.acc[q])
            while half > 1:
                low, high = T.Ramp(at, 1, half), T.Ramp(at + half, 1, half)
                put(self.lane, low, self.lane[low] + self.lane[high])
                half //= 2

    def each(self, store: Callable[[int, int, Expr], None]) -> None:
        """Hand out the sums: store(row, column, sum)."""
        for i in range(self.m):
            for n in range(self.nr):
                q = i * self.nr + n
                total = self.lane[q * self.g.lanes] + self.lane[q * self.g.lanes + 1]
                store(i, n, total + self.red[q] if self.g.ragged else total)


def _along(g: Tiles, length: Expr, unroll: int, store: Callable[[Expr], None]) -> None:
    """Run an element-wise store along K, in vectors and a scalar tail."""
    with T.serial(length // g.lanes) as kv, T.vectorized(g.lanes) as lane:
        store(kv * g.lanes + lane)
    if g.ragged:
        with T.serial(length // g.lanes * g.lanes, length) as k:
            store(k)
