"""What the workers of the CPU lowering do: their runs of blocks, then the rows that were cut."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from tvm.script import tirx as T

from .._tvm.attention import Block, Buffer, Expr, Tile, padded, put, scope, when
from .._tvm.attention_feed import Ahead, Feed, rows_of
from .._tvm.attention_rows import (
    along,
    drop_odd,
    inverse,
    load_queries,
    log_sum,
    pair_rows,
    store_output,
    zero,
)
from .._tvm.bf16dot import imported
from .._tvm.exp2 import LOG2_E, exp2_nonpositive
from .._tvm.fetch import importing
from .._tvm.latent_cache import LatentCache
from .._tvm.registers import local
from .._tvm.transpose import function
from ..numerics import as_dtype
from ..spec import Shape
from . import FP8_GROUP, fp8_row_bytes


@dataclass(frozen=True)
class Sizes:
    """What is known when the kernel is compiled."""

    t: Tile
    heads: int
    s_q: int
    page: int
    causal: bool
    dtype: str
    kv_dtype: str

    @classmethod
    def of(cls, tile: Tile, static: Shape) -> Sizes:
        """From an operator's static axes."""
        return cls(tile, int(static["heads"]), int(static["s_q"]), int(static["page"]),
                   bool(static["causal"]), str(static["dtype"]), str(static["kv_dtype"]))

    @property
    def rows(self) -> int:
        """Query rows of a sequence."""
        return self.heads * self.s_q

    @property
    def groups(self) -> int:
        """Row groups of a sequence; each is one task for a block of keys."""
        return -(-self.rows // self.t.rows)

    @property
    def fp8(self) -> bool:
        """Whether the cache has FlashMLA's bytes."""
        return self.kv_dtype == "fp8"

    @property
    def width(self) -> int:
        """Elements of a row of the cache, as the caller's tensor has them."""
        t = self.t
        return fp8_row_bytes(t.d_v, t.d_qk - t.d_v) if self.fp8 else t.d_qk

    @property
    def views(self) -> tuple[str, str, str]:
        """Element types of three views of the cache."""
        if not self.fp8:
            return ("int32" if self.t.pairs else self.kv_dtype,) * 3
        return ("int16", "float32", "int32") if self.t.pairs else ("int8", "float32", "bfloat16")

    @property
    def widths(self) -> tuple[int, int, int]:
        """Elements of a row in those views."""
        own = as_dtype("uint8" if self.fp8 else self.kv_dtype).itemsize
        a, b, c = (self.width * own // as_dtype(v).itemsize for v in self.views)
        return a, b, c

    @property
    def direct(self) -> bool:
        """Whether keys are used where they stand: in whole tiles of a page, in whole vectors."""
        t = self.t
        return (t.pairs and not self.fp8 and self.page % t.nk == 0 and t.keys % t.nk == 0
                and t.nk % 2 == 0 and t.columns <= t.d_qk)


@dataclass(frozen=True)
class Call:
    """Buffers and sizes of one call."""

    q: Buffer                        # [batch, rows, elements]
    cache: tuple[Buffer, Buffer, Buffer]     # [elements], see `Sizes.views`
    table: Buffer
    lengths: Buffer
    out: Buffer
    lse: Buffer
    parts: Buffer                    # [2 * workers, rows, columns]: what is to be merged,
    tops: Buffer                     # and [2 * workers, rows]
    totals: Buffer
    scale: Expr
    batch: Expr
    table_width: Expr
    pages: Expr
    workers: Expr


def wide(value: Expr) -> Expr:
    """value as int64."""
    return T.Cast("int64", value)


def clamp(value: Expr, low: Expr, high: Expr) -> Expr:
    """value within low..high."""
    return T.max(T.min(value, high), low)


class Order:
    """All blocks of a call, by sequence, row group, block; each worker takes one run of them."""

    def __init__(self, sizes: Sizes, call: Call):
        self._s, self._call = sizes, call

    def blocks(self, n: Expr) -> Expr:
        """Blocks of n keys: a multiple of the workers if there are as many, so that each has as
        many; an empty sequence has one of no key, because it must be written."""
        keys, workers = self._s.t.keys, self._call.workers
        least = T.max((n + (keys - 1)) // keys, 1)
        return T.if_then_else(least < workers, least,
                              (least + (workers - 1)) // workers * workers)

    def begin(self, i: Expr, n: Expr, count: Expr) -> Expr:
        """The first key of block i: blocks differ by one score tile."""
        nk = self._s.t.nk
        tiles = wide((n + (nk - 1)) // nk)
        return T.min(T.Cast("int32", wide(i) * tiles // wide(count)) * nk, n)

    def length(self, b: Expr) -> Expr:
        """Keys of a sequence, as many as the block table can hold."""
        c = self._call
        return clamp(c.lengths[b], 0,
                     T.if_then_else(c.pages > 0, c.table_width * self._s.page, 0))

    def each(self, at: Buffer, body: Callable[[Expr, Expr, Expr, Expr], None]) -> None:
        """body(b, g, n, blocks) with at[0] = the first block's place among all."""
        put(at, 0, 0)
        with T.serial(self._call.batch) as b:
            put(at, 1, self.length(b))
            with T.serial(self._s.groups) as g:
                body(b, g, at[1], self.blocks(at[1]))
                put(at, 0, at[0] + self.blocks(at[1]))

    def total(self, at: Buffer) -> None:
        """at[2] = all blocks."""
        put(at, 2, 0)
        with T.serial(self._call.batch) as b:
            put(at, 2, at[2] + self._s.groups * self.blocks(self.length(b)))

    def busy(self, total: Expr) -> Expr:
        """Workers, of which none has an empty run."""
        return T.min(self._call.workers, T.max(total, 1))

    def start(self, w: Expr, total: Expr) -> Expr:
        """The first block of a worker's run."""
        return T.Cast("int32", wide(w) * wide(total) // wide(self.busy(total)))

    def worker_of(self, block: Expr, total: Expr) -> Expr:
        """Who has a block."""
        return T.Cast("int32", (wide(block + 1) * wide(self.busy(total)) - 1) // wide(total))


def run_worker(s: Sizes, c: Call, w: Expr) -> None:
    """One worker's run of blocks."""
    t, order = s.t, Order(s, c)
    with (imported(t.lanes) if t.pairs else nullcontext(),
          importing(function(t.lanes, t.unit)), scope("worker")):
        at = local(5, "int32")
        order.total(at)
        put(at, 3, order.start(w, at[2]))
        put(at, 4, order.start(w + 1, at[2]))

        def segment(b: Expr, g: Expr, n: Expr, count: Expr) -> None:
            first = T.max(at[3] - at[0], 0)
            last = T.min(at[4] - at[0], count)
            slot = 2 * w + T.if_then_else(first == 0, 1, 0)
            with when(T.And(w < order.busy(at[2]), first < last)), scope("segment"):
                Segment(s, c, order, b, g, n).run(first, last, count, slot)

        order.each(at, segment)


class Segment:
    """A row group of a sequence: the blocks of it that one worker has."""

    def __init__(self, s: Sizes, c: Call, order: Order, b: Expr, g: Expr, n: Expr):
        self.s, self.c, self.order, self.b, self.g, self.n = s, c, order, b, g, n
        self.cache = LatentCache(s.t, c.cache, s.views, s.widths, s.fp8, FP8_GROUP)
        self.block, self.row = Block(s.t), rows_of(s.t)
        self.values = self.block.new_values() if s.t.pairs else self.block.keys
        self.rows = local(5, "int32")        # rows, padded rows, the block's keys, its first key,
        put(self.rows, 0, T.min(s.t.rows, s.rows - g * s.t.rows))    # the end of those to fetch
        put(self.rows, 1, padded(self.rows[0], s.t.group))
        lines = self.cache.lines
        self.feed: Feed | Ahead = (
            Ahead(s.t, self.row, self.rows[2], lines) if s.t.pairs else
            Feed(s.t, self.block.keys, self.cache.parts(), self.row, lines))

    def run(self, first: Expr, last: Expr, count: Expr, slot: Expr) -> None:
        """Blocks first..last: of all `count` the result, else a part of it into `slot`."""
        s, c, block, rows = self.s, self.c, self.block, self.rows
        load_queries(s.t, block, rows[0], rows[1],
                     lambda r, d: c.q[self.b, self.g * s.t.rows + r, d])
        block.start(rows[1])
        put(rows, 4, self.order.begin(last, self.n, count))
        with T.serial(first, last) as i:
            put(rows, 3, self.order.begin(i, self.n, count))
            put(rows, 2, self.order.begin(i + 1, self.n, count) - rows[3])
            self._load()
            self._seen()
            block.scores(rows[1], rows[2], c.scale * T.float32(LOG2_E),
                         (lambda jt: self._tile_keys(jt)) if s.direct else None, self.feed)
            block.softmax(rows[1], rows[2])
            block.accumulate(self.values, rows[0], rows[2])
        with T.serial(rows[0]) as r, scope("row"), T.If(last - first == count):
            with T.Then():
                self._finish(r)
            with T.Else():
                self._keep(r, slot)

    def _tile_keys(self, jt: Expr) -> Callable[[int, Expr], Expr]:
        """Keys of a score tile where they stand, side by side in a page."""
        width, row = self.s.widths[0], self.row[jt * self.s.t.nk]
        return lambda j, d: self.c.cache[0][(row + j) * width + d]

    def _load(self) -> None:
        """Where the block's keys stand; what is not fed of them into the scratch, and values."""
        s, t, block, n, row = self.s, self.s.t, self.block, self.rows[2], self.row
        with when(n > 0), T.serial(row.shape[0]) as k:
            key = T.min(self.rows[3] + k, self.rows[4] - 1)      # beyond the last, the last again
            page = clamp(wide(self.c.table[self.b, key // s.page]), T.int64(0), self.c.pages - 1)
            put(row, k, page * s.page + wide(key % s.page))
        if s.direct:
            with T.serial((n + 1) // 2) as k, scope("pairs"):
                at, width = local(1, "int64"), s.widths[0]
                put(at, 0, row[2 * k] * width)
                pair_rows(t, self.values, k, lambda d: self.c.cache[0][at[0] + d],
                          lambda d: self.c.cache[0][at[0] + (width + d)], t.columns // 2)
            drop_odd(t, self.values, n)
        elif t.pairs:
            with T.serial(n) as k:
                self.cache.load_pairs(block, k, row[k])
            self._pair_keys()

    def _pair_keys(self) -> None:
        """Values from keys in the scratch; an odd number of them is followed by zeros."""
        t, keys, n = self.s.t, self.block.keys, self.rows[2]
        with when(n % 2 == 1):
            zero(t, keys, (n,), 0, t.key_columns)
            for g in range(t.scales if t.scaled else 0):
                put(self.block.scales, (n, g), T.float32(0))
        with T.serial((n + 1) // 2) as k:
            pair_rows(t, self.values, k, lambda c: keys[2 * k, c], lambda c: keys[2 * k + 1, c],
                      t.columns // 2)

    def _seen(self) -> None:
        """How many of the block's keys each row sees."""
        s, rows, t = self.s, self.rows, self.s.t
        with T.serial(rows[1]) as r:
            at = (r // t.lanes, r % t.lanes)
            if s.causal and s.s_q > 1:
                query = (self.g * t.rows + T.min(r, rows[0] - 1)) // s.heads
                put(self.block.sees, at,
                    clamp(self.n - rows[3] - (s.s_q - 1) + query, 0, rows[2]))
            else:
                put(self.block.sees, at, rows[2])

    def _finish(self, r: Expr) -> None:
        """Row r into the caller's tensors."""
        s, c, t, block = self.s, self.c, self.s.t, self.block
        at, row = (r // t.lanes, r % t.lanes), self.g * t.rows + r
        put(c.lse, (self.b, row % s.heads, row // s.heads),
            log_sum(block.top[at], block.total[at]))
        factor = local(1)
        put(factor, 0, inverse(block.total[at]))
        store_output(t, c.out, (self.b, row), lambda d: block.acc[r, d] * factor[0], s.dtype)

    def _keep(self, r: Expr, slot: Expr) -> None:
        """Row r of a part."""
        c, t, block = self.c, self.s.t, self.block
        at = (r // t.lanes, r % t.lanes)
        put(c.tops, (slot, r), block.top[at])
        put(c.totals, (slot, r), block.total[at])
        along(t.lanes, 0, t.columns, lambda d: put(c.parts, (slot, r, d), block.acc[r, d]))


def merge_rows(s: Sizes, c: Call, part: Expr) -> None:
    """One of `workers` shares of the rows of each row group that was cut."""
    order, rows = Order(s, c), s.t.rows
    with scope("cut"):
        at = local(5, "int32")
        order.total(at)

        def segment(b: Expr, g: Expr, n: Expr, count: Expr) -> None:
            put(at, 3, order.worker_of(at[0], at[2]))
            put(at, 4, order.worker_of(at[0] + count - 1, at[2]))
            with when(at[3] < at[4]):
                here = T.min(rows, s.rows - g * rows)
                with T.serial(here * part // c.workers, here * (part + 1) // c.workers) as r:
                    _merge(s, c, b, g * rows + r, r, at[3], at[4])

        order.each(at, segment)


def _merge(s: Sizes, c: Call, b: Expr, row: Expr, r: Expr, w0: Expr, w1: Expr) -> None:
    """Row r of a group from the workers w0..w1: the first piece of a run or the last."""
    t = s.t
    with scope("merge"):
        out = T.alloc_buffer((t.columns,), "float32", scope="global")
        sums = local(3)

        def slot(w: Expr) -> Expr:
            return 2 * w + T.if_then_else(w == w0, 1, 0)

        put(sums, 0, c.tops[slot(w0), r])
        put(sums, 1, T.float32(0))
        with T.serial(w0 + 1, w1 + 1) as w:
            put(sums, 0, T.max(sums[0], c.tops[slot(w), r]))
        along(t.lanes, 0, t.columns, lambda d: put(out, d, T.float32(0)))
        with T.serial(w0, w1 + 1) as w:
            put(sums, 2, exp2_nonpositive(c.tops[slot(w), r] - sums[0]))
            put(sums, 1, sums[1] + sums[2] * c.totals[slot(w), r])
            along(t.lanes, 0, t.columns, lambda d: put(
                out, d, out[d] + sums[2] * c.parts[slot(w), r, d]))
        put(c.lse, (b, row % s.heads, row // s.heads), log_sum(sums[0], sums[1]))
        put(sums, 2, inverse(sums[1]))
        store_output(t, c.out, (b, row), lambda d: out[d] * sums[2], s.dtype)
