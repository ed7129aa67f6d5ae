"""A tile of few rows of int8 codes: vectors run along K, and each weight is read once."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from .emit import Buffer, Expr, put, vector
from .fetch import fetch
from .int8dot import dot, is_offset, kept
from .registers import Registers, local

LINE = 64                            # bytes that a fetch brings
_AHEAD = 2048                        # by how many a stream of weights is fetched early


class Stream:
    """Few rows and a few columns; vectors run along K."""

    def __init__(self, task: Any, m: int, nr: int, rows: Buffer):
        self.task, self.g, self.m, self.nr = task, task.g, m, nr
        self.rows = rows             # [rows, K] int8, or the task's own as int16
        L = self.g.lanes
        self.acc, self.sums = Registers(m * nr, L, "int32"), Registers(m, L, "int32")
        self.a = Registers(m, self.g.run, "int16" if self.g.pairs else "int8")
        self.red = local(m * nr, "int32")                # the rest of a block beside whole vectors
        self.wide = Registers(m * nr, L)
        self.rest = local(m * nr)
        self.lane = local(m * nr * L)
        self.x, self.scales, self.row = (local(size, "int64") for size in (m, m, nr))

    def run(self) -> None:
        """All of K."""
        g, L = self.g, self.g.lanes
        for q in range(self.m * self.nr):
            self.wide.set(q, T.Broadcast(T.float32(0), L))
            if g.ragged:
                put(self.rest, q, T.float32(0))
        with T.serial(g.k_blocks) as kb:
            self._block(kb)
        for q in range(self.m * self.nr):
            at, half = q * L, L // 2
            put(self.lane, T.Ramp(at, 1, L), self.wide[q])
            while half > 1:
                low, high = T.Ramp(at, 1, half), T.Ramp(at + half, 1, half)
                put(self.lane, low, self.lane[low] + self.lane[high])
                half //= 2

    def total(self, q: int) -> Expr:
        """The sum of row and column q."""
        at = q * self.g.lanes
        total = self.lane[at] + self.lane[at + 1]
        return total + self.rest[q] if self.g.ragged else total

    def _block(self, kb: Expr) -> None:
        task, g, L = self.task, self.g, self.g.lanes
        zero = T.Broadcast(T.int32(0), L)
        for q in range(self.m * self.nr):
            self.acc.set(q, zero)
            if g.ragged:
                put(self.red, q, T.int32(0))
        for i in range(self.m):
            self.sums.set(i, zero)
        length = g.length(kb)
        each = LINE // g.run if g.pairs else 1
        with T.serial(length // (g.run * each)) as kv:
            for u in range(each):
                self._step(kb * g.step + (kv * each + u) * g.run, g.pairs and u == 0)
        if each > 1 and (g.step % LINE or g.k % LINE):
            with T.serial(length // LINE * each, length // g.run) as kv:
                self._step(kb * g.step + kv * g.run, False)
        if g.ragged:
            with T.serial(length // g.run * g.run, length) as kt:
                for i in range(self.m):
                    for j in range(self.nr):
                        k = kb * g.step + kt
                        put(self.red, i * self.nr + j, self.red[i * self.nr + j]
                            + T.Cast("int32", self.rows[self.x[i], k])
                            * T.Cast("int32", task.W[task.e, self.row[j], k]))
        for i in range(self.m):
            for j in range(self.nr):
                q, acc = i * self.nr + j, self.acc[i * self.nr + j]
                if is_offset(g.kind):
                    acc = acc - self.sums[i] * T.Broadcast(T.int32(128), L)
                scale = task.AS[self.scales[i], kb] * task._scale(self.row[j], kb)
                self.wide.set(q, self.wide[q] + T.Cast(vector("float32", L), acc)
                    * T.Broadcast(scale, L))
                if g.ragged:
                    put(self.rest, q, self.rest[q] + T.Cast("float32", self.red[q]) * scale)

    def _step(self, k0: Expr, fetches: bool) -> None:
        """A vector of each row and column; `fetches`: it is the first of a cache line."""
        task, g, L = self.task, self.g, self.g.lanes
        k = T.Ramp(k0, 1, g.run)
        for i in range(self.m):
            self.a.set(i, self.rows[self.x[i], k])
            if is_offset(g.kind):
                ones = T.Broadcast(T.int8(1), 4 * L)
                self.sums.set(i, dot(g.kind, self.sums[i], ones, self.a[i], L))
        for j in range(self.nr if fetches else 0):
            fetch(task.W[task.e, self.row[j], k0 + _AHEAD])
        w = [task.W[task.e, row, k] for row in (self.row[j] for j in range(self.nr))]
        if is_offset(g.kind):
            w = [each ^ T.Broadcast(T.int8(-128), 4 * L) for each in w]
        elif g.pairs:
            w = [T.Cast(vector("int16", g.run), each) for each in w]
        tile = [(i, j) for j in range(self.nr) for i in range(self.m)]
        for i, j in sorted(tile) if g.pairs else tile:       # fewer columns than rows to hold
            q = i * self.nr + j
            self.acc.set(q, kept(g.kind, dot(g.kind, self.acc[q], w[j], self.a[i], L), L))
