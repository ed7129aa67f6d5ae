"""CPU lowering: a task converts its keys block by block to float32 and reuses them for its rows."""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm.attention import Tile, padded, steps, tile_choices, tile_sizes, waste
from .._tvm.buffers import buffer
from .._tvm.exp2 import LN_2, LOG2_E, exp2_nonpositive
from .._tvm.fp8 import decode_e4m3, floats
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape
from . import FP8_GROUP, OP, fp8_row_bytes

if TYPE_CHECKING:
    from ...targets.base import VectorTarget

_LAUNCH_KNOBS = ("splits",)          # arguments of the compiled code: one artifact serves them all


def _groups(rows: int) -> tuple[int, ...]:
    """Query rows per task: all of few; of many, as many as leave room for keys in the L2 cache."""
    first = min(rows, 64)
    return (first, *(g for g in (32, 16, 8) if g < first))[:3]


def _splits(target: VectorTarget, shape: Shape) -> int:
    """Enough splits to occupy every thread with few sequences; they also balance ragged ones.

    Merging costs about 9 us, the time of 0.7 Mflop on one thread (docs/facts.md).
    """
    if int(shape["batch"]) >= 4 * target.threads or OP.work(shape).flops < 1_600_000:
        return 1
    return min(16, 1 << (target.threads - 1).bit_length())


