"""CPU lowering: all threads share the blocks of all sequences equally; a task reads its keys once.

Every worker takes one run of blocks in the order of (sequence, row group, block), so that neither
lengths nor batch sizes leave a thread idle. A sequence that is cut by the end of a run is merged
from partial results afterwards (the scheduling of FlashMLA and FlashInfer, one worker a thread).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from tvm.script import tirx as T

from .._tvm.attention import (
    Tile,
    fits,
    from_first,
    output_tiles,
    row_lanes,
    score_tiles,
    tile_sizes,
)
from .._tvm.attention_rows import takes_pairs
from .._tvm.buffers import buffer, view
from ..space import Config, Knob, Space
from ..spec import Kernel, Outputs, Shape
from . import FP8_GROUP, OP
from .tvm_tasks import Call, Sizes, merge_rows, run_worker

if TYPE_CHECKING:
    from ...targets.base import VectorTarget

_LAUNCH_KNOBS = ("workers",)         # arguments of the compiled code: one artifact serves them all


def _groups(rows: int, batch: int, workers: int) -> tuple[int, ...]:
    """Query rows per task: the more, the less often keys are prepared; all fit the L2 cache.

    First the most of at least 32 with which no sequence is cut between workers: two threads with
    128 heads and one sequence take 64 rows each, and nothing is merged (6 % at 1k keys).
    """
    sizes = (min(rows, 128), *(g for g in (64, 32, 16) if g < min(rows, 128)))
    whole = (g for g in sizes if g >= 32 and not rows % g and not batch * (rows // g) % workers)
    first = next(whole, sizes[0])
    return (first, *(g for g in sizes if g != first))[:3]


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
        "outputs": output_tiles(target.lanes), "group": _groups(rows, int(shape["batch"]), first),
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
    s = Sizes.of(t, static)
    q_type = "int32" if t.pairs else s.dtype
    kv_type = "uint8" if s.fp8 else s.kv_dtype

    @T.prim_func(s_tir=True)
    def main(q: T.handle, kv: T.handle, bt: T.handle, sl: T.handle, o: T.handle,  # type: ignore[no-untyped-def]
             lse: T.handle, scale: T.float32, workers: T.int32):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        B = T.int32()
        MP = T.int32()
        P = T.int64()
        QT = buffer(q, (B, s.s_q, s.heads, t.d_qk), s.dtype)
        KV = buffer(kv, (P, s.page, 1, s.width), kv_type)
        BT = buffer(bt, (B, MP), "int32")
        SL = buffer(sl, (B,), "int32")
        OT = buffer(o, (B, s.s_q, s.heads, t.d_v), s.dtype)
        LSE = buffer(lse, (B, s.heads, s.s_q), "float32")
        Q = view(QT, (B, s.rows, t.q_steps), q_type)
        K0 = view(KV, (P * s.page * s.widths[0],), s.views[0])
        K1 = view(KV, (P * s.page * s.widths[1],), s.views[1])
        K2 = view(KV, (P * s.page * s.widths[2],), s.views[2])
        O = view(OT, (B, s.rows, t.d_v // t.step), q_type)
        with T.sblock("run"):
            PO = T.sblock_alloc_buffer((2 * workers, t.rows, t.columns), "float32", scope="global")
            PT = T.sblock_alloc_buffer((2 * workers, t.rows), "float32", scope="global")
            PS = T.sblock_alloc_buffer((2 * workers, t.rows), "float32", scope="global")
            call = T.meta_var(Call(Q, (K0, K1, K2), BT, SL, O, LSE, PO, PT, PS, scale, B, MP,
                                   P, workers))
            for w in T.parallel(workers):
                run_worker(s, call, w)
            if workers > 1:
                for part in T.parallel(workers):
                    merge_rows(s, call, part)

    return {"main": main}


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """Contiguous operands."""
    static, workers = OP.static_of(shape), int(config["workers"])
    main = target.compile(OP.name, static, {k: v for k, v in config.items()
                                            if k not in _LAUNCH_KNOBS})["main"]

    def run(q: Tensor, kv_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor,
            head_dim_v: int, softmax_scale: float, causal: bool, *, out: Outputs) -> None:
        if q.shape[0]:
            main(q.contiguous(), kv_cache, block_table.contiguous(), cache_seqlens.contiguous(),
                 *out, softmax_scale, workers)

    return run
