"""CPU lowering: one task per head and block of queries; fully masked key blocks are skipped."""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm.attention import Tile, padded, steps, tile_choices, tile_sizes
from .._tvm.buffers import buffer
from .._tvm.exp2 import LN_2, LOG2_E
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape
from . import OP

if TYPE_CHECKING:
    from ...targets.base import VectorTarget

_FIELDS = 5          # of a query block: first row, rows, first key, keys, keys that row 0 sees


def space(target: VectorTarget, shape: Shape) -> Space:
    """Register tiles, queries per task, keys per block, unrolling."""
    lanes = target.lanes
    scores = tile_choices(64, lanes)
    outputs = tile_choices(64, lanes, -(-int(shape["d_v"]) // lanes), tile_sizes(scores[0])[0])
    vectors = -(-int(shape["d_qk"]) // lanes)

    def where(config: Config) -> bool:
        unit = lcm(tile_sizes(config["scores"])[0], tile_sizes(config["outputs"])[0])
        return vectors % int(config["unroll"]) == 0 and (
            padded(int(config["rows"]), unit) <= 1.25 * int(config["rows"]))

    return Space({"scores": scores, "outputs": outputs,
                  "rows": (64, 32, 128) if int(shape["tokens"]) > 32 else (16, 32, 64),
                  "keys": (64, 32, 96), "unroll": (1, 2)}, where)


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main: a serial pass lists the query blocks, then heads x blocks run in parallel."""
    heads, d_qk, d_v = (int(static[a]) for a in ("heads", "d_qk", "d_v"))
    dtype, causal, V = str(static["dtype"]), bool(static["causal"]), int(target.lanes)
    (mr, nr), (pr, pv) = tile_sizes(config["scores"]), tile_sizes(config["outputs"])
    t = Tile(V, int(config["keys"]), padded(d_qk, V), padded(d_v, V), mr, nr, pr, pv,
             int(config["unroll"]))
    LB, QB, unit = t.keys, int(config["rows"]), lcm(mr, pr)
    rows_max = padded(QB, unit)
    start, scores, softmax, accumulate = steps(t)

    def wide(value: Any) -> Any:
        return T.Cast("float32", value)

    def long(value: Any) -> Any:
        return T.Cast("int64", value)

    def count(value: Any) -> Any:
        return T.Cast("int32", value)

    def clamp(value: Any, low: Any, high: Any) -> Any:
        return T.max(T.min(value, high), low)

    @T.inline
    def load(X, out, r, token, h, width, columns):  # type: ignore[no-untyped-def]
        for d in range(width // V):
            for l in T.vectorized(V):
                out[r, d * V + l] = wide(X[token, h, d * V + l])
        for d in range(width // V * V, width):
            out[r, d] = wide(X[token, h, d])
        for d in range(width, columns):
            out[r, d] = T.float32(0)

    @T.inline
    def list_blocks(CQ, CK, TAB, at, B, NT, Tq, Tk):  # type: ignore[no-untyped-def]
        at[0] = 0                                        # end of the sequence before: queries
        at[1] = 0                                        # keys
        at[2] = 0                                        # blocks listed
        for e in range(B + 2):       # tokens before the first and after the last see no key
            at[3] = Tq
            at[4] = at[1]
            if e <= B:
                at[3] = clamp(CQ[e], at[0], Tq)
                at[4] = clamp(CK[e], at[1], Tk)
            at[5] = T.if_then_else(e == 0, 0, at[4] - at[1])
            for i in range((at[3] - at[0] + (QB - 1)) // QB):
                TAB[at[2], 0] = at[0] + i * QB
                TAB[at[2], 1] = T.min(QB, at[3] - at[0] - i * QB)
                TAB[at[2], 2] = at[1]
                TAB[at[2], 3] = at[5]
                if causal:
                    TAB[at[2], 4] = at[5] - (at[3] - at[0]) + 1 + i * QB
                else:
                    TAB[at[2], 4] = at[5]
                at[2] = at[2] + 1
            at[0] = at[3]
            at[1] = at[4]
        for i in range(at[2], NT):
            TAB[i, 1] = 0

    @T.prim_func(s_tir=True)
    def main(q: T.handle, k: T.handle, v: T.handle, cu_q: T.handle, cu_k: T.handle,  # type: ignore[no-untyped-def]
             o: T.handle, lse: T.handle, tab: T.handle, scale: T.float32):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        Tq = T.int64()
        Tk = T.int64()
        C = T.int32()
        NT = T.int32()
        Q = buffer(q, (Tq, heads, d_qk), dtype)
        K = buffer(k, (Tk, heads, d_qk), dtype)
        W = buffer(v, (Tk, heads, d_v), dtype)
        CQ = buffer(cu_q, (C,), "int32")
        CK = buffer(cu_k, (C,), "int32")
        O = buffer(o, (Tq, heads, d_v), dtype)
        LSE = buffer(lse, (heads, Tq), "float32")
        TAB = buffer(tab, (NT, _FIELDS), "int32")
        with T.sblock("list"):
            at = T.sblock_alloc_buffer((6,), "int32", scope="local")
            list_blocks(CQ, CK, TAB, at, C - 1, NT, count(Tq), count(Tk))
        for task in T.parallel(heads * NT):
            with T.sblock("task"):
                qs = T.sblock_alloc_buffer((rows_max, t.d_qk), "float32", scope="global")
                keys = T.sblock_alloc_buffer((t.key_rows, t.d_qk), "float32", scope="global")
                values = T.sblock_alloc_buffer((LB, t.d_v), "float32", scope="global")
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
                to = T.sblock_alloc_buffer((8,), "int32", scope="local")
                to[0] = TAB[task % NT, 0]                                    # first query
                to[1] = TAB[task % NT, 1]                                    # queries
                to[2] = (to[1] + (unit - 1)) // unit * unit                  # queries, padded
                to[3] = TAB[task % NT, 2]                                    # first key
                to[4] = TAB[task % NT, 4]                                    # keys that row 0 sees
                to[5] = T.min(TAB[task % NT, 3], to[4] + (to[1] - 1) * int(causal))  # last row
                if to[1] > 0:
                    for r in range(to[2]):
                        if r < to[1]:
                            load(Q, qs, r, long(to[0] + r), task // NT, d_qk, t.d_qk)
                            for d in range(t.d_qk // V):
                                for l in T.vectorized(V):
                                    qs[r, d * V + l] = (qs[r, d * V + l]
                                                        * (scale * T.float32(LOG2_E)))
                        else:
                            for d in range(t.d_qk):
                                qs[r, d] = T.float32(0)
                    start(acc, top, total, to[2])
                    for block in range((T.max(to[5], 0) + (LB - 1)) // LB):
                        to[6] = T.min(LB, to[5] - block * LB)                # keys of the block
                        for r in range(to[6]):
                            load(K, keys, r, long(to[3] + block * LB + r), task // NT, d_qk,
                                 t.d_qk)
                            load(W, values, r, long(to[3] + block * LB + r), task // NT, d_v,
                                 t.d_v)
                        for r in range(to[2]):
                            sees[r] = clamp(to[4] + r * int(causal) - block * LB, 0, to[6])
                        scores(qs, keys, s, sees, reg, half, quarter, to[2], to[6])
                        softmax(s, sees, top, total, rescale, lane, to[2], to[6])
                        accumulate(s, sees, values, acc, rescale, reg, to[2])
                    for r in range(to[1]):
                        LSE[task // NT, long(to[0] + r)] = T.if_then_else(
                            total[r] > T.float32(0), top[r] * T.float32(LN_2) + T.log(total[r]),
                            -T.infinity("float32"))
                        rescale[r] = T.if_then_else(total[r] > T.float32(0),
                                                    T.float32(1) / total[r], T.float32(0))
                        for d in range(d_v // V):
                            for l in T.vectorized(V):
                                O[long(to[0] + r), task // NT, d * V + l] = T.Cast(
                                    dtype, acc[r, d * V + l] * rescale[r])
                        for d in range(d_v // V * V, d_v):
                            O[long(to[0] + r), task // NT, d] = T.Cast(dtype,
                                                                       acc[r, d] * rescale[r])

    return {"main": main}


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """Contiguous operands and room for the list of query blocks."""
    main = target.compile(OP.name, OP.static_of(shape), config)["main"]
    rows = int(config["rows"])

    def run(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
            softmax_scale: float, causal: bool, *, out: Outputs) -> None:
        if not q.shape[0]:
            return
        blocks = q.shape[0] // rows + cu_seqlens_q.shape[0] + 1
        main(q.contiguous(), k.contiguous(), v.contiguous(), cu_seqlens_q.contiguous(),
             cu_seqlens_k.contiguous(), *out,
             torch.empty(blocks, _FIELDS, dtype=torch.int32), float(softmax_scale))

    return run