def space(target: VectorTarget, shape: Shape) -> Space:
    """Register tiles, keys per block, unrolling, query rows per task, splits of the keys."""
    lanes, threads = target.lanes, target.threads
    rows, dv = int(shape["heads"]) * int(shape["s_q"]), int(shape["head_dim_v"])
    groups, vectors = _groups(rows), -(-(dv + int(shape["rope"])) // lanes)
    first = _splits(target, shape)
    scores = tile_choices(groups[0], lanes)
    outputs = tile_choices(groups[0], lanes, -(-dv // lanes), tile_sizes(scores[0])[0])

    def where(config: Config) -> bool:
        unit = lcm(tile_sizes(config["scores"])[0], tile_sizes(config["outputs"])[0])
        return vectors % int(config["unroll"]) == 0 and (
            waste(rows, int(config["group"]), unit) <= 1.25)

    return Space({
        "scores": scores, "outputs": outputs, "keys": (64, 32, 96), "group": groups,
        "unroll": (1, 2),
        "splits": (first, *(s for s in (1, 2, 4, 8, 16) if s != first and s <= 2 * threads)),
    }, where)


def _tile(lanes: int, static: Shape, config: Config) -> Tile:
    dv, rope = int(static["head_dim_v"]), int(static["rope"])
    (mr, nr), (pr, pv) = tile_sizes(config["scores"]), tile_sizes(config["outputs"])
    return Tile(lanes, int(config["keys"]), padded(dv + rope, lanes), padded(dv, lanes), mr, nr, pr,
                pv, int(config["unroll"]))


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main: one task per (split, sequence, row group), then one per row that merges its splits."""
    t, group = _tile(target.lanes, static, config), int(config["group"])
    heads, s_q, page = int(static["heads"]), int(static["s_q"]), int(static["page"])
    dv, rope, causal = int(static["head_dim_v"]), int(static["rope"]), bool(static["causal"])
    dtype, fp8 = str(static["dtype"]), static["kv_dtype"] == "fp8"
    kv_dtype = "uint8" if fp8 else str(static["kv_dtype"])
    V, LB, R, D = t.lanes, t.keys, heads * s_q, dv + rope
    width = fp8_row_bytes(dv, rope) if fp8 else D
    halves = width // 2 if fp8 else width          # the fp8 row again as bf16: its rope part
    rope_at = (width - 2 * rope) // 2
    unit = lcm(t.mr, t.pr)
    rows_max, groups = padded(group, unit), -(-R // group)
    start, scores, softmax, accumulate = steps(t)

    def wide(value: Any) -> Any:
        return T.Cast("float32", value)

    def long(value: Any) -> Any:
        return T.Cast("int64", value)

    def clamp(value: Any, low: Any, high: Any) -> Any:
        return T.max(T.min(value, high), low)

    def byte(value: Any) -> Any:
        return T.Cast("int32", value)

    def scale_of(KV: Any, p: Any, slot: Any, g: Any) -> Any:
        at = dv + 4 * g
        return floats(byte(KV[p, slot, 0, at]) | (byte(KV[p, slot, 0, at + 1]) << 8)
                      | (byte(KV[p, slot, 0, at + 2]) << 16)
                      | (byte(KV[p, slot, 0, at + 3]) << 24))

    @T.inline
    def load_key(KV, KH, keys, r, p, slot):  # type: ignore[no-untyped-def]
        if fp8:
            for d in range(dv // V):
                for l in T.vectorized(V):
                    keys[r, d * V + l] = (decode_e4m3(KV[p, slot, 0, d * V + l])
                                          * scale_of(KV, p, slot, d * V // FP8_GROUP))
            for d in range(dv // V * V, dv):
                keys[r, d] = (decode_e4m3(KV[p, slot, 0, d])
                              * scale_of(KV, p, slot, d // FP8_GROUP))
            for d in range(rope // V):
                for l in T.vectorized(V):
                    keys[r, dv + d * V + l] = wide(KH[p, slot, 0, rope_at + d * V + l])
            for d in range(rope // V * V, rope):
                keys[r, dv + d] = wide(KH[p, slot, 0, rope_at + d])
        else:
            for d in range(D // V):
                for l in T.vectorized(V):
                    keys[r, d * V + l] = wide(KV[p, slot, 0, d * V + l])
            for d in range(D // V * V, D):
                keys[r, d] = wide(KV[p, slot, 0, d])
        for d in range(D, t.d_qk):
            keys[r, d] = T.float32(0)

    def log_sum(top: Any, total: Any) -> Any:
        return T.if_then_else(total > T.float32(0), top * T.float32(LN_2) + T.log(total),
                              -T.infinity("float32"))

    def inverse(total: Any) -> Any:
        return T.if_then_else(total > T.float32(0), T.float32(1) / total, T.float32(0))

    @T.inline
    def combine(PO, PL, O, LSE, b, row, B, splits):  # type: ignore[no-untyped-def]
        with T.sblock("combine"):
            out = T.sblock_alloc_buffer((t.d_v,), "float32", scope="global")
            sums = T.sblock_alloc_buffer((3,), "float32", scope="local")
            sums[0] = -T.infinity("float32")
            sums[1] = T.float32(0)
            for i in range(splits):
                sums[0] = T.max(sums[0], PL[i * B + b, row])
            for d in range(t.d_v // V):
                for l in T.vectorized(V):
                    out[d * V + l] = T.float32(0)
            for i in range(splits):            # an empty split wrote no output: do not read it
                if PL[i * B + b, row] > -T.infinity("float32"):
                    sums[2] = exp2_nonpositive(PL[i * B + b, row] - sums[0])
                    sums[1] = sums[1] + sums[2]
                    for d in range(dv // V):
                        for l in T.vectorized(V):
                            out[d * V + l] = (out[d * V + l]
                                              + sums[2] * PO[i * B + b, row, d * V + l])
                    for d in range(dv // V * V, dv):
                        out[d] = out[d] + sums[2] * PO[i * B + b, row, d]
            LSE[b, row % heads, row // heads] = T.if_then_else(
                sums[1] > T.float32(0), (sums[0] + T.log2(sums[1])) * T.float32(LN_2),
                -T.infinity("float32"))
            sums[2] = inverse(sums[1])
            for d in range(dv // V):
                for l in T.vectorized(V):
                    O[b, row, d * V + l] = T.Cast(dtype, out[d * V + l] * sums[2])
            for d in range(dv // V * V, dv):
                O[b, row, d] = T.Cast(dtype, out[d] * sums[2])

    @T.prim_func(s_tir=True)
    def main(q: T.handle, kv: T.handle, kh: T.handle, bt: T.handle, sl: T.handle,  # type: ignore[no-untyped-def]
             o: T.handle, lse: T.handle, po: T.handle, pl: T.handle,
             scale: T.float32, splits: T.int32):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        B = T.int32()
        MP = T.int32()
        NP = T.int32()
        P = T.int64()
        Q = buffer(q, (B, R, D), dtype)
        KV = buffer(kv, (P, page, 1, width), kv_dtype)
        KH = buffer(kh, (P, page, 1, halves), "bfloat16" if fp8 else kv_dtype)
        BT = buffer(bt, (B, MP), "int32")
        SL = buffer(sl, (B,), "int32")
        O = buffer(o, (B, R, dv), dtype)
        LSE = buffer(lse, (B, heads, s_q), "float32")
        PO = buffer(po, (NP, R, dv), "float32")      # partial outputs, [split * B + b]
        PL = buffer(pl, (NP, R), "float32")          # and their log2-sum-exp2
        for task in T.parallel(splits * B * groups):         # splits outermost: balances lengths
            with T.sblock("task"):
                qs = T.sblock_alloc_buffer((rows_max, t.d_qk), "float32", scope="global")
                keys = T.sblock_alloc_buffer((t.key_rows, t.d_qk), "float32", scope="global")
                s = T.sblock_alloc_buffer((rows_max, t.columns), "float32", scope="global")
                acc = T.sblock_alloc_buffer((rows_max, t.d_v), "float32", scope="global")
                top = T.sblock_alloc_buffer((rows_max,), "float32", scope="global")
                total = T.sblock_alloc_buffer((rows_max,), "float32", scope="global")
                rescale = T.sblock_alloc_buffer((rows_max,), "float32", scope="global")
                sees = T.sblock_alloc_buffer((rows_max,), "int32", scope="global")
                reg = T.sblock_alloc_buffer((t.registers,), "float32", scope="local")
                half = T.sblock_alloc_buffer((t.sums * 8,), "float32", scope="local")
                quarter = T.sblock_alloc_buffer((t.sums * 4,), "float32", scope="local")
                lane = T.sblock_alloc_buffer((V,), "float32", scope="local")
                at = T.sblock_alloc_buffer((8,), "int32", scope="local")
                at[0] = task // groups % B                                   # sequence
                at[1] = task % groups * group                                # first row
                at[2] = T.min(group, R - at[1])                              # rows
                at[3] = (at[2] + (unit - 1)) // unit * unit                  # rows, padded
                at[4] = clamp(SL[at[0]], 0, T.if_then_else(P > 0, MP * page, 0))  # length
                at[5] = (at[4] + (LB - 1)) // LB * (task // (groups * B)) // splits
                at[6] = (at[4] + (LB - 1)) // LB * (task // (groups * B) + 1) // splits
                if splits == 1 or at[5] < at[6]:
                    for r in range(at[3]):
                        if r < at[2]:
                            for d in range(D // V):
                                for l in T.vectorized(V):
                                    qs[r, d * V + l] = (wide(Q[at[0], at[1] + r, d * V + l])
                                                        * (scale * T.float32(LOG2_E)))
                            for d in range(D // V * V, D):
                                qs[r, d] = (wide(Q[at[0], at[1] + r, d])
                                            * (scale * T.float32(LOG2_E)))
                            for d in range(D, t.d_qk):
                                qs[r, d] = T.float32(0)
                        else:
                            for d in range(t.d_qk):
                                qs[r, d] = T.float32(0)
                    start(acc, top, total, at[3])
                for block in range(at[5], at[6]):
                    at[7] = T.min(LB, at[4] - block * LB)                    # keys of the block
                    for r in range(at[7]):
                        load_key(KV, KH, keys, r,
                                 clamp(long(BT[at[0], (block * LB + r) // page]), long(0), P - 1),
                                 (block * LB + r) % page)
                    for r in range(at[3]):
                        sees[r] = at[7]
                        if causal and s_q > 1:
                            sees[r] = clamp(at[4] - block * LB - (s_q - 1)
                                            + (at[1] + r) // heads, 0, at[7])
                    scores(qs, keys, s, sees, reg, half, quarter, at[3], at[7])
                    softmax(s, sees, top, total, rescale, lane, at[3], at[7])
                    accumulate(s, sees, keys, acc, rescale, reg, at[3])
                if splits == 1:
                    for r in range(at[2]):
                        LSE[at[0], (at[1] + r) % heads, (at[1] + r) // heads] = log_sum(
                            top[r], total[r])
                        for d in range(dv // V):
                            for l in T.vectorized(V):
                                O[at[0], at[1] + r, d * V + l] = T.Cast(
                                    dtype, acc[r, d * V + l] * inverse(total[r]))
                        for d in range(dv // V * V, dv):
                            O[at[0], at[1] + r, d] = T.Cast(dtype, acc[r, d] * inverse(total[r]))
                elif at[5] < at[6]:
                    for r in range(at[2]):
                        PL[task // groups, at[1] + r] = T.if_then_else(
                            total[r] > T.float32(0), top[r] + T.log2(total[r]),
                            -T.infinity("float32"))
                        for d in range(dv // V):
                            for l in T.vectorized(V):
                                PO[task // groups, at[1] + r, d * V + l] = (
                                    acc[r, d * V + l] * inverse(total[r]))
                        for d in range(dv // V * V, dv):
                            PO[task // groups, at[1] + r, d] = acc[r, d] * inverse(total[r])
                else:
                    for r in range(at[2]):
                        PL[task // groups, at[1] + r] = -T.infinity("float32")

        if splits > 1:
            for row in T.parallel(B * R):
                combine(PO, PL, O, LSE, row // R, row % R, B, splits)

    return {"main": main}


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """Views of the call's tensors, scratch for the partial results of more than one split."""
    static, splits = OP.static_of(shape), int(config["splits"])
    heads, dv, s_q = int(shape["heads"]), int(shape["head_dim_v"]), int(shape["s_q"])
    main = target.compile(OP.name, static, {k: v for k, v in config.items()
                                            if k not in _LAUNCH_KNOBS})["main"]
    rows = heads * s_q
    no_partials = torch.empty(0, rows, dv), torch.empty(0, rows)

    def run(q: Tensor, kv_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor,
            head_dim_v: int, softmax_scale: float, causal: bool, *, out: Outputs) -> None:
        o, lse = out
        batch = q.shape[0]
        if not batch:
            return
        halves = kv_cache.view(torch.bfloat16) if kv_cache.dtype == torch.uint8 else kv_cache
        flat = o.view(batch, rows, dv)
        po, pl = no_partials
        if splits > 1:
            po, pl = torch.empty(splits * batch, rows, dv), torch.empty(splits * batch, rows)
        main(q.contiguous().view(batch, rows, -1), kv_cache, halves, block_table.contiguous(),
             cache_seqlens.contiguous(), flat, lse, po, pl, float(softmax_scale), splits)

    return run
