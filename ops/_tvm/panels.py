"""Tiles of many rows: a panel of W is transposed and converted once, then multiplied by all rows.

Columns stand in the lanes and nothing is summed across them (Goto and van de Geijn 2008). A part
of K stays in the first cache until all rows are multiplied by it; the rows of X are packed side by
side in the second, so that a tile reads one run of them. Why so, in figures: docs/facts.md.
With bfloat16 pairs the panel holds two elements of K in each lane, and block scales are applied to
the float32 sums; otherwise to the panel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from .emit import Buffer, Expr, put, scope, vector, when, widen
from .fetch import fetch
from .llvm import pack_name, panel_name, row_groups
from .registers import Registers, local
from .tiles import Tiles, unit

_STEPS = 4                           # of a tile from one fetch to the next
_X_BYTES = 512 << 10                 # of packed rows at once: half of a second cache of 1 MiB


@dataclass(frozen=True)
class _Scratch:
    """What a task keeps: the converted tile, its scales, the item's rows and theirs."""

    P: Buffer                        # [K steps, columns]
    scales: Buffer                   # [columns]; of pairs only
    X: Buffer                        # [parts of K, tiles of rows, K steps by rows of a tile]
    xs: Buffer                       # [rows, K blocks]


@dataclass(frozen=True)
class Panels:
    """One task on panels: see `gemm.Task`, whose fields these are."""

    g: Tiles
    X: Buffer                        # [rows, K] float32, or the bits of bfloat16 as int16
    x_row: Callable[[Expr], Expr]
    W: Buffer
    S: Buffer
    C: Buffer
    e: Expr
    first: Expr
    rows: Expr
    col: Expr
    XS: Buffer | None = None

    def emit(self) -> None:
        """The whole task."""
        g = self.g
        kind = "int32" if g.pairs else "float32"
        with scope("panels"):
            P = T.alloc_buffer((g.steps(g.inner), g.tile_n), kind, scope="global")
            X = T.alloc_buffer((g.parts, -(-g.rows // g.pm),
                                g.steps(g.inner) * g.pm + g.lanes), kind, scope="global")
            xs = T.alloc_buffer((g.rows + g.pm, g.k_blocks), "float32", scope="global")
            at = _Scratch(P, local(g.tile_n), X, xs)
            coming, size, panel = local(2, "int64"), local(1, "int32"), local(1, "int32")
            put(size, 0, self._rows_of_tile())
            put(panel, 0, T.Cast("int32", T.max(T.min(
                _X_BYTES // (4 * g.steps(g.inner) * self.rows), g.parts), 1) * g.inner))
            with T.serial(self.rows) as r, T.serial(g.halves * g.padded // g.lanes) as v:
                put(self.C, (r, T.Ramp(v * g.lanes, 1, g.lanes)),
                    T.Broadcast(T.float32(0), g.lanes))
            if self.XS is not None:
                self._row_scales(at.xs)
            with T.serial((g.k + (panel[0] - 1)) // panel[0]) as kc:
                k0 = kc * panel[0]
                length = T.min(panel[0], g.k - k0)
                self._gather(at, k0, length, size[0])
                with T.serial(g.halves * g.across) as tile, T.serial(
                        (length + (g.inner - 1)) // g.inner) as part:
                    half, first = tile // g.across, tile % g.across * g.tile_n
                    k, count = k0 + part * g.inner, self._count(part, length)
                    with T.serial(g.pn) as v:
                        self._convert(at, half, first, v, k, count)
                    self._next(coming, tile, k, panel[0])
                    self._multiply(at, half, first, part, k, count, coming, size[0])

    def _rows_of_tile(self) -> Expr:
        """Rows of a tile such that as few as possible are computed in vain."""
        g = self.g
        tiles = (self.rows + (g.pm - 1)) // g.pm
        size, step = (self.rows + (tiles - 1)) // tiles, 1 if g.pm <= 6 else 2
        return T.Cast("int32", T.max((size + (step - 1)) // step * step, g.row_sizes[-1]))

    def _gather(self, to: _Scratch, k0: Expr, length: Expr, size: Expr) -> None:
        """The item's rows, one below the other; past its end its last row is repeated."""
        g = self.g
        with scope("gather"):
            row = local(g.pm, "int64")
            with T.serial((self.rows + (size - 1)) // size) as rt:
                for i in range(g.pm):
                    put(row, i, T.Cast("int64", self.x_row(
                        self.first + T.min(rt * size + i, self.rows - 1))))
                with T.serial((length + (g.inner - 1)) // g.inner) as part:
                    self._copy(to.X, part, rt, row, k0 + part * g.inner,
                               self._count(part, length))

    def _row_scales(self, xs: Buffer) -> None:
        g = self.g
        assert self.XS is not None
        with T.serial(self.rows) as r, T.serial(g.k_blocks) as kb:
            put(xs, (r, kb), self.XS[self.x_row(self.first + r), kb] * T.float32(unit(g.dtype)))

    def _convert(self, to: _Scratch, half: Expr, first: Expr, v: Expr, k: Expr,
                 count: Expr) -> None:
        """One vector of columns, `count` columns of K from k on."""
        g = self.g
        at = first + v * g.lanes
        with scope("convert"):
            row, last, s = local(1, "int64"), local(1, "int64"), Registers(1, g.lanes)
            # columns past the width repeat the last one
            put(row, 0, T.Cast("int64", half * g.n + self.col + T.min(at, g.width - 1)))
            put(last, 0, T.Cast("int64", T.max(T.min(g.lanes, g.width - at) - 1, 0)))
            with T.serial((count + (g.block - 1)) // g.block) as kb:
                start = kb * g.block
                size = g.block if g.k % g.block == 0 else T.min(g.block, count - start)
                if g.quantised:
                    self._scales(s, to.scales, v, row, last, k + start)
                else:
                    s.set(0, T.Broadcast(T.float32(1), g.lanes))
                self._block(to.P, s, v, row, last, k, start, size)

    def _scales(self, s: Registers, scales: Buffer, v: Expr, row: Buffer, last: Buffer,
                k: Expr) -> None:
        g = self.g
        kb_of_w = k // g.step_k
        scale = T.float32(unit(g.dtype) if g.pairs else 1.0)

        def one(of: Expr) -> Expr:
            return self.S[self.e, of // g.block_n, kb_of_w] * scale

        def each() -> None:
            lanes = local(g.lanes)
            for lane in range(g.lanes):
                put(lanes, lane, one(row[0] + T.min(T.int64(lane), last[0])))
            s.set(0, lanes[T.Ramp(0, 1, g.lanes)])

        if g.block_n == 1:
            each()
        else:
            when(row[0] // g.block_n == (row[0] + last[0]) // g.block_n,
                 lambda: s.set(0, T.Broadcast(one(row[0]), g.lanes)), each)
        if g.pairs:
            put(scales, T.Ramp(v * g.lanes, 1, g.lanes), s[0])

    def _block(self, P: Buffer, s: Registers, v: Expr, row: Buffer, last: Buffer, k0: Expr,
               start: Expr, size: Expr) -> None:
        """The columns of K under one scale: blocks of dwords, and what is left of them."""
        g = self.g
        run = g.panel_run
        T.evaluate(T.call_extern(
            "void", panel_name(g.dtype, g.pairs), T.address_of(self.W[self.e, row[0], k0 + start]),
            T.int64(g.k * g.element_bytes), last[0],
            T.address_of(P[start // g.per_step, v * g.lanes]), T.Cast("int64", size // run), s[0]))
        if g.k % run == 0 and g.block % run == 0:
            return

        def weight(lane: Expr, k: Expr) -> Expr:
            return self.W[self.e, row[0] + T.min(T.Cast("int64", lane), last[0]), k0 + start + k]

        with T.serial(size // run * run // g.per_step, (size + (g.per_step - 1)) // g.per_step
                      ) as step, T.serial(g.lanes) as lane:
            where = (start // g.per_step + step, v * g.lanes + lane)
            if not g.pairs:
                w = widen(weight(lane, step), g.stored)
                if g.quantised:
                    by = self.S[self.e, (row[0] + T.min(T.Cast("int64", lane), last[0]))
                                // g.block_n, (k0 + start) // g.step_k]
                    w = w * (by * T.float32(unit(g.dtype)))
                put(P, where, w)
            else:
                def half(k: Expr) -> Expr:
                    return T.reinterpret("int32", widen(weight(lane, k), g.stored))
                put(P, where, T.shift_right(T.reinterpret("uint32", half(2 * step)), T.uint32(16))
                    .astype("int32"))
                with T.If(2 * step + 1 < size), T.Then():
                    put(P, where, P[where] | half(2 * step + 1))

    def _next(self, coming: Buffer, tile: Expr, k: Expr, panel: Expr) -> None:
        """Where in W the next tile's share of these columns of K begins: row and column."""
        g = self.g

        def at(row: Expr, k: Expr) -> None:
            put(coming, 0, T.Cast("int64", self.col + row))
            put(coming, 1, T.Cast("int64", k))

        then = tile + 1
        when(then < g.halves * g.across,
             lambda: at(then // g.across * g.n + then % g.across * g.tile_n, k),
             lambda: when(k + panel < g.k, lambda: at(0, k + panel),     # the first tile's
                          lambda: at(g.width, k % panel)))               # the next task's

    def _fetch(self, coming: Buffer, at: Expr) -> None:
        """A line of the weights that come next, into the second cache."""
        lines = self._lines
        fetch(self.W[self.e, coming[0] + at // lines, coming[1]], at % lines * 64)

    @property
    def _lines(self) -> int:
        """Lines of a row of W in a part of a tile."""
        return -(-self.g.inner * self.g.element_bytes // 64)

    def _multiply(self, of: _Scratch, half: Expr, first: Expr, part: Expr, k: Expr,
                  count: Expr, coming: Buffer, size: Expr) -> None:
        """All rows times one tile of columns, while the weights that come next are fetched.

        Each tile of rows has its share of them, a line every few steps: in bursts they hold up what
        the tile waits for, and one in each step takes 4 % of the whole.
        """
        g, lines = self.g, self.g.tile_n * self._lines
        tiles = (self.rows + (size - 1)) // size
        share = (lines + (tiles - 1)) // tiles
        steps = g.steps(count)
        with T.serial(tiles) as rt, scope("tile"):
            r = rt * size
            left = T.min(self.rows - r, size)
            line = local(2, "int32")     # the share's first, and how many
            put(line, 0, T.Cast("int32", rt * share))
            put(line, 1, T.Cast("int32", T.min(share, lines - rt * share)))
            with T.serial(steps // _STEPS, line[1]) as i:
                self._fetch(coming, line[0] + i)

            def between(turn: Expr) -> None:
                with T.If(turn < line[1]), T.Then():
                    self._fetch(coming, line[0] + turn)

            def tile(sizes: tuple[int, ...]) -> None:
                if len(sizes) == 1:
                    self._tile(of, rt, r, sizes[0], half, first, part, k, count, between)
                else:
                    when(left > sizes[1], lambda: self._tile(
                        of, rt, r, sizes[0], half, first, part, k, count, between),
                        lambda: tile(sizes[1:]))

            tile(g.row_sizes)

    def _count(self, part: Expr, length: Expr) -> Expr:
        """Columns of K in a part of the panel."""
        g = self.g
        return g.inner if g.k % g.inner == 0 else T.min(g.inner, length - part * g.inner)

    def _copy(self, X: Buffer, part: Expr, rt: Expr, row: Buffer, k0: Expr, length: Expr) -> None:
        """Rows of X side by side, so that a tile reads one run of them."""
        g, per = self.g, self.g.per_step
        for first, rows in row_groups(g):
            T.evaluate(T.call_extern(
                "void", pack_name(rows),
                *(T.address_of(self.X[row[first + i], k0]) for i in range(rows)),
                T.address_of(X[part, rt, first]), T.Cast("int64", length // (g.lanes * per))))
        if g.k % (g.lanes * per) == 0 and g.inner % (g.lanes * per) == 0:
            return
        with T.serial(length // (g.lanes * per) * g.lanes, (length + (per - 1)) // per) as step:
            for i in range(g.pm):
                at = (part, rt, step * g.pm + i)
                if not g.pairs:
                    put(X, at, self.X[row[i], k0 + step])
                    continue
                put(X, at, T.Cast("int32", self.X[row[i], k0 + 2 * step]) & T.int32(0xFFFF))
                with T.If(2 * step + 1 < length), T.Then():
                    put(X, at, X[at] | (T.Cast("int32", self.X[row[i], k0 + 2 * step + 1]) << 16))

    def _tile(self, of: _Scratch, rt: Expr, r: Expr, m: int, half: Expr, first: Expr, part: Expr,
              k0: Expr, count: Expr, between: Callable[[Expr], None]) -> None:
        """C[r .. r + m, tile] += X . P, for the `count` columns of K of a part.

        between(turn) is emitted before every few steps.
        """
        g, per = self.g, self.g.per_step
        steps = (count + (per - 1)) // per
        with scope("sums"):
            acc = Registers(m * g.pn, g.lanes)
            for q in range(m * g.pn):
                acc.set(q, T.Broadcast(T.float32(0), g.lanes))

            def step(k: Expr) -> None:
                for i in range(m):
                    for v in range(g.pn):
                        q, w = i * g.pn + v, of.P[k, T.Ramp(v * g.lanes, 1, g.lanes)]
                        acc.set(q, T.call_extern(vector("float32", g.lanes), "expertile_dot_one",
                                                acc[q], of.X[part, rt, k * g.pm + i], w)
                                if g.pairs else
                                acc[q] + T.Broadcast(of.X[part, rt, k * g.pm + i], g.lanes) * w)

            with T.serial(steps // _STEPS) as turn:
                between(turn)
                for u in range(_STEPS):
                    step(turn * _STEPS + u)
            with T.serial(steps // _STEPS * _STEPS, steps) as k:
                step(k)
            for i in range(m):
                for v in range(g.pn):
                    at = T.Ramp(half * g.padded + first + v * g.lanes, 1, g.lanes)
                    value = acc[i * g.pn + v]
                    if g.pairs and g.quantised:
                        value = value * of.scales[T.Ramp(v * g.lanes, 1, g.lanes)]
                    if self.XS is not None:
                        value = value * T.Broadcast(of.xs[r + i, k0 // g.step_k], g.lanes)
                    put(self.C, (r + i, at), self.C[r + i, at] + value)
