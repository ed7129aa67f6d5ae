"""One block of keys under online softmax (FlashAttention-2, Dao 2023), for decode and prefill.

Scores stand with rows (heads or queries) in lanes: a query panel is loaded as vectors, keys are
broadcast, and softmax needs no sum across lanes. Outputs stand with features in lanes, so values
are loaded as vectors and probabilities are broadcast. Both products run in float32, or with
AVX512-BF16 on pairs: two features of a key, then two keys of a feature.

Plain Python functions that emit into the TVMScript function that calls them, as in gemm.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from tvm.script import tirx as T

from ..space import Config, Knob, Space
from .bf16dot import dot
from .exp2 import exp2_nonpositive
from .registers import Registers, local

if TYPE_CHECKING:
    from .attention_feed import Ahead, Feed

Expr = Any                           # a TVM expression
Buffer = Any                         # a TVM buffer

Keys = Callable[[Expr], Callable[[int, Expr], Expr]]     # score tile -> (key, element) -> value

UNROLL = 4                           # steps of a score tile written out
PANEL_BYTES = 16384                  # of queries that fit the first-level cache beside keys
LINE = 16                            # elements of a cache line
NO_KEY = -1e30                       # a row maximum that no score reaches: no key seen so far
LOW, HIGH = 0xFFFF, -65536           # the halves of a pair


def padded(size: Any, unit: int) -> Any:
    """The smallest multiple of unit that holds size."""
    return -(-size // unit) * unit if isinstance(size, int) else (size + (unit - 1)) // unit * unit


@dataclass(frozen=True)
class Tile:
    """Compile-time sizes of one block."""

    lanes: int
    pairs: bool                      # bfloat16 pairs as int32, else float32
    rows: int                        # rows of a task at most
    keys: int                        # keys in a block
    d_qk: int
    d_v: int
    hv: int                          # score tile: hv row vectors x nk keys
    nk: int
    pr: int                          # output tile: pr rows, a part of one row vector, x pv vectors
    pv: int
    scaled: int = 0                  # features of a key that share a scale; 0: none has one

    @property
    def step(self) -> int:
        """Features (or keys) in one element of an operand."""
        return 2 if self.pairs else 1

    @property
    def scales(self) -> int:
        """Scales of a key, and versions of its probabilities."""
        return -(-self.d_v // self.scaled) if self.scaled else 1

    @property
    def unit(self) -> str:
        """The element type of operands."""
        return "int32" if self.pairs else "float32"

    @property
    def group(self) -> int:
        """Rows of a score tile."""
        return self.hv * self.lanes

    @property
    def row_vectors(self) -> int:
        """Row vectors of a task, in whole score tiles."""
        return int(padded(self.rows, self.group)) // self.lanes

    @property
    def q_steps(self) -> int:
        """Elements of a query or key."""
        return -(-self.d_qk // self.step)

    @property
    def key_rows(self) -> int:
        """Keys of the scratch: whole score tiles and pairs."""
        return int(padded(padded(self.keys, self.nk), 2))

    @property
    def columns(self) -> int:
        """Features of the output: whole vectors; of pairs, as many of even as of odd ones."""
        return int(padded(self.d_v, self.lanes * self.step))

    @property
    def acc_columns(self) -> int:
        """Elements of a row of outputs in the scratch: an odd number of cache lines."""
        return (-(-self.columns // LINE) | 1) * LINE

    @property
    def value_columns(self) -> int:
        """Elements of a row of values: one vector more than needed spreads rows over cache sets."""
        return self.columns + self.lanes

    @property
    def key_columns(self) -> int:
        """Elements of a row of keys, whole vectors; in float32 a row is also a row of values.

        An odd number of cache lines spreads the rows of a strip over all sets of the cache.
        """
        lines = -(-max(self.q_steps, self.columns // self.step) // LINE)
        return (lines | 1) * LINE

    def vector(self, first: Expr) -> Expr:
        """The indices of one vector."""
        return T.ramp(first, 1, self.lanes)

    def add(self, total: Expr, a: Expr, b: Expr) -> Expr:
        """total + a * b for vectors total and a and a scalar b."""
        wide = T.broadcast(b, self.lanes)
        return dot(total, a, wide, self.lanes) if self.pairs else total + a * wide


def put(buffer: Buffer, index: Any, value: Expr) -> None:
    """buffer[index] = value."""
    T.buffer_store(buffer, value, list(index) if isinstance(index, tuple) else [index])


@contextmanager
def scope(name: str) -> Iterator[None]:
    """A block for registers. Its regions are not derived: they would name buffers inside it."""
    with T.sblock(name):
        T.reads([])
        T.writes([])
        yield


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """if condition: ..."""
    with T.If(condition), T.Then():
        yield


def steps(first: int, count: int, step: Callable[[Expr], None],
          beside: Callable[[Expr], None] | None = None) -> None:
    """step(d) for first <= d < first + count, UNROLL of them in turn i after beside(i)."""
    with T.serial(count // UNROLL) as c:
        if beside:
            beside(first // UNROLL + c)
        for u in range(UNROLL):
            step(first + c * UNROLL + u)
    if count % UNROLL:
        with T.serial(first + count // UNROLL * UNROLL, first + count) as d:
            step(d)


class Block:
    """The scratch of one task, and the steps of a block of keys on it."""

    def __init__(self, tile: Tile):
        t = self.tile = tile
        shape = (t.row_vectors, t.lanes)

        def scratch(*sizes: int, dtype: str = "float32") -> Buffer:
            return T.alloc_buffer(sizes, dtype, scope="global")

        self.q = scratch(t.row_vectors, t.q_steps * t.lanes, dtype=t.unit)
        self.keys = scratch(t.key_rows, t.key_columns, dtype=t.unit)
        self.s = scratch(t.row_vectors, t.key_rows, t.lanes)
        self.p = scratch(t.scales, t.row_vectors, t.key_rows // t.step, t.lanes, dtype=t.unit)
        self.acc = scratch(t.row_vectors * t.lanes, t.acc_columns)
        self.top, self.block_top = scratch(*shape), scratch(*shape)
        self.total, self.rescale = scratch(*shape), scratch(*shape)
        self.sees = scratch(*shape, dtype="int32")   # keys of the block that a row sees
        if t.scaled:
            self.scales = scratch(t.key_rows, t.scales)

    def new_values(self) -> Buffer:
        """Scratch for values that are not rows of keys."""
        t = self.tile
        return T.alloc_buffer((t.key_rows // t.step, t.value_columns), t.unit, scope="global")

    def start(self, rows: Expr) -> None:
        """No key seen by any row; rows are padded to whole score tiles here and in what follows."""
        t = self.tile
        with T.serial(rows // t.lanes) as v:
            at = (v, t.vector(0))
            put(self.top, at, T.broadcast(T.float32(NO_KEY), t.lanes))
            put(self.total, at, T.broadcast(T.float32(0), t.lanes))
        with T.serial(rows) as r, T.serial(t.columns // t.lanes) as c:
            put(self.acc, (r, t.vector(c * t.lanes)), T.broadcast(T.float32(0), t.lanes))

    def last_sees(self, group: Expr) -> Expr:
        """Keys that the last row of a score tile sees: earlier rows see no more."""
        t = self.tile
        return self.sees[group * t.hv + (t.hv - 1), t.lanes - 1]

    def scores(self, rows: Expr, n: Expr, factor: Expr, tile_keys: Keys | None = None,
               feed: Feed | Ahead | None = None) -> None:
        """s = factor * q . keys for n keys, -inf where a row does not see one.

        `tile_keys` finds the keys of a score tile where they stand; else they are in the scratch.
        What `feed` does happens beside the last tile of rows, which sees the most keys.
        """
        t = self.tile
        tiles, keys_of = rows // t.group, tile_keys or self._loaded
        with T.serial(rows // t.lanes) as v:
            put(self.block_top, (v, t.vector(0)), self.top[v, t.vector(0)])
        if feed:
            with T.serial((n + (t.nk - 1)) // t.nk) as jt, scope("fed"):
                self._score_tile(tiles - 1, jt, factor, keys_of(jt), feed)
        if feed and t.row_vectors == t.hv:
            return
        others = tiles - int(feed is not None)
        if t.group * t.q_steps * 4 <= PANEL_BYTES:       # stays near while all keys pass by
            with (T.serial(others) as it,
                  T.serial((T.min(n, self.last_sees(it)) + (t.nk - 1)) // t.nk) as jt,
                  scope("scores")):
                self._score_tile(it, jt, factor, keys_of(jt))
            return
        with (T.serial((n + (t.nk - 1)) // t.nk) as jt, T.serial(others) as it,
              when(jt * t.nk < self.last_sees(it)), scope("scores")):
            self._score_tile(it, jt, factor, keys_of(jt))

    def _loaded(self, jt: Expr) -> Callable[[int, Expr], Expr]:
        return lambda j, d: self.keys[jt * self.tile.nk + j, d]

    def _score_tile(self, it: Expr, jt: Expr, factor: Expr,
                    key: Callable[[int, Expr], Expr], feed: Feed | Ahead | None = None) -> None:
        t = self.tile
        # a key is broadcast once and used at once: its order decides how many registers are live
        cells = [(i, j, i * t.nk + j) for j in range(t.nk) for i in range(t.hv)]
        reg = Registers(len(cells), t.lanes)

        def zero(sums: Registers) -> None:
            for _, _, a in cells:
                sums.set(a, T.broadcast(T.float32(0), t.lanes))

        def step(sums: Registers, d: Expr) -> None:
            for i, j, a in cells:
                sums.set(a, t.add(sums[a], self.q[it * t.hv + i, t.vector(d * t.lanes)], key(j, d)))

        def product(sums: Registers, first: int, count: int) -> None:
            (partial(feed.products, jt) if feed else steps)(first, count, lambda d: step(sums, d))

        zero(reg)
        if t.scaled:
            part = Registers(len(cells), t.lanes)
            for g in range(t.scales):
                first, last = g * t.scaled // 2, min((g + 1) * t.scaled, t.d_v) // 2
                zero(part)
                product(part, first, last - first)
                for _, j, a in cells:
                    reg.set(a, reg[a] + part[a] * T.broadcast(
                        self.scales[jt * t.nk + j, g], t.lanes))
        done = t.d_v // 2 if t.scaled else 0
        if t.q_steps > done:
            product(reg, done, t.q_steps - done)
        for i, j, a in cells:
            seen = T.broadcast(jt * t.nk + j, t.lanes) < self.sees[it * t.hv + i, t.vector(0)]
            reg.set(a, T.Select(seen, reg[a] * T.broadcast(factor, t.lanes),
                                T.broadcast(-T.infinity("float32"), t.lanes)))
            put(self.s, (it * t.hv + i, jt * t.nk + j, t.vector(0)), reg[a])
        for i in range(t.hv):
            most = [reg[i * t.nk + j] for j in range(t.nk)]
            while len(most) > 1:
                most = [T.max(a, b) for a, b in zip(most[::2], most[1::2], strict=False)] + (
                    most[-1:] if len(most) % 2 else [])
            at = (it * t.hv + i, t.vector(0))
            put(self.block_top, at, T.max(self.block_top[at], most[0]))

    def softmax(self, rows: Expr, n: Expr) -> None:
        """p = 2^(s - top) with the rows' new maxima, their sums, and what rescales the output."""
        t = self.tile
        with T.serial(rows // t.lanes) as v, scope("softmax"):
            x, lane = local(2 * t.lanes), local(t.lanes)
            with T.vectorized(t.lanes) as l:
                put(lane, l, exp2_nonpositive(self.top[v, l] - self.block_top[v, l]))
            with T.vectorized(t.lanes) as l:
                put(self.rescale, (v, l), lane[l])
                put(self.total, (v, l), self.total[v, l] * lane[l])
                put(self.top, (v, l), self.block_top[v, l])
            with T.vectorized(t.lanes) as l:
                put(lane, l, T.float32(0))
            known = T.min(n, self.last_sees(v // t.hv))      # beyond them s was not computed
            with T.serial((known + (t.step - 1)) // t.step) as k:
                for i in range(t.step):
                    with T.vectorized(t.lanes) as l:
                        put(x, i * t.lanes + l, exp2_nonpositive(
                            self.s[v, k * t.step + i, l] - self.top[v, l]))
                for i in range(t.step):
                    with T.vectorized(t.lanes) as l:
                        put(lane, l, lane[l] + x[i * t.lanes + l])
                for g in range(t.scales):
                    self._store_p(x, g, v, k)
            with T.vectorized(t.lanes) as l:
                put(self.total, (v, l), self.total[v, l] + lane[l])

    def _store_p(self, x: Buffer, g: int, v: Expr, k: Expr) -> None:
        """p = x, times the scale of a group of features if those have scales."""
        t = self.tile
        scale = [self.scales[t.step * k + i, g] if t.scaled else T.float32(1)
                 for i in range(t.step)]
        with T.vectorized(t.lanes) as l:
            p = [x[i * t.lanes + l] * scale[i] for i in range(t.step)]
            put(self.p, (g, v, k, l), nonnegative_pair(*p) if t.pairs else p[0])

    def accumulate(self, values: Buffer, rows: Expr, n: Expr) -> None:
        """acc = acc * rescale + p . values; a value past the last key is 0. Whole output tiles."""
        t = self.tile
        whole, rest = divmod(t.columns // t.lanes, t.pv)
        if whole:
            self._output_tiles(values, rows, n, 0, whole, t.pr, t.pv)
        if rest:                     # few vectors need more rows for as many accumulators
            pr = t.pr * 2 if t.pr * rest < 8 and t.lanes % (2 * t.pr) == 0 else t.pr
            self._output_tiles(values, rows, n, whole * t.pv * t.lanes, 1, pr, rest)

    def _output_tiles(self, values: Buffer, rows: Expr, n: Expr, column: int, count: int, pr: int,
                      pv: int) -> None:
        """`count` strips of pv vectors from a column on, in tiles of pr rows."""
        t = self.tile
        width = pv * t.lanes
        cells = [(i, j, i * pv + j) for i in range(pr) for j in range(pv)]
        with (T.serial(count) as dt, T.serial((rows + (pr - 1)) // pr) as it, scope("outputs")):
            reg = Registers(len(cells), t.lanes)
            v, lane, first = it * pr // t.lanes, it * pr % t.lanes, column + dt * width
            for i, j, a in cells:
                reg.set(a, self.acc[it * pr + i, t.vector(first + j * t.lanes)]
                        * T.broadcast(self.rescale[v, lane + i], t.lanes))
            seen = T.min(n, self.sees[v, lane + (pr - 1)])
            with T.serial((seen + (t.step - 1)) // t.step) as k:
                for i, j, a in cells:
                    reg.set(a, t.add(
                        reg[a], values[k, t.vector(first + j * t.lanes)],
                        self.p[T.min(first // t.scaled, t.scales - 1) if t.scaled else 0,
                               v, k, lane + i]))
            for i, j, a in cells:
                put(self.acc, (it * pr + i, t.vector(first + j * t.lanes)), reg[a])


def nonnegative_pair(low: Expr, high: Expr) -> Expr:
    """Two float32 >= 0 as bfloat16 in one int32, rounded half up."""
    low, high = (T.reinterpret("int32", x) + T.int32(0x8000) for x in (low, high))
    return ((low >> T.int32(16)) & T.int32(LOW)) | (high & T.int32(HIGH))


def tile_sizes(tile: Knob) -> tuple[int, int]:
    """The two numbers of a "rows x columns" knob."""
    rows, _, columns = str(tile).partition("x")
    return int(rows), int(columns)


def row_lanes(lanes: int, rows: int) -> tuple[int, ...]:
    """Vector widths for a number of rows: the narrowest that holds them, and the one below."""
    first = next((w for w in (4, 8, 16) if w >= min(rows, lanes)), lanes)
    return (first, first // 2) if first > 4 and rows % first else (first,)


def score_tiles(lanes: int, pairs: bool, scaled: bool = False) -> tuple[str, ...]:
    """Row vectors x keys: as many accumulators as leave registers for operands, best first.

    Of 32 registers, 16 accumulators hide the latency and any number up to 24 is as fast; with
    pairs a tile of 8 or 16 keys lies within a page. Scaled keys take every accumulator twice.
    """
    if lanes == 16 and scaled:
        return ("2x4", "1x8", "2x6", "1x4")
    if lanes == 16:
        return ("2x8", "1x16", "1x8") if pairs else ("2x8", "1x16", "2x12", "1x8")
    return ("2x6", "1x12", "2x4", "1x8")


def output_tiles(lanes: int) -> tuple[str, ...]:
    """Rows x vectors of features."""
    return ("4x4", "8x2", "2x8", "1x4", "1x8") if lanes == 16 else (
        "4x3", "2x4", "4x2", "1x4", "1x8")


def fits(tile: Tile, rows: int) -> bool:
    """Whether tiles divide what they must, and rows are not padded by more than a quarter."""
    return (tile.lanes % tile.pr == 0 and tile.keys % tile.nk == 0
            and padded(rows, tile.group) == padded(rows, tile.lanes)
            and padded(rows, tile.pr) <= 1.25 * rows
            and tile.pv * tile.lanes <= max(tile.columns, 2 * tile.lanes))


def from_first(knobs: Mapping[str, tuple[Knob, ...]], where: Callable[[Config], bool]) -> Space:
    """The space whose default is the first valid config in the order of the choices."""
    configs = (dict(zip(knobs, values, strict=True)) for values in product(*knobs.values()))
    first = next(c for c in configs if where(c))
    return Space({name: (first[name], *(c for c in choices if c != first[name]))
                  for name, choices in knobs.items()}, where)
