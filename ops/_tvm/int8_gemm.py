"""CPU tiles of X @ W^T of int8 codes: exact int32 sums under each pair of scales.

Weights stand as in a checkpoint, [E, N, K], never packed: what is packed are the activations, once
a call (int8_tiles.py). A tile of many rows keeps rows in lanes and broadcasts four weights; AMX
takes 16 rows of W as one operand and the packed activations as the other. A few rows run along K
instead, and each weight is read once. Products of int16 pairs ("madd") have few columns of W
widened before, for all rows of the item.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from . import stack
from .emit import Buffer, Expr, put, scope, vector, when
from .fetch import fetch
from .int8_stream import LINE, Stream
from .int8_tiles import HEAD, PAIRS, REGISTERS, Int8Tiles
from .int8dot import (
    TILE,
    amx_dot,
    amx_end,
    amx_load,
    amx_start,
    amx_store,
    amx_zero,
    as_codes,
    dot,
    tail_word,
    word_at,
)
from .registers import Registers, local


@dataclass(frozen=True)
class Int8Task:
    """One task: C[row, half * padded + column] = X[x_row(row)] . W[e, half * n + column]."""

    g: Int8Tiles
    A: Buffer                        # [rows, K] int8
    AS: Buffer                       # [rows, K blocks]
    XP: Buffer                       # [blocks, words, lanes] int32: A, packed
    x_row: Callable[[Expr], Expr]    # row of the numbering of items -> row of A
    W: Buffer                        # [E, halves * n, K] int8
    S: Buffer                        # [E, N blocks, K blocks]
    C: Buffer                        # scratch(g)
    e: Expr                          # int64: the expert
    item: Expr
    first: Expr                      # first row, in the numbering of items
    rows: Expr
    col: Expr                        # first column

    def emit(self) -> None:
        """The whole task."""
        stack.align()
        many = self._tiles if self.g.tiled else self._widened if self.g.pairs else self._lanes
        when(self.rows <= self.g.few, self._few, many)

    def _scale(self, row: Expr, kb: Expr) -> Expr:
        return self.S[self.e, row // self.g.block_n, kb]

    def _w_row(self, half: Expr, column: Expr) -> Expr:
        return T.Cast("int64", half * self.g.n + self.col + column)

    # ---- a few rows: vectors along K

    def _few(self) -> None:
        g = self.g
        if not g.pairs:
            self._stream_rows(g.tile_rows, self.rows, self.A)
            return
        with scope("few"):
            x = T.alloc_buffer((g.few, g.k), "int16", scope="global")
            tiles = (self.rows + (g.tile_rows - 1)) // g.tile_rows
            with T.serial(self.rows) as i:
                row = T.Cast("int64", self.x_row(self.first + i))
                self._widen(x, i, lambda k: self.A[row, k])
            self._stream_rows(g.tile_rows, (self.rows + (tiles - 1)) // T.max(tiles, 1), x)

    def _widen(self, to: Buffer, i: Expr, codes: Callable[[Expr], Expr]) -> None:
        """to[i] = int16 of the codes."""
        g = self.g
        with T.serial(g.k // g.run) as v:
            at = T.Ramp(v * g.run, 1, g.run)
            put(to, (i, at), T.Cast(vector("int16", g.run), codes(at)))
        if g.k % g.run:
            with T.serial(g.k // g.run * g.run, g.k) as k:
                put(to, (i, k), T.Cast("int16", codes(k)))

    def _stream_rows(self, m: int, size: Expr, x: Buffer) -> None:
        """Tiles of `size` rows, m at most."""
        if m == 1:
            self._stream(1, x)
        else:
            when(size == m, lambda: self._stream(m, x), lambda: self._stream_rows(m - 1, size, x))

    def _stream(self, m: int, x: Buffer) -> None:
        """Tiles of m rows; the last one overlaps its neighbour rather than being smaller."""
        g = self.g
        nr = min(g.columns(m), g.width)
        apart = -(-g.width // nr)    # columns far apart are streams of their own (gemm.py)
        tiles = (self.rows + (m - 1)) // m if g.few > g.tile_rows else 1
        with (T.serial(g.halves) as half, T.serial(apart) as nt, T.serial(tiles) as tile,
              scope("stream")):
            r = T.min(tile * m, self.rows - m)
            s = Stream(self, m, nr, x)
            for i in range(m):
                put(s.scales, i, T.Cast("int64", self.x_row(self.first + r + i)))
                put(s.x, i, T.Cast("int64", r + i) if g.pairs else s.scales[i])
            column = [T.min(nt + j * apart, g.width - 1) for j in range(nr)]
            for j in range(nr):
                put(s.row, j, self._w_row(half, column[j]))
            s.run()
            for i in range(m):
                for j in range(nr):
                    put(self.C, (r + i, half * g.padded + column[j]), s.total(i * nr + j))

    # ---- rows in lanes

    def _widened(self) -> None:
        """Columns of W as int16 in the first cache, then all rows."""
        g, sizes = self.g, PAIRS[self.g.lanes]
        wide, nr = sizes[0]
        blocks = (self.rows + (g.lanes - 1)) // g.lanes
        groups = (blocks + (wide - 1)) // wide
        with scope("widened"):
            w = T.alloc_buffer((nr, g.k + 1), "int16", scope="global")
            row = local(1, "int64")
            with T.serial(g.halves) as half, T.serial(-(-g.width // nr)) as nt:
                with T.serial(nr) as j:
                    put(row, 0, self._w_row(half, T.min(nt * nr + j, g.width - 1)))
                    self._widen(w, j, lambda k: self.W[self.e, row[0], k])
                    put(w, (j, g.k), T.int16(0))
                then = nt * nr + nr < g.width
                following = self._w_row(T.Select(then, half, T.min(half + 1, g.halves - 1)),
                                        T.Select(then, nt * nr + nr, 0))
                lines = nr * -(-g.k // LINE)
                share = (lines + (groups - 1)) // T.max(groups, 1)
                with T.serial(groups) as group:
                    left = blocks - group * wide
                    with T.serial(T.min(share, lines - group * share)) as i:
                        fetch(self.W[self.e, following, (group * share + i) * LINE])

                    def rows(sizes: tuple[tuple[int, int], ...], group: Expr = group,
                             half: Expr = half, nt: Expr = nt, left: Expr = left) -> None:
                        def tile() -> None:
                            with scope("pairs"):
                                _Lanes(self, w, group * wide, blocks, half, nt * nr,
                                       *sizes[0]).run()
                        if len(sizes) == 1:
                            tile()
                        else:
                            when(left > sizes[1][0], tile, lambda: rows(sizes[1:]))

                    rows(sizes)

    def _lanes(self) -> None:
        with scope("sums"):
            sums: Buffer = None      # where nothing is plus 128
            if self.g.offset:
                sums = T.alloc_buffer((self.g.halves * self.g.width, self.g.k_blocks), "int32",
                                      scope="global")
                self._column_sums(sums)
            self._groups(sums)

    def _column_sums(self, sums: Buffer) -> None:
        """sums[half * width + column, kb] = -128 * sum of W's codes under a scale."""
        g, L = self.g, self.g.lanes
        ones = T.Broadcast(T.int8(1), 4 * L)
        with (T.serial(g.halves) as half, T.serial(g.width) as j, T.serial(g.k_blocks) as kb,
              scope("sum")):
            total, rest = local(1, vector("int32", L)), local(1, "int32")
            row, k0, length = self._w_row(half, j), kb * g.step, g.length(kb)
            put(total, 0, T.Broadcast(T.int32(0), L))
            put(rest, 0, T.int32(0))
            with T.serial(length // (4 * L)) as v:
                w = self.W[self.e, row, T.Ramp(k0 + v * (4 * L), 1, 4 * L)]
                put(total, 0, dot(g.kind, total[0], ones, w, L))
            if g.step % (4 * L) or g.k % (4 * L):
                with T.serial(length // (4 * L) * (4 * L), length) as k:
                    put(rest, 0, rest[0] + T.Cast("int32", self.W[self.e, row, k0 + k]))
            sum_of = T.call_llvm_pure_intrin("int32", f"llvm.vector.reduce.add.v{L}i32", total[0])
            put(sums, (half * g.width + j, kb), (sum_of + rest[0]) * T.int32(-128))

    def _groups(self, sums: Buffer) -> None:
        blocks = (self.rows + (self.g.lanes - 1)) // self.g.lanes
        wide = REGISTERS[0][0]
        with T.serial((blocks + (wide - 1)) // wide) as group:
            left = blocks - group * wide

            def columns(rv: int, nr: int) -> None:
                with (T.serial(self.g.halves) as half,
                      T.serial(-(-self.g.width // nr)) as nt, scope("lanes")):
                    _Lanes(self, sums, group * wide, blocks, half, nt * nr, rv, nr).run()

            when(left > 2, lambda: columns(*REGISTERS[0]),
                 lambda: when(left > 1, lambda: columns(*REGISTERS[1]),
                              lambda: columns(*REGISTERS[2])))

    def _block(self, b: Expr, blocks: Expr) -> Expr:
        """A packed block of this item; past its end the last one, whose result nobody reads."""
        return T.Cast("int64", self.first // self.g.lanes + self.item + T.min(b, blocks - 1))

    # ---- AMX

    def _tiles(self) -> None:
        g = self.g
        blocks = (self.rows + (TILE - 1)) // TILE
        with scope("tiles"):
            config = T.alloc_buffer((16,), "int32", scope="global")
            sums = T.alloc_buffer((4, TILE, TILE), "int32", scope="global")
            totals = T.alloc_buffer((4, TILE, TILE), "float32", scope="global")
            amx_start(config)
            with (T.serial((blocks + 1) // 2) as pair, T.serial(g.halves) as half,
                  T.serial(-(-g.width // (2 * TILE))) as nt):
                self._tile(pair * 2, blocks, half, nt * 2 * TILE, sums, totals)
            amx_end()

    def _tile(self, b: Expr, blocks: Expr, half: Expr, column: Expr, sums: Buffer,
              totals: Buffer) -> None:
        """Two by two tiles: 0 .. 3 are sums [columns, rows], 4 and 5 of W, 6 and 7 of rows."""
        g = self.g
        columns = [T.min(column + j * TILE, g.width - TILE) for j in range(2)]
        block = [self._block(b + i, blocks) for i in range(2)]
        with T.serial(g.k_blocks) as kb:
            for t in range(4):
                amx_zero(t)
            with T.serial(g.step // 64) as kk:
                for j in range(2):
                    amx_load(4 + j, T.address_of(
                        self.W[self.e, self._w_row(half, columns[j]), kb * g.step + kk * 64]), g.k)
                for i in range(2):
                    amx_load(6 + i, T.address_of(
                        self.XP[block[i], kb * g.slot + HEAD + kk * 16, 0]), 64)
                for j in range(2):
                    for i in range(2):
                        amx_dot(2 * j + i, 4 + j, 6 + i)
            for t in range(4):
                amx_store(t, T.address_of(sums[t, 0, 0]), 64)
            for j in range(2):
                with T.serial(TILE) as n:
                    sb = self._scale(self._w_row(half, columns[j] + n), kb)
                    for i in range(2):
                        lanes = T.Ramp(0, 1, TILE)
                        sa = T.reinterpret("float32x16", self.XP[block[i], kb * g.slot, lanes])
                        value = T.Cast("float32x16", sums[2 * j + i, n, lanes]) * (
                            sa * T.Broadcast(sb, TILE))
                        at = (2 * j + i, n, lanes)
                        put(totals, at, T.Select(kb == 0, T.Broadcast(T.float32(0), TILE),
                                                 totals[at]) + value)
        for j in range(2):
            for i in range(2):
                with T.serial(TILE) as l, T.serial(TILE) as n:
                    put(self.C, ((b + i) * TILE + l, half * g.padded + columns[j] + n),
                        totals[2 * j + i, n, l])


class _Lanes:
    """rv vectors of rows and nr columns."""

    def __init__(self, task: Int8Task, sums: Buffer, b: Expr, blocks: Expr, half: Expr,
                 column: Expr, rv: int, nr: int):
        self.task, self.g, self.b, self.half, self.rv, self.nr = task, task.g, b, half, rv, nr
        self.sums = sums             # [halves * width, K blocks]: what takes VNNI's offset away;
                                     # or [nr, K + 1]: W widened
        L = self.g.lanes
        self.acc = Registers(rv * nr, L, "int32")
        self.wide = Registers(rv * nr, L)
        self.a = Registers(rv, L, "int32")
        self.block, self.row = local(rv, "int64"), local(nr, "int64")
        self.first = column
        for i in range(rv):
            put(self.block, i, task._block(b + i, blocks))
        for j in range(nr):
            put(self.row, j, task._w_row(half, self._column(j)))

    def _column(self, j: Expr) -> Expr:
        column = self.first + j
        return T.min(column, self.g.width - 1) if self.g.width % self.nr else column

    def _packed(self, i: int, word: Expr) -> Expr:
        return self.task.XP[self.block[i], word, T.Ramp(0, 1, self.g.lanes)]

    def run(self) -> None:
        """All of K, then C."""
        g, L = self.g, self.g.lanes
        if g.k_blocks > 1:
            for q in range(self.rv * self.nr):
                self.wide.set(q, T.Broadcast(T.float32(0), L))
        with T.serial(g.k_blocks) as kb:
            self._scaled(kb)
        lane = local(self.rv * self.nr * L)      # a loop over these: a tenth of the code
        for q in range(self.rv * self.nr):
            put(lane, T.Ramp(q * L, 1, L), self.wide[q])
        with T.serial(self.rv) as i, T.serial(L) as l, T.serial(self.nr) as j:
            put(self.task.C, ((self.b + i) * L + l, self.half * g.padded + self._column(j)),
                lane[(i * self.nr + j) * L + l])

    def _scaled(self, kb: Expr) -> None:
        task, g, L = self.task, self.g, self.g.lanes
        at, k0, length = kb * g.slot, kb * g.step, g.length(kb)
        start = [self.sums[self.half * g.width + self._column(j), kb] if g.offset else T.int32(0)
                 for j in range(self.nr)]
        for i in range(self.rv):
            for j in range(self.nr):
                self.acc.set(i * self.nr + j, T.Broadcast(start[j], L))

        def step(word: Expr, weight: Callable[[Expr], Expr]) -> None:
            for i in range(self.rv):
                self.a.set(i, self._packed(i, at + HEAD + word))
            for j in range(self.nr):
                w = as_codes(g.kind, T.Broadcast(weight(j), L), L)
                for i in range(self.rv):
                    q = i * self.nr + j
                    self.acc.set(q, dot(g.kind, self.acc[q],
                                        as_codes(g.kind, self.a[i], L), w, L))

        if g.pairs:                  # an odd last code meets a 0 of the rows
            with T.serial((length + 1) // 2) as word:
                step(word, lambda j: T.reinterpret(
                    "int32", self.sums[j, T.Ramp(k0 + 2 * word, 1, 2)]))
            self._scale(kb)
            return
        with T.serial(length // 4) as word:
            step(word, lambda j: word_at(task.W, task.e, self.row[j], k0 + 4 * word))
        if g.step % 4 or g.k % 4:
            with T.If(length % 4 > 0), T.Then():
                step(length // 4, lambda j: tail_word(
                    task.W, k0 + length, False, task.e, self.row[j], k0 + length // 4 * 4))
        self._scale(kb)

    def _scale(self, kb: Expr) -> None:
        task, g, L, at = self.task, self.g, self.g.lanes, kb * self.g.slot
        for i in range(self.rv):
            scale = T.reinterpret(vector("float32", L), self._packed(i, at))
            for j in range(self.nr):
                q = i * self.nr + j
                value = T.Cast(vector("float32", L), self.acc[q]) * (
                    scale * T.Broadcast(task._scale(self.row[j], kb), L))
                self.wide.set(q, self.wide[q] + value if g.k_blocks > 1 else value)
