"""Tiles of many rows: a panel of W is transposed and converted once, then multiplied by all rows.

Columns stand in the lanes and nothing is summed across them (Goto and van de Geijn 2008); the
rows of X are copied to a small scratch, which gathers them and keeps them in different cache sets.
With bfloat16 pairs the panel holds two elements of K in each lane, and block scales are applied to
the float32 sums; otherwise to the panel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from .emit import Buffer, Expr, Registers, local, put, scope, vector, when, widen
from .llvm import panel_name
from .tiles import FP8, Tiles, unit


@dataclass(frozen=True)
class _Scratch:
    """What a task keeps: the converted tile, its scales, the item's rows and theirs."""

    P: Buffer                        # [K steps, columns]
    scales: Buffer                   # [K blocks, columns]; of pairs only
    X: Buffer                        # [parts of K, rows, K steps]: what a tile reads is one run
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
            P = T.alloc_buffer((g.steps(g.panel_k), g.tile_n), kind, scope="global")
            X = T.alloc_buffer((-(-g.panel_k // g.inner), g.rows + g.pm,
                                g.steps(g.inner) + g.lanes), kind, scope="global")
            scales = T.alloc_buffer((-(-g.panel_k // g.block), g.tile_n), "float32",
                                    scope="global")
            xs = T.alloc_buffer((g.rows + g.pm, -(-g.panel_k // g.block)), "float32",
                                scope="global")
            at = _Scratch(P, scales, X, xs)
            with T.serial(self.rows) as r, T.serial(g.halves * g.padded // g.lanes) as v:
                put(self.C, (r, T.Ramp(v * g.lanes, 1, g.lanes)),
                    T.Broadcast(T.float32(0), g.lanes))
            with T.serial(-(-g.k // g.panel_k)) as kc:
                k0 = kc * g.panel_k
                length = g.panel_k if g.k % g.panel_k == 0 else T.min(g.panel_k, g.k - k0)
                self._gather(at, k0, length)
                with T.serial(g.halves) as half, T.serial(g.padded // g.tile_n) as nt:
                    with T.serial(g.pn) as v:
                        self._convert(at, half, nt * g.tile_n, v, k0, length)
                    self._multiply(at, half, nt * g.tile_n, k0, length)

    def _gather(self, to: _Scratch, k0: Expr, length: Expr) -> None:
        """The item's rows, one below the other; past its end its last row is repeated."""
        g = self.g
        with scope("gather"):
            row = local(1, "int64")
            with T.serial((self.rows + (g.pm - 1)) // g.pm * g.pm) as i:
                put(row, 0, T.Cast("int64", self.x_row(self.first + T.min(i, self.rows - 1))))
                with T.serial((length + (g.inner - 1)) // g.inner) as part:
                    self._copy(to.X, part, i, row, k0 + part * g.inner, self._count(part, length))
                if self.XS is not None:
                    with T.serial((length + (g.block - 1)) // g.block) as kb:
                        put(to.xs, (i, kb), self.XS[row[0], (k0 + kb * g.block) // g.step_k]
                            * T.float32(unit(g.dtype)))

    def _convert(self, to: _Scratch, half: Expr, first: Expr, v: Expr,
                 k0: Expr, length: Expr) -> None:
        """One vector of columns of the panel."""
        g = self.g
        at = first + v * g.lanes
        with scope("convert"):
            row, last, s = local(1, "int64"), local(1, "int64"), Registers(1, "float32", g.lanes)
            # columns past the width repeat the last one
            put(row, 0, T.Cast("int64", half * g.n + self.col + T.min(at, g.width - 1)))
            put(last, 0, T.Cast("int64", T.max(T.min(g.lanes, g.width - at) - 1, 0)))
            with T.serial((length + (g.block - 1)) // g.block) as kb:
                start = kb * g.block
                whole = g.k % g.block == 0 and g.panel_k % g.block == 0
                size = g.block if whole else T.min(g.block, length - start)
                if g.quantised:
                    self._scales(s, to.scales, kb, v, row, last, k0 + start)
                else:
                    s.set(0, T.Broadcast(T.float32(1), g.lanes))
                self._block(to.P, s, v, row, last, k0, start, size)

    def _scales(self, s: Registers, scales: Buffer, kb: Expr, v: Expr, row: Buffer,
                last: Buffer, k: Expr) -> None:
        g = self.g
        kb_of_w = k // g.step_k
        scale = T.float32(unit(g.dtype) if g.pairs or g.dtype != FP8 else 1.0)

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
            put(scales, (kb, T.Ramp(v * g.lanes, 1, g.lanes)), s[0])

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

    def _multiply(self, of: _Scratch, half: Expr, first: Expr, k0: Expr, length: Expr) -> None:
        """All rows times one tile of columns, while the next tile's weights are fetched."""
        g = self.g
        with T.serial((length + (g.inner - 1)) // g.inner) as part, T.serial(
                (self.rows + (g.pm - 1)) // g.pm) as rt, scope("tile"):
            r, ahead = rt * g.pm, local(g.fetch_lines, "int64")
            # one line a step for each of the first row tiles, or all for the only one
            for line in range(g.fetch_lines):
                put(ahead, line, T.Select(T.Or(rt == line, self.rows <= g.pm),
                                          T.int64(g.tile_n * g.element_bytes * g.per_step),
                                          T.int64(0)))
            row = T.Cast("int64", half * g.n + self.col + first + g.tile_n)

            def tile(sizes: tuple[int, ...]) -> None:
                if len(sizes) == 1:
                    self._tile(of, r, sizes[0], half, first, part, self._count(part, length),
                               row, k0, ahead)
                else:
                    when(self.rows - r > sizes[1], lambda: self._tile(
                        of, r, sizes[0], half, first, part, self._count(part, length), row, k0,
                        ahead),
                        lambda: tile(sizes[1:]))

            tile(g.row_sizes)

    def _count(self, part: Expr, length: Expr) -> Expr:
        """Columns of K in a part of the panel."""
        g = self.g
        whole = g.k % g.inner == 0 and g.panel_k % g.inner == 0
        return g.inner if whole else T.min(g.inner, length - part * g.inner)

    def _copy(self, X: Buffer, part: Expr, i: Expr, row: Buffer, k0: Expr, length: Expr) -> None:
        g, per = self.g, self.g.per_step
        with T.serial(length // (g.lanes * per)) as v:
            x = self.X[row[0], T.Ramp(k0 + v * g.lanes * per, 1, g.lanes * per)]
            put(X, (part, i, T.Ramp(v * g.lanes, 1, g.lanes)),
                T.reinterpret(vector("int32", g.lanes), x) if g.pairs else x)
        if g.k % (g.lanes * per) == 0 and g.inner % (g.lanes * per) == 0:
            return
        with T.serial(length // (g.lanes * per) * g.lanes, (length + (per - 1)) // per) as step:
            if not g.pairs:
                put(X, (part, i, step), self.X[row[0], k0 + step])
            else:
                mask = T.int32(0xFFFF)
                put(X, (part, i, step), T.Cast("int32", self.X[row[0], k0 + 2 * step]) & mask)
                with T.If(2 * step + 1 < length), T.Then():
                    put(X, (part, i, step), X[part, i, step]
                        | (T.Cast("int32", self.X[row[0], k0 + 2 * step + 1]) << 16))

    def _fetch(self, k: Expr, row: Expr, k0: Expr, ahead: Buffer) -> None:
        """Step k's share of the next tile's weights into the second cache."""
        g = self.g
        slice_bytes, row_bytes = g.panel_k * g.element_bytes, g.k * g.element_bytes
        for line in range(g.fetch_lines):
            offset = T.Cast("int64", k) * ahead[line] + line * 64
            if slice_bytes < row_bytes:
                offset = offset // slice_bytes * row_bytes + offset % slice_bytes
            T.evaluate(T.call_extern("void", "expertile_prefetch",
                                     T.address_of(self.W[self.e, row, k0]), offset))

    def _tile(self, of: _Scratch, r: Expr, m: int, half: Expr, first: Expr, part: Expr,
              count: Expr, row: Expr, k0: Expr, ahead: Buffer) -> None:
        """C[r .. r + m, tile] += X . P, for the `count` columns of K of a part."""
        g, per = self.g, self.g.per_step
        begin, steps = part * g.steps(g.inner), (count + (per - 1)) // per
        with scope("sums"):
            acc = Registers(m * g.pn, "float32", g.lanes)
            for q in range(m * g.pn):
                acc.set(q, T.Broadcast(T.float32(0), g.lanes))

            def step(k: Expr) -> None:
                self._fetch(begin + k, row, k0, ahead)
                for i in range(m):
                    for v in range(g.pn):
                        q, w = i * g.pn + v, of.P[begin + k, T.Ramp(v * g.lanes, 1, g.lanes)]
                        acc.set(q, T.call_extern(vector("float32", g.lanes), "expertile_dot_one",
                                                acc[q], of.X[part, r + i, k], w) if g.pairs
                            else acc[q] + T.Broadcast(of.X[part, r + i, k], g.lanes) * w)

            with T.serial(steps // g.unroll) as k, T.unroll(g.unroll) as u:
                step(k * g.unroll + u)
            if g.unroll > 1:
                with T.serial(steps // g.unroll * g.unroll, steps) as k:
                    step(k)
            for i in range(m):
                for v in range(g.pn):
                    at = T.Ramp(half * g.padded + first + v * g.lanes, 1, g.lanes)
                    value = acc[i * g.pn + v]
                    block = part * g.inner // g.block
                    if g.pairs and g.quantised:
                        value = value * of.scales[block, T.Ramp(v * g.lanes, 1, g.lanes)]
                    if self.XS is not None:
                        value = value * T.Broadcast(of.xs[r + i, block], g.lanes)
                    put(self.C, (r + i, at), self.C[r + i, at] + value)
