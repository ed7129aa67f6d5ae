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

from ..space import Config

FP8 = "float8_e4m3fn"
_HALF_MASK = 0xBF80 - (1 << 16)      # sign and the seven magnitude bits of e4m3, moved into float16
_HALF_SCALE = 256.0                  # two to float16's exponent bias (15) less that of e4m3 (7)

Expr = Any                           # a TVM expression
Buffer = Any                         # a TVM buffer


def storage(dtype: str) -> str:
    """The element type in which a kernel takes weights or activations: fp8 as signed bytes."""
    return "int8" if dtype == FP8 else dtype


def widen(value: Expr, dtype: str) -> Expr:
    """The float32 value of a stored element; an fp8 element comes divided by 256.

    e4m3 bits moved by seven are a float16 of value / 256, exact for all finite codes, subnormals
    included; one hardware conversion follows. The NaN code reads as 480.
    """
    if dtype == FP8:
        half = (T.Cast("int16", value) << T.int16(7)) & T.int16(_HALF_MASK)
        return T.Cast("float32", T.reinterpret("float16", half))
    return T.Cast("float32", value)


@dataclass(frozen=True)
class Tiles:
    """All that is static about one GEMM: its sizes and its tile parameters."""

    n: int                           # columns (of each half)
    k: int
    dtype: str                       # of the weights
    block_n: int                     # rows and columns of W per scale
    block_k: int
    lanes: int                       # float32 lanes of a vector register
    mr: int                          # rows and columns of a tile
    nr: int
    wide: int                        # a tile of fewer rows gets up to this many columns
    chunk: int                       # columns of a task
    kc: int                          # columns of K in a converted panel
    unroll: int
    panel_rows: int                  # items of more rows convert a panel first
    rows: int                        # rows of an item at most
    halves: int = 1                  # 2: gate and up, W is [E, 2n, K]

    @property
    def quantised(self) -> bool:
        """Whether W has block scales."""
        return self.dtype == FP8

    @property
    def step_k(self) -> int:
        """Columns of K under one scale."""
        return min(self.block_k, self.k) if self.quantised else self.k

    @property
    def k_blocks(self) -> int:
        """Scales along K."""
        return -(-self.k // self.step_k)

    @property
    def ragged(self) -> bool:
        """Whether some run along K is not made of whole vectors."""
        return bool(self.k % self.lanes or self.step_k % self.lanes)

    @property
    def width(self) -> int:
        """Columns of a task; the last chunk overlaps its neighbour rather than being narrower."""
        return min(self.chunk, self.n)

    @property
    def chunks(self) -> int:
        """Tasks per item."""
        return -(-self.n // self.width)

    @property
    def panel_k(self) -> int:
        """Columns of K in a panel: whole scale blocks, or whole vectors."""
        unit = self.step_k if self.quantised else self.lanes
        return min(max(self.kc // unit, 1) * unit, self.k)

    def columns(self, rows: int) -> int:
        """Columns of a tile of that many rows."""
        return min(max(self.nr, self.wide // rows // self.nr * self.nr), self.width)

    def column(self, chunk: Expr) -> Expr:
        """The first column of a chunk."""
        return T.min(chunk * self.width, self.n - self.width)


def tiles(n: int, k: int, dtype: str, block: tuple[int, int], lanes: int, config: Config,
          halves: int = 1) -> Tiles:
    """The tiles of a config."""
    mr, nr = (int(x) for x in str(config["tile"]).split("x"))
    return Tiles(n=n, k=k, dtype=dtype, block_n=block[0], block_k=block[1], lanes=lanes, mr=mr,
                 nr=nr, halves=halves,
                 **{name: int(config[name])
                    for name in ("wide", "chunk", "kc", "unroll", "panel_rows", "rows")})


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


def lane_sum(acc: Buffer, first: int, lanes: int) -> Expr:
    """The sum of acc[first : first + lanes], by halving."""
    parts = [acc[first + i] for i in range(lanes)]
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [parts[i] + parts[i + half] for i in range(half)]
    return parts[0]


@contextmanager
def scope(name: str) -> Iterator[None]:
    """A block for scratch. Its regions are not derived: they would name buffers inside it."""
    with T.sblock(name):
        T.reads([])
        T.writes([])
        yield


def local(size: int, dtype: str = "float32") -> Buffer:
    """Registers: constant indices only."""
    return T.sblock_alloc_buffer((size,), dtype, scope="local")


@dataclass(frozen=True)
class Task:
    """What one task reads and writes: C[row, half * width + column] = X[x_row(row)] . W[e, ...]."""

    g: Tiles
    X: Buffer                        # [rows, K] float32
    x_row: Callable[[Expr], Expr]    # row of the numbering of items -> row of X
    W: Buffer                        # [E, halves * n, K]
    S: Buffer                        # [E, N blocks, K blocks]; unused for plain weights
    C: Buffer                        # [rows + mr, halves * width] float32
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
        nr, width = self.g.columns(m), self.g.width
        with T.serial(self.g.halves) as half, T.serial(-(-width // nr)) as nt:
            at = T.min(nt * nr, width - nr)
            self._stream_tile(r, m, nr, half * self.g.n + self.col + at, half * width + at)

    def _stream_tile(self, r: Expr, m: int, nr: int, row: Expr, column: Expr) -> None:
        g = self.g
        with scope("stream"):
            t = _Registers(g, self.X, m, nr)
            t.start(lambda i: self.x_row(self.first + r + i))
            sc = local(nr)

            def block(kb: Expr, length: Expr) -> None:
                def weight(n: int, k: Expr) -> Expr:
                    w = widen(self.W[self.e, row + n, kb * g.step_k + k], g.dtype)
                    return w * sc[n] if g.quantised else w

                if g.quantised:
                    for n in range(nr):
                        put(sc, n, self._scale(row + n, kb))
                t.dot(kb * g.step_k, length, weight)

            with T.serial(g.k_blocks) as kb:
                block(kb, g.step_k if g.k % g.step_k == 0 else
                      T.min(g.step_k, g.k - kb * g.step_k))
            t.finish(lambda i, n, value: put(self.C, (r + i, column + n), value))

    def _scale(self, row: Expr, kb: Expr) -> Expr:
        return self.S[self.e, row // self.g.block_n, kb] * T.float32(_HALF_SCALE)

    def _panels(self) -> None:
        g = self.g
        with scope("panels"):
            # one vector more than needed: rows then fall into different cache sets
            P = T.sblock_alloc_buffer((g.halves * g.width, g.panel_k + g.lanes), "float32",
                                      scope="global")
            with T.serial(-(-g.k // g.panel_k)) as kc:
                k0 = kc * g.panel_k
                length = g.panel_k if g.k % g.panel_k == 0 else T.min(g.panel_k, g.k - k0)
                with T.serial(g.halves) as half, T.serial(g.width) as n:
                    self._convert(P, half * g.n + self.col + n, half * g.width + n, k0, length)
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
        whole, half = (lambda m=m: self._panel_exact(P, r, m, k0, length)
                       for m in (g.mr, max(g.mr // 2, 1)))
        if g.mr == 1:
            whole()
        else:
            when(self.rows - r > g.mr // 2, whole, half)

    def _panel_exact(self, P: Buffer, r: Expr, m: int, k0: Expr, length: Expr) -> None:
        g = self.g
        nr = min(g.nr, g.width)
        with T.serial(g.halves) as half, T.serial(-(-g.width // nr)) as nt:
            column = half * g.width + T.min(nt * nr, g.width - nr)
            with scope("panel"):
                t = _Registers(g, self.X, m, nr)
                # rows past the item's end repeat its last row and land in spare rows of C
                t.start(lambda i: self.x_row(self.first + T.min(r + i, self.rows - 1)))
                t.dot(k0, length, lambda n, k: P[column + n, k])
                when(k0 == 0,
                     lambda: t.finish(lambda i, n, v: put(self.C, (r + i, column + n), v)),
                     lambda: t.finish(lambda i, n, v: put(
                         self.C, (r + i, column + n), self.C[r + i, column + n] + v)))


class _Registers:
    """The accumulators of one tile of m rows and nr columns."""

    def __init__(self, g: Tiles, X: Buffer, m: int, nr: int):
        self.g, self.X, self.m, self.nr = g, X, m, nr
        self.acc = local(m * nr * g.lanes)
        self.red = local(m * nr)     # what is left of K beside whole vectors
        self.w = local(nr * g.lanes)
        self.row = local(m, "int64")

    def start(self, row: Callable[[int], Expr]) -> None:
        """Zero the accumulators and look up the rows of X."""
        for i in range(self.m):
            put(self.row, i, T.Cast("int64", row(i)))
        for q in range(self.m * self.nr):
            with T.vectorized(self.g.lanes) as lane:
                put(self.acc, q * self.g.lanes + lane, T.float32(0))
            if self.g.ragged:
                put(self.red, q, T.float32(0))

    def dot(self, k0: Expr, length: Expr, weight: Callable[[int, Expr], Expr]) -> None:
        """Add X[row, k0 + k] * weight(n, k) for k below length."""
        lanes, nr, acc, red = self.g.lanes, self.nr, self.acc, self.red

        def step(k: Expr) -> None:
            for n in range(nr):
                with T.vectorized(lanes) as lane:
                    put(self.w, n * lanes + lane, weight(n, k + lane))
            for i in range(self.m):
                for n in range(nr):
                    q = (i * nr + n) * lanes
                    with T.vectorized(lanes) as lane:
                        put(acc, q + lane, acc[q + lane]
                            + self.X[self.row[i], k0 + k + lane] * self.w[n * lanes + lane])

        def tail(k: Expr) -> None:
            for i in range(self.m):
                for n in range(nr):
                    put(red, i * nr + n, red[i * nr + n]
                        + self.X[self.row[i], k0 + k] * weight(n, k))

        unroll = self.g.unroll
        with T.serial(length // (lanes * unroll)) as kv, T.unroll(unroll) as u:
            step((kv * unroll + u) * lanes)
        if unroll > 1:
            with T.serial(length // (lanes * unroll) * unroll, length // lanes) as kv:
                step(kv * lanes)
        if self.g.ragged:
            with T.serial(length // lanes * lanes, length) as k:
                tail(k)

    def finish(self, store: Callable[[int, int, Expr], None]) -> None:
        """Hand out the sums."""
        for i in range(self.m):
            for n in range(self.nr):
                q = i * self.nr + n
                total = lane_sum(self.acc, q * self.g.lanes, self.g.lanes)
                store(i, n, total + self.red[q] if self.g.ragged else total)


def _along(g: Tiles, length: Expr, unroll: int, store: Callable[[Expr], None]) -> None:
    """Run an element-wise store along K, in vectors and a scalar tail."""
    with T.serial(length // g.lanes) as kv, T.vectorized(g.lanes) as lane:
        store(kv * g.lanes + lane)
    if g.ragged:
        with T.serial(length // g.lanes * g.lanes, length) as k:
            store(k)
