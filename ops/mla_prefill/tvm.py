"""CPU lowering: one task per head and block of queries; fully masked key blocks are skipped."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm.attention import (
    Block,
    Buffer,
    Expr,
    Tile,
    fits,
    from_first,
    output_tiles,
    padded,
    put,
    scope,
    score_tiles,
    tile_sizes,
    when,
)
from .._tvm.attention_feed import Feed, Lines, plain, rows_of
from .._tvm.attention_rows import (
    copy,
    drop_odd,
    inverse,
    load_queries,
    log_sum,
    pair_rows,
    store_output,
    takes_pairs,
)
from .._tvm.bf16dot import imported
from .._tvm.buffers import buffer, view
from .._tvm.exp2 import LOG2_E
from .._tvm.fetch import importing
from .._tvm.registers import local
from .._tvm.transpose import function
from ..space import Config, Knob, Space
from ..spec import Kernel, Outputs, Shape
from . import OP

if TYPE_CHECKING:
    from ...targets.base import VectorTarget

_FIELDS = 5          # of a query block: first row, rows, first key, keys, keys that row 0 sees


def space(target: VectorTarget, shape: Shape) -> Space:
    """Register tiles, keys per block, queries per task."""
    tokens, static = int(shape["tokens"]), OP.static_of(shape)
    rows = (128, 64, 256) if tokens > 64 else (64, 32, 16) if tokens > 16 else (16, 32)
    wide = target.lanes == 16

    def where(config: Config) -> bool:
        t = tile_of(target, static, config)
        return fits(t, t.rows)

    knobs: dict[str, tuple[Knob, ...]] = {
        "scores": score_tiles(target.lanes, pairs_of(target, static)),
        "outputs": output_tiles(target.lanes), "rows": rows,
        "keys": (128, 64, 192) if wide else (96, 48, 192), "lanes": (target.lanes,)}
    return from_first(knobs, where)


def pairs_of(target: VectorTarget, static: Shape) -> bool:
    """Whether the products run on bfloat16 pairs."""
    dtype = str(static["dtype"])
    return takes_pairs(target.dots, dtype, dtype, int(static["d_qk"]), int(static["d_v"]))


def tile_of(target: VectorTarget, static: Shape, config: Config) -> Tile:
    """The tile of a config."""
    d_qk, d_v = int(static["d_qk"]), int(static["d_v"])
    (hv, nk), (pr, pv) = tile_sizes(config["scores"]), tile_sizes(config["outputs"])
    return Tile(int(config["lanes"]), pairs_of(target, static), int(config["rows"]),
                int(config["keys"]), d_qk, d_v, hv, nk, pr, pv)


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main: a serial pass lists the query blocks, then heads x blocks run in parallel."""
    heads, d_qk, d_v = (int(static[a]) for a in ("heads", "d_qk", "d_v"))
    dtype, causal = str(static["dtype"]), bool(static["causal"])
    t = tile_of(target, static, config)
    LB, QB = t.keys, int(config["rows"])
    kind = "int32" if t.pairs else dtype

    def long(value: Any) -> Any:
        return T.Cast("int64", value)

    def count(value: Any) -> Any:
        return T.Cast("int32", value)

    def clamp(value: Any, low: Any, high: Any) -> Any:
        return T.max(T.min(value, high), low)

    def element(buffer: Buffer, *index: Expr) -> Any:
        return lambda c: buffer[(*index, c)] if t.pairs else T.Cast("float32", buffer[(*index, c)])

    def load_pairs(block: Block, values: Buffer, K: Buffer, W: Buffer, h: Expr, first: Expr,
                   n: Expr) -> None:
        """n keys and values from token `first` on."""
        with T.serial(n) as k:
            copy(t, block.keys, (k,), element(K, long(first + k), h), 0, t.q_steps)
        with T.serial((n + 1) // 2) as k, scope("pair"):
            if d_v % (2 * t.lanes) == 0:
                low, high = (element(W, long(first + T.min(2 * k + i, n - 1)), h) for i in (0, 1))
            else:                    # whole vectors of a row's end would be its neighbour's
                two = T.alloc_buffer((2, t.columns // 2), "int32", scope="global")
                for i in range(2):
                    row = element(W, long(first + T.min(2 * k + i, n - 1)), h)
                    copy(t, two, (i,), row, 0, d_v // 2)
                low, high = element(two, 0), element(two, 1)
            pair_rows(t, values, k, low, high, t.columns // 2)
        drop_odd(t, values, n)

    def attend(Q: Buffer, K: Buffer, W: Buffer, FK: Buffer, FW: Buffer, O: Buffer, LSE: Buffer,
               TAB: Buffer, h: Expr, entry: Expr, scale: Expr) -> None:
        """One head of one block of queries."""
        to = local(6, "int32")
        put(to, 0, TAB[entry, 0])                                        # first query
        put(to, 1, TAB[entry, 1])                                        # queries
        put(to, 2, padded(to[1], t.group))                               # queries, padded
        put(to, 3, TAB[entry, 4])                                        # keys that row 0 sees
        put(to, 4, T.min(TAB[entry, 3], to[3] + (to[1] - 1) * int(causal)))  # and the last row
        block = Block(t)
        values = block.new_values()
        load_queries(t, block, to[1], to[2], lambda r, d: Q[long(to[0] + r), h, d])
        block.start(to[2])
        lines = Lines(FK, d_qk, dtype)
        feed = None if t.pairs else Feed(t, block.keys, (plain(lines),), rows_of(t), lines,
                                         Lines(FW, d_v, dtype))
        with T.serial((T.max(to[4], 0) + (LB - 1)) // LB) as i:
            put(to, 5, T.min(LB, to[4] - i * LB))                        # keys of the block
            if feed:
                with T.serial(feed.row.shape[0]) as k:
                    token = TAB[entry, 2] + T.min(i * LB + k, to[4] - 1)
                    put(feed.row, k, long(token) * heads + h)
            else:
                load_pairs(block, values, K, W, h, TAB[entry, 2] + i * LB, to[5])
            with T.serial(to[2]) as r:
                put(block.sees, (r // t.lanes, r % t.lanes), clamp(
                    to[3] + T.min(r, to[1] - 1) * int(causal) - i * LB, 0, to[5]))
            block.scores(to[2], to[5], scale * T.float32(LOG2_E), None, feed)
            if feed:
                with T.serial(to[5]) as k:
                    copy(t, values, (k,), element(W, long(TAB[entry, 2] + i * LB + k), h), 0, d_v)
            block.softmax(to[2], to[5])
            block.accumulate(values, to[1], to[5])
        with T.serial(to[1]) as r, scope("row"):
            at = (r // t.lanes, r % t.lanes)
            put(LSE, (h, long(to[0] + r)), log_sum(block.top[at], block.total[at]))
            factor = local(1)
            put(factor, 0, inverse(block.total[at]))
            store_output(t, O, (long(to[0] + r), h), lambda c: block.acc[r, c] * factor[0], dtype)

    def run_task(Q: Buffer, K: Buffer, W: Buffer, FK: Buffer, FW: Buffer, O: Buffer, LSE: Buffer,
                 TAB: Buffer, h: Expr, entry: Expr, scale: Expr) -> None:
        with (imported(t.lanes) if t.pairs else nullcontext(),
              importing(function(t.lanes, t.unit)), when(TAB[entry, 1] > 0), scope("task")):
            attend(Q, K, W, FK, FW, O, LSE, TAB, h, entry, scale)

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
        QT = buffer(q, (Tq, heads, d_qk), dtype)
        KT = buffer(k, (Tk, heads, d_qk), dtype)
        VT = buffer(v, (Tk, heads, d_v), dtype)
        CQ = buffer(cu_q, (C,), "int32")
        CK = buffer(cu_k, (C,), "int32")
        OT = buffer(o, (Tq, heads, d_v), dtype)
        LSE = buffer(lse, (heads, Tq), "float32")
        TAB = buffer(tab, (NT, _FIELDS), "int32")
        Q = view(QT, (Tq, heads, d_qk // t.step), kind)
        K = view(KT, (Tk, heads, d_qk // t.step), kind)
        W = view(VT, (Tk, heads, d_v // t.step), kind)
        FK = view(KT, (Tk * heads * (d_qk // t.step),), kind)
        FW = view(VT, (Tk * heads * (d_v // t.step),), kind)
        O = view(OT, (Tq, heads, d_v // t.step), kind)
        with T.sblock("list"):
            at = T.sblock_alloc_buffer((6,), "int32", scope="global")
            list_blocks(CQ, CK, TAB, at, C - 1, NT, count(Tq), count(Tk))
        for task in T.parallel(heads * NT):
            run_task(Q, K, W, FK, FW, O, LSE, TAB, task // NT, task % NT, scale)

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
