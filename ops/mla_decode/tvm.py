"""CPU lowering: all threads share the blocks of all sequences equally; a task reads its keys once.

Every worker takes one run of blocks in the order of (sequence, row group, block), so that neither
lengths nor batch sizes leave a thread idle. A sequence that is cut by the end of a run is merged
from partial results afterwards (the scheduling of FlashMLA and FlashInfer, one worker a thread).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tvm.script import tirx as T

from .._tvm.attention import (
    Block,
    Tile,
    fits,
    from_first,
    output_tiles,
    padded,
    put,
    row_lanes,
    scope,
    score_tiles,
    tile_sizes,
    when,
)
from .._tvm.attention_feed import Feed, rows_of
from .._tvm.attention_rows import (
    along,
    drop_odd,
    inverse,
    load_queries,
    log_sum,
    pair_rows,
    store_output,
    takes_pairs,
    zero,
)
from .._tvm.bf16dot import imported
from .._tvm.buffers import buffer, view
from .._tvm.exp2 import LOG2_E, exp2_nonpositive
from .._tvm.fetch import importing
from .._tvm.latent_cache import LatentCache
from .._tvm.registers import local
from .._tvm.transpose import function
from ..space import Config, Knob, Space
from ..spec import Kernel, Outputs, Shape
from . import FP8_GROUP, OP, fp8_row_bytes

if TYPE_CHECKING:
    from ...targets.base import VectorTarget

_LAUNCH_KNOBS = ("workers",)         # arguments of the compiled code: one artifact serves them all


def _groups(rows: int) -> tuple[int, ...]:
    """Query rows per task: the more, the less often keys are prepared; all fit the L2 cache."""
    first = min(rows, 128)
    return (first, *(g for g in (64, 32, 16) if g < first))[:3]


def _workers(threads: int, shape: Shape) -> int:
    """All threads, unless waking them and merging, some 10 us, costs more than they save."""
    return threads if OP.work(shape).flops > 1_600_000 else 1


def space(target: VectorTarget, shape: Shape) -> Space:
    """Register tiles, keys per block, query rows per task and vector, workers."""
    static, threads = OP.static_of(shape), target.threads
    rows, wide = int(shape["heads"]) * int(shape["s_q"]), target.lanes == 16
    pairs, first = pairs_of(target, static), _workers(threads, shape)

    def where(config: Config) -> bool:
        return fits(tile_of(target, static, config), int(config["group"]))

    knobs: dict[str, tuple[Knob, ...]] = {
        "lanes": row_lanes(target.lanes, rows),
        "scores": score_tiles(target.lanes, pairs, pairs and static["kv_dtype"] == "fp8"),
        "outputs": output_tiles(target.lanes), "group": _groups(rows),
        "keys": (64, 128, 32) if wide else (96, 48, 192),
        "workers": (first, *(w for w in (1, threads, 2 * threads) if w != first))}
    return from_first({k: tuple(dict.fromkeys(v)) for k, v in knobs.items()}, where)


def pairs_of(target: VectorTarget, static: Shape) -> bool:
    """Whether the products run on bfloat16 pairs."""
    return takes_pairs(target.dots, str(static["dtype"]), str(static["kv_dtype"]),
                       int(static["head_dim_v"]), int(static["rope"]))


def tile_of(target: VectorTarget, static: Shape, config: Config) -> Tile:
    """The tile of a config."""
    dv, rope = int(static["head_dim_v"]), int(static["rope"])
    pairs = pairs_of(target, static)
    (hv, nk), (pr, pv) = tile_sizes(config["scores"]), tile_sizes(config["outputs"])
    fp8 = static["kv_dtype"] == "fp8"
    return Tile(int(config["lanes"]), pairs, int(config["group"]), int(config["keys"]), dv + rope,
                dv, hv, nk, pr, pv, FP8_GROUP if fp8 and pairs else 0)


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main: each worker's run of blocks, then the merge of the sequences that were cut."""
    t = tile_of(target, static, config)
    heads, s_q, page = int(static["heads"]), int(static["s_q"]), int(static["page"])
    dv, rope, causal = int(static["head_dim_v"]), int(static["rope"]), bool(static["causal"])
    dtype, fp8 = str(static["dtype"]), static["kv_dtype"] == "fp8"
    R, D, LB, group = heads * s_q, dv + rope, t.keys, int(config["group"])
    groups, width = -(-R // group), fp8_row_bytes(dv, rope) if fp8 else D
    q_type, q_width, o_width = (("int32", D // 2, dv // 2) if t.pairs else (dtype, D, dv))
    kv_type = "uint8" if fp8 else str(static["kv_dtype"])
    if fp8:
        types = (("int16", 2), ("float32", 4), ("int32", 4)) if t.pairs else (
            ("uint8", 1), ("float32", 4), ("bfloat16", 2))
    else:
        types = ((("int32", 2) if t.pairs else (kv_type, 1)),) * 3

    # what needs no conversion is used where it stands: in whole tiles of a page, in whole vectors
    direct = (t.pairs and not fp8 and page % t.nk == 0 and LB % t.nk == 0 and t.nk % 2 == 0
              and t.columns <= D)

    fed = not t.pairs and not fp8    # what becomes float32 does so beside the scores

    def clamp(value: Any, low: Any, high: Any) -> Any:
        return T.max(T.min(value, high), low)

    def blocks(n: Any, W: Any) -> Any:
        """Blocks of n keys: a multiple of the workers if there are as many, so that each has as
        many; an empty sequence has one of no key, because it must be written."""
        least = T.max((n + (LB - 1)) // LB, 1)
        return T.if_then_else(least < W, least, (least + (W - 1)) // W * W)

    def begin(i: Any, n: Any, count: Any) -> Any:
        """The first key of block i: blocks differ by one score tile."""
        tiles = wide((n + (t.nk - 1)) // t.nk)
        return T.min(T.Cast("int32", wide(i) * tiles // wide(count)) * t.nk, n)

    def wide(value: Any) -> Any:
        return T.Cast("int64", value)

    def process(Q: Any, cache: Any, BT: Any, O: Any, LSE: Any, PO: Any, PT: Any, PS: Any, scale:
                Any, b: Any, g: Any, n: Any, first: Any, last: Any, count: Any, slot: Any, P:
                Any) -> Any:
        """Blocks first..last of sequence b for the row group g; all of `count`, or a partial."""
        block = Block(t)
        values = block.new_values() if t.pairs else block.keys

        def at_page(at: Any, key: Any) -> Any:        # a score tile lies within one page
            put(at, 0, clamp(wide(BT[b, key // page]), T.int64(0), P - 1))
            put(at, 1, wide(key % page))

        def tile_keys(jt: Any, key0: Any) -> Any:
            at = local(2, "int64")
            at_page(at, key0 + jt * t.nk)
            return lambda j, d: cache.views[0][at[0], at[1] + j, 0, d]

        def pair_tile(jt: Any, key0: Any, n: Any) -> Any:
            with scope("pairs"):
                at = local(2, "int64")
                at_page(at, key0 + jt * t.nk)
                KV = cache.views[0]
                with T.serial(T.min(t.nk // 2, (n - jt * t.nk + 1) // 2)) as k:
                    pair_rows(t, values, jt * (t.nk // 2) + k,
                              lambda c: KV[at[0], at[1] + 2 * k, 0, c],
                              lambda c: KV[at[0], at[1] + (2 * k + 1), 0, c], t.columns // 2)
        rows = local(4, "int32")
        put(rows, 0, T.min(group, R - g * group))
        put(rows, 1, padded(rows[0], t.group))
        feed = Feed(t, block.keys, cache.flat, rows_of(t), kv_type, D) if fed else None
        load_queries(t, block, rows[0], rows[1], lambda r, d: Q[b, g * group + r, d])
        block.start(rows[1])
        with T.serial(first, last) as i:
            put(rows, 3, begin(i, n, count))
            put(rows, 2, begin(i + 1, n, count) - rows[3])
            if feed:
                with when(n > 0), T.serial(feed.row.shape[0]) as k:
                    key = T.min(rows[3] + k, n - 1)      # beyond the last, the last again
                    put(feed.row, k, clamp(wide(BT[b, key // page]), T.int64(0), P - 1) * page
                        + wide(key % page))
            if direct:
                with T.serial((rows[2] + (t.nk - 1)) // t.nk) as jt:
                    pair_tile(jt, rows[3], rows[2])
                drop_odd(t, values, rows[2])
            with T.serial(0 if direct or fed else rows[2]) as k:
                cache.load(block, k, clamp(wide(BT[b, (rows[3] + k) // page]), T.int64(0), P - 1),
                           (rows[3] + k) % page)
            if t.pairs and not direct:
                with when(rows[2] % 2 == 1):
                    zero(t, block.keys, (rows[2],), 0, t.key_columns)
                    for s in range(t.scales if t.scaled else 0):
                        put(block.scales, (rows[2], s), T.float32(0))
                with T.serial((rows[2] + 1) // 2) as k:
                    pair_rows(t, values, k, lambda c: block.keys[2 * k, c],
                              lambda c: block.keys[2 * k + 1, c], t.columns // 2)
            with T.serial(rows[1]) as r:
                at = (r // t.lanes, r % t.lanes)
                if causal and s_q > 1:
                    put(block.sees, at, clamp(
                        n - rows[3] - (s_q - 1) + (g * group + T.min(r, rows[0] - 1)) // heads,
                        0, rows[2]))
                else:
                    put(block.sees, at, rows[2])
            block.scores(rows[1], rows[2], scale * T.float32(LOG2_E),
                         (lambda jt: tile_keys(jt, rows[3])) if direct else None,
                         feed)
            block.softmax(rows[1], rows[2])
            block.accumulate(values, rows[0], rows[2])
        with T.serial(rows[0]) as r, scope("row"):
            top = block.top[r // t.lanes, r % t.lanes]
            total = block.total[r // t.lanes, r % t.lanes]
            with T.If(last - first == count):
                with T.Then():
                    row = g * group + r
                    put(LSE, (b, row % heads, row // heads), log_sum(top, total))
                    factor = local(1)
                    put(factor, 0, inverse(total))
                    store_output(t, O, (b, row), lambda c: block.acc[r, c] * factor[0], dtype)
                with T.Else():
                    put(PT, (slot, r), top)
                    put(PS, (slot, r), total)
                    along(t.lanes, 0, t.columns, lambda c: put(PO, (slot, r, c), block.acc[r, c]))

    def merge(PO: Any, PT: Any, PS: Any, O: Any, LSE: Any, b: Any, row: Any, r: Any, w0: Any,
              w1: Any) -> Any:
        """Row r of a group from the workers w0..w1: the first piece of a run or the last."""
        with scope("merge"):
            out = T.alloc_buffer((t.columns,), "float32", scope="global")
            sums = local(3)

            def slot(w: Any) -> Any:
                return 2 * w + T.if_then_else(w == w0, 1, 0)

            put(sums, 0, PT[slot(w0), r])
            put(sums, 1, T.float32(0))
            with T.serial(w0 + 1, w1 + 1) as w:
                put(sums, 0, T.max(sums[0], PT[slot(w), r]))
            along(t.lanes, 0, t.columns, lambda c: put(out, c, T.float32(0)))
            with T.serial(w0, w1 + 1) as w:
                put(sums, 2, exp2_nonpositive(PT[slot(w), r] - sums[0]))
                put(sums, 1, sums[1] + sums[2] * PS[slot(w), r])
                along(t.lanes, 0, t.columns, lambda c: put(
                    out, c, out[c] + sums[2] * PO[slot(w), r, c]))
            put(LSE, (b, row % heads, row // heads), log_sum(sums[0], sums[1]))
            put(sums, 2, inverse(sums[1]))
            store_output(t, O, (b, row), lambda c: out[c] * sums[2], dtype)

    def length(SL: Any, b: Any, MP: Any, P: Any) -> Any:
        return clamp(SL[b], 0, T.if_then_else(P > 0, MP * page, 0))

    def each_segment(SL: Any, W: Any, B: Any, MP: Any, P: Any, at: Any, body: Any) -> Any:
        """body(b, g, n, blocks) with at[0] = the first block's place among all."""
        put(at, 0, 0)
        with T.serial(B) as b:
            put(at, 1, length(SL, b, MP, P))
            with T.serial(groups) as g:
                body(b, g, at[1], blocks(at[1], W))
                put(at, 0, at[0] + blocks(at[1], W))

    def total_blocks(SL: Any, W: Any, B: Any, MP: Any, P: Any, at: Any) -> Any:
        put(at, 2, 0)
        with T.serial(B) as b:
            put(at, 2, at[2] + groups * blocks(length(SL, b, MP, P), W))

    def busy(workers: Any, total: Any) -> Any:        # no worker has an empty run
        return T.min(workers, T.max(total, 1))

    def run_worker(w: Any, workers: Any, Q: Any, KV: Any, KF: Any, KH: Any, FL: Any, BT: Any, SL:
                   Any, O: Any, LSE: Any, PO: Any, PT: Any, PS: Any, scale: Any, B: Any, MP: Any,
                   P: Any) -> Any:
        with (imported(t.lanes) if t.pairs else nullcontext(),
              importing(function(t.lanes, t.unit)), scope("worker")):
            cache = LatentCache(t, static, (KV, KF, KH), FL, FP8_GROUP)
            at = local(5, "int32")
            total_blocks(SL, workers, B, MP, P, at)
            put(at, 3, share(w, at[2], busy(workers, at[2])))
            put(at, 4, share(w + 1, at[2], busy(workers, at[2])))

            def segment(b: Any, g: Any, n: Any, count: Any) -> Any:
                first = T.max(at[3] - at[0], 0)
                last = T.min(at[4] - at[0], count)
                slot = 2 * w + T.if_then_else(first == 0, 1, 0)
                with when(T.And(w < busy(workers, at[2]), first < last)), scope("segment"):
                    process(Q, cache, BT, O, LSE, PO, PT, PS, scale, b, g, n, first, last, count,
                            slot, P)

            each_segment(SL, workers, B, MP, P, at, segment)

    def share(w: Any, total: Any, W: Any) -> Any:
        return T.Cast("int32", wide(w) * wide(total) // wide(W))

    def merge_rows(part: Any, W: Any, SL: Any, O: Any, LSE: Any, PO: Any, PT: Any, PS: Any, B:
                   Any, MP: Any, P: Any) -> Any:
        """One share of the rows of each cut segment."""
        with scope("cut"):
            at = local(5, "int32")
            total_blocks(SL, W, B, MP, P, at)

            def worker_of(block: Any) -> Any:
                return T.Cast("int32", (wide(block + 1) * wide(busy(W, at[2])) - 1) // wide(at[2]))

            def segment(b: Any, g: Any, n: Any, count: Any) -> Any:
                put(at, 3, worker_of(at[0]))
                put(at, 4, worker_of(at[0] + count - 1))
                with when(at[3] < at[4]):
                    rows = T.min(group, R - g * group)
                    with T.serial(rows * part // W, rows * (part + 1) // W) as r:
                        merge(PO, PT, PS, O, LSE, b, g * group + r, r, at[3], at[4])

            each_segment(SL, W, B, MP, P, at, segment)

    @T.prim_func(s_tir=True)
    def main(q: T.handle, kv: T.handle, bt: T.handle, sl: T.handle, o: T.handle,  # type: ignore[no-untyped-def]
             lse: T.handle, scale: T.float32, workers: T.int32):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        B = T.int32()
        MP = T.int32()
        P = T.int64()
        QT = buffer(q, (B, R, D), dtype)
        KVT = buffer(kv, (P, page, 1, width), kv_type)
        BT = buffer(bt, (B, MP), "int32")
        SL = buffer(sl, (B,), "int32")
        OT = buffer(o, (B, R, dv), dtype)
        LSE = buffer(lse, (B, heads, s_q), "float32")
        Q = view(QT, (B, R, q_width), q_type)
        KV = view(KVT, (P, page, 1, width // types[0][1]), types[0][0])
        FL = view(KVT, (P * page * (width // types[0][1]),), types[0][0])
        KF = view(KVT, (P, page, 1, width // types[1][1]), types[1][0])
        KH = view(KVT, (P, page, 1, width // types[2][1]), types[2][0])
        O = view(OT, (B, R, o_width), q_type)
        with T.sblock("run"):
            PO = T.sblock_alloc_buffer((2 * workers, group, t.columns), "float32", scope="global")
            PT = T.sblock_alloc_buffer((2 * workers, group), "float32", scope="global")
            PS = T.sblock_alloc_buffer((2 * workers, group), "float32", scope="global")
            for w in T.parallel(workers):
                run_worker(w, workers, Q, KV, KF, KH, FL, BT, SL, O, LSE, PO, PT, PS, scale, B, MP,
                           P)
            if workers > 1:
                for part in T.parallel(workers):
                    merge_rows(part, workers, SL, O, LSE, PO, PT, PS, B, MP, P)

    return {"main": main}


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """Views of the call's tensors, scratch for the pieces of sequences that are cut."""
    static, workers = OP.static_of(shape), int(config["workers"])
    heads, s_q = int(shape["heads"]), int(shape["s_q"])
    main = target.compile(OP.name, static, {k: v for k, v in config.items()
                                            if k not in _LAUNCH_KNOBS})["main"]
    rows = heads * s_q

    def run(q: Tensor, kv_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor,
            head_dim_v: int, softmax_scale: float, causal: bool, *, out: Outputs) -> None:
        o, lse = out
        batch = q.shape[0]
        if batch:
            main(q.contiguous().view(batch, rows, -1), kv_cache, block_table.contiguous(),
                 cache_seqlens.contiguous(), o.view(batch, rows, -1), lse, softmax_scale, workers)

    return run
