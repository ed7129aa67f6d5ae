"""CPU tiles of X @ W^T on weights as they stand in a checkpoint: [E, N, K], never packed.

A tile is a block of dot products: MR x NR vector accumulators run along K, summed across lanes
once at the end (register tiling as in Goto and van de Geijn 2008, with the reduction in the
lanes). One task is one item (rows of one expert) times one chunk of columns. Few rows stream the
weights and convert them in registers; many rows take the panels of `panels.py`.

These are plain Python functions that emit statements into the TVMScript function that calls them:
an order of magnitude faster to parse than T.inline, which walks the Python stack at every use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from . import stack
from .emit import Buffer, Expr, put, scope, vector, when, widen
from .fetch import fence, fetch
from .llvm import pair_name
from .panels import Panels
from .quarters import CODES, UNIT, Few, Folded, name
from .registers import Registers, local
from .tiles import VECTORS, Tiles, unit

_LINE = 64                           # bytes that a fetch brings


@dataclass(frozen=True)
class Task:
    """One task: C[row, half * padded + column] = X[x_row(row)] . W[e, half * n + column]."""

    g: Tiles
    X: Buffer                        # [rows, K] float32, or the bits of bfloat16 as int16
    x_row: Callable[[Expr], Expr]    # row of the numbering of items -> row of X
    W: Buffer                        # [E, halves * n, K]
    S: Buffer                        # [E, N blocks, K blocks]; unused for plain weights
    C: Buffer                        # [rows + mr, halves * padded] float32
    e: Expr                          # int64: the expert
    first: Expr                      # first row, in the numbering of items
    rows: Expr
    col: Expr                        # first column
    XS: Buffer | None = None         # [rows, K blocks]: scales of X where it holds codes
    few: Few | None = None           # the rows for tiles that take FP8 codes by the byte

    def emit(self) -> None:
        """The whole task."""
        g = self.g
        stack.align()
        panels = Panels(g, self.X, self.x_row, self.W, self.S, self.C, self.e, self.first,
                        self.rows, self.col, self.XS)
        when(self.rows <= g.panel_rows, self._streamed, panels.emit)

    def _streamed(self) -> None:
        g, few = self.g, self.few
        with scope("few"):
            exact = self._stream_exact
            if few is not None and g.folds:
                folded = Folded(few.rows, few.factors, T.alloc_buffer(
                    (g.mr, g.k), "float32", scope="global"))

                def exact(r: Expr, m: int) -> None:
                    self._stream_folded(folded, r, m)

            def rows(r: Expr, count: Expr, m: int) -> None:
                """One branch for each exact number of rows: no padding, each weight once."""
                if m == 1:
                    exact(r, 1)
                else:
                    when(count == m, lambda: exact(r, m), lambda: rows(r, count, m - 1))

            with T.serial((self.rows + (g.mr - 1)) // g.mr) as rt:
                rows(rt * g.mr, T.min(g.mr, self.rows - rt * g.mr), g.mr)

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
        if self.few is not None:
            self._stream_quarters(self.few, r, m, nr, half, at)
            return
        with scope("stream"):
            # few accumulators leave registers to scale each block's sums rather than its weights
            late = g.quantised and (g.pairs or 2 * m * nr + nr < VECTORS[g.lanes])
            t = _Registers(g, self.X, m, nr, late)
            t.start(lambda i: self.x_row(self.first + r + i))
            sc = local(nr)
            row = local(nr, "int64")
            for n in range(nr):
                put(row, n, T.Cast("int64", half * g.n + self.col + at(n)))

            def row_scale(i: int, kb: Expr) -> Expr:
                assert self.XS is not None
                return self.XS[t.row[i], kb] * T.float32(unit(g.dtype))

            def block(kb: Expr, length: Expr) -> None:
                def weight(n: int, k: Expr, lanes: int) -> Expr:
                    w = self.W[self.e, row[n], kb * g.step_k + k]
                    if lanes > 1 and g.ahead:
                        self._fetch(self.e, row[n], kb * g.step_k + k.base)
                    if g.pairs and lanes > 1:
                        return w
                    w = widen(w, g.stored, lanes)
                    return w * sc[n] if g.quantised and (not late or lanes == 1) else w

                if g.quantised:
                    for n in range(nr):
                        put(sc, n, self._scale(row[n], kb))
                t.dot(kb * g.step_k, length, weight,
                      None if self.XS is None else lambda i: row_scale(i, kb))
                if late:
                    t.scale(sc, None if self.XS is None else lambda i: row_scale(i, kb))

            with T.serial(g.k_blocks) as kb:
                block(kb, g.step_k if g.k % g.step_k == 0 else
                      T.min(g.step_k, g.k - kb * g.step_k))
            t.finish()
            t.each(lambda i, n, value: put(self.C, (r + i, half * g.padded + at(n)), value))

    def _stream_quarters(self, few: Few, r: Expr, m: int, nr: int, half: Expr,
                         at: Callable[[int], Expr]) -> None:
        g = self.g
        with scope("stream"):
            t = _Registers(g, few.rows, m, nr, True)
            t.start(lambda i: self.first + r + i)
            sc, row = local(nr), local(nr, "int64")
            e, scales = local(1, "int64"), local(nr, "int64")
            put(e, 0, self.e)            # read once: the fences forget what is in memory
            for n in range(nr):
                put(row, n, T.Cast("int64", half * g.n + self.col + at(n)))
                put(scales, n, row[n] // g.block_n)
            with T.serial(g.k_blocks) as kb:
                length = (g.step_k if g.k % g.step_k == 0
                          else T.min(g.step_k, g.k - kb * g.step_k))
                for n in range(nr):
                    put(sc, n, self.S[e[0], scales[n], kb])
                t.dot_quarters(kb * g.step_k, length,
                               lambda n, k: self.W[e[0], row[n], kb * g.step_k + k],
                               lambda n, k: self._fetch(e[0], row[n], kb * g.step_k + k))
                t.scale(sc)
            t.finish()
            t.each(lambda i, n, value: put(
                self.C, (r + i, half * g.padded + at(n)),
                value * T.float32(UNIT[g.dtype]) * few.factors[t.row[i]]))

    def _stream_folded(self, of: Folded, r: Expr, m: int) -> None:
        """Columns under one row of scales at a time: these are multiplied into the rows of X."""
        g, nr = self.g, self.g.columns(m)
        with scope("folded"):
            at, unit_of = local(4, "int64"), local(1)
            begin, low, last, e = (at[i] for i in range(4))
            put(at, 3, self.e)           # read once: the fences forget what is in memory
            with T.serial(g.halves) as half:
                put(at, 0, T.Cast("int64", half * g.n + self.col))
                first = begin // g.block_n
                with T.serial((begin + (g.width - 1)) // g.block_n - first + 1) as block:
                    put(at, 1, T.max(begin, (first + block) * g.block_n))
                    put(at, 2, T.min(begin + g.width, (first + block + 1) * g.block_n) - low - 1)
                    of.fold(g, self.first + r, m, lambda kb: self.S[e, low // g.block_n, kb],
                            unit_of)
                    apart = last // nr + 1
                    with T.serial(apart) as nt:
                        self._folded_tile(of, r, m, nr, e, low, lambda n: T.min(
                            nt + n * apart, last), unit_of, half * (g.padded - g.n) - self.col)

    def _folded_tile(self, of: Folded, r: Expr, m: int, nr: int, e: Expr, low: Expr,
                     at: Callable[[int], Expr], unit_of: Buffer, to: Expr) -> None:
        g = self.g
        with scope("stream"):
            t = _Registers(g, of.scaled, m, nr)
            t.start(lambda i: i)
            row = local(nr, "int64")
            for n in range(nr):
                put(row, n, low + at(n))
            t.dot_quarters(0, g.k, lambda n, k: self.W[e, row[n], k],
                           lambda n, k: self._fetch(e, row[n], k))
            t.finish()
            t.each(lambda i, n, value: put(
                self.C, (r + i, to + row[n]),
                value * T.float32(UNIT[g.dtype]) * unit_of[0]
                * of.factors[self.first + r + i]))

    def _fetch(self, e: Expr, row: Expr, k: Expr) -> None:
        fetch(self.W[e, row, k], self.g.ahead)

    def _scale(self, row: Expr, kb: Expr) -> Expr:
        return self.S[self.e, row // self.g.block_n, kb] * T.float32(unit(self.g.dtype))


class _Registers:
    """The accumulators of one tile of m rows and nr columns."""

    def __init__(self, g: Tiles, X: Buffer, m: int, nr: int, late: bool = False):
        self.g, self.X, self.m, self.nr, self.late = g, X, m, nr, late
        # vectors as elements: a tenth of the statements, and of the compile time, of lane loops
        self.acc = Registers(m * nr, g.lanes)
        self.part = Registers(m * nr, g.lanes) if late else self.acc
        raw = "int8" if g.quantised else "int16"
        self.w = Registers(nr, g.run if g.pairs else g.lanes, raw if g.pairs else "float32")
        self.red = local(m * nr)     # what is left of K beside whole vectors
        self.lane = [local(g.lanes) for _ in range(m * nr)]
        self.row = local(m, "int64")

    def start(self, row: Callable[[int], Expr]) -> None:
        """Zero the accumulators and look up the rows of X."""
        for i in range(self.m):
            put(self.row, i, T.Cast("int64", row(i)))
        for q in range(self.m * self.nr):
            self.acc.set(q, T.Broadcast(T.float32(0), self.g.lanes))
            if self.g.ragged:
                put(self.red, q, T.float32(0))

    def dot(self, k0: Expr, length: Expr, weight: Callable[[int, Expr, int], Expr],
            row_scale: Callable[[int], Expr] | None = None) -> None:
        """Add X[row, k0 + k] * weight(n, k) for k below length; k may be a ramp.

        Vectors are left to `scale`; columns beside whole vectors are scaled here.
        """
        lanes, nr, acc, red = self.g.lanes, self.nr, self.part, self.red
        if self.late:
            for q in range(self.m * nr):
                acc.set(q, T.Broadcast(T.float32(0), lanes))

        def step(k: Expr) -> None:
            for n in range(nr):
                self.w.set(n, weight(n, T.Ramp(k, 1, run), run))
            for i in range(self.m):
                for n in range(nr):
                    x = self.X[self.row[i], T.Ramp(k0 + k, 1, lanes)]
                    acc.set(i * nr + n, acc[i * nr + n] + x * self.w[n])

        def step_pairs(k: Expr) -> None:
            for n in range(nr):
                self.w.set(n, weight(n, T.Ramp(k, 1, run), run))
            for half in range(run // 32):
                for n in range(nr):
                    w = self.w[n] if run == 32 else T.call_extern(
                        "int16x32", pair_name(self.g.dtype, half), self.w[n])
                    for i in range(self.m):
                        x = self.X[self.row[i], T.Ramp(k0 + k + 32 * half, 1, 32)]
                        acc.set(i * nr + n, T.call_extern(
                            "float32x16", "expertile_dot", acc[i * nr + n], x, w))

        def tail(k: Expr) -> None:
            for i in range(self.m):
                x = self.X[self.row[i], k0 + k]
                x = widen(x, "int16") if self.g.pairs else x
                x = x if row_scale is None else x * row_scale(i)
                for n in range(nr):
                    put(red, i * nr + n, red[i * nr + n] + x * weight(n, k, 1))

        unroll, run = self.g.unroll, self.g.run
        once = step_pairs if self.g.pairs else step
        with T.serial(length // (run * unroll)) as kv, T.unroll(unroll) as u:
            once((kv * unroll + u) * run)
        if unroll > 1:
            with T.serial(length // (run * unroll) * unroll, length // run) as kv:
                once(kv * run)
        if self.g.ragged:
            with T.serial(length // run * run, length) as k:
                tail(k)

    def dot_quarters(self, k0: Expr, length: Expr, codes: Callable[[int, Expr], Expr],
                     fetch: Callable[[int, Expr], None]) -> None:
        """Add X[row, k0 + k] * codes(n, k), both in the order of bytes."""
        lanes, run, unroll, nr = self.g.lanes, self.g.run, self.g.unroll, self.nr
        twice = 2 if self.m * nr < 8 else 1      # sums enough to hide what an addition takes
        parts = [self.part, Registers(self.m * nr, lanes) if twice == 2 else self.part]
        for part in parts[:twice]:
            for q in range(self.m * nr):
                part.set(q, T.Broadcast(T.float32(0), lanes))

        def step(k: Expr, fetches: bool) -> None:
            for n in range(nr):
                if fetches:
                    fetch(n, k)
                fence()
                for j in range(CODES):
                    w = T.call_extern(vector("float32", lanes), name(j),
                                      codes(n, T.Ramp(k, 1, run)))
                    for i in range(self.m):
                        x = self.X[self.row[i], T.Ramp(k0 + k + j * lanes, 1, lanes)]
                        part, q = parts[j % twice], i * nr + n
                        part.set(q, part[q] + x * w)

        with T.serial(length // (run * unroll)) as kv:
            for u in range(unroll):
                step((kv * unroll + u) * run, bool(self.g.ahead) and u * run % _LINE == 0)
        if unroll > 1:
            with T.serial(length // (run * unroll) * unroll, length // run) as kv:
                step(kv * run, False)
        if twice == 2:
            for q in range(self.m * nr):
                self.part.set(q, parts[0][q] + parts[1][q])

    def scale(self, by: Buffer, row_scale: Callable[[int], Expr] | None = None) -> None:
        """Add the sums since the last scaling, each times its column's (and its row's) scale."""
        for i in range(self.m):
            for n in range(self.nr):
                q, s = i * self.nr + n, T.Broadcast(by[n], self.g.lanes)
                part = self.part[q] * s
                if row_scale is not None:
                    part = part * T.Broadcast(row_scale(i), self.g.lanes)
                self.acc.set(q, self.acc[q] + part)

    def finish(self) -> None:
        """Sum across lanes, by halving."""
        for q in range(self.m * self.nr):
            lane, half = self.lane[q], self.g.lanes // 2
            put(lane, T.Ramp(0, 1, self.g.lanes), self.acc[q])
            while half > 1:
                low, high = T.Ramp(0, 1, half), T.Ramp(half, 1, half)
                put(lane, low, lane[low] + lane[high])
                half //= 2

    def each(self, store: Callable[[int, int, Expr], None]) -> None:
        """Hand out the sums: store(row, column, sum)."""
        for i in range(self.m):
            for n in range(self.nr):
                q = i * self.nr + n
                total = self.lane[q][0] + self.lane[q][1]
                store(i, n, total + self.red[q] if self.g.ragged else total)

