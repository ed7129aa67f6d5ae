"""CPU lowering: counting sort by expert, two grouped GEMMs with SwiGLU between, weighted sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm import quarters
from .._tvm.emit import put, scope
from .._tvm.fetch import importing
from .._tvm.gemm import Task
from .._tvm.gemm_stages import (
    Plan,
    each_row,
    each_task,
    operand,
    round_row,
    scratch,
    tensor,
    widen_row,
    write_tile,
)
from .._tvm.gemm_stages import space as gemm_space
from .._tvm.int8_lower import serves
from .._tvm.int8_lower import space as int8_space
from .._tvm.int8_moe import bind_moe, lower_moe
from .._tvm.llvm import functions
from .._tvm.quarters import Few, byte_functions, prepare
from .._tvm.registers import local
from .._tvm.tiles import takes_pairs, tiles
from ..gemm_nt.tvm import scales_of, weights_of
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape
from . import OP, regime

if TYPE_CHECKING:
    from ...targets.base import VectorTarget

_SCRATCH_ELEMENTS = 64_000_000       # 256 MB of float32: more tokens run in several passes


def space(target: VectorTarget, shape: Shape) -> Space:
    """Tiles and blocking, of both GEMMs."""
    if serves(target, shape):
        return int8_space(target, regime(shape) == "decode")
    pairs = uses_pairs(target, shape)
    return gemm_space(target, regime(shape) == "decode", str(shape["w_dtype"]), pairs,
                      all(takes_bytes(target.lanes, shape, pairs)),
                      max(int(shape["hidden"]), int(shape["inter"])))


def uses_pairs(target: VectorTarget, static: Shape) -> bool:
    """Whether bfloat16 dot products compute both GEMMs; SwiGLU is rounded to bfloat16 then."""
    return not static["w8a8"] and all(takes_pairs(
        target.dots, str(static["dtype"]), str(static["w_dtype"]), int(static[k]),
        int(static["block_k"])) for k in ("hidden", "inter"))


def takes_bytes(lanes: int, static: Shape, pairs: bool) -> tuple[bool, bool]:
    """Whether few rows of the first and of the second GEMM take FP8 codes by the byte."""
    first, second = (quarters.serves(str(static["w_dtype"]), lanes, int(static[k]),
                                     int(static["block_k"]), pairs) for k in ("hidden", "inter"))
    return first, second


class _Moe:
    """The stages; rows of the GEMMs are (token, slot) pairs sorted by expert."""

    def __init__(self, lanes: int, static: Shape, config: Config, pairs: bool):
        self.e, self.top_k = int(static["e"]), int(static["top_k"])
        self.k, self.inter = int(static["hidden"]), int(static["inter"])
        self.dtype, self.w_dtype = str(static["dtype"]), str(static["w_dtype"])
        self.block_n, self.block_k = int(static["block_n"]), int(static["block_k"])
        self.w8a8 = bool(static["w8a8"])
        self.order = str(config["order"])
        block = self.block_n, self.block_k
        self.pairs = pairs
        few = takes_bytes(lanes, static, pairs)
        self.up = tiles(self.inter, self.k, self.w_dtype, block, lanes, config, 2, pairs, few[0])
        self.down = tiles(self.k, self.inter, self.w_dtype, block, lanes, config, 1, pairs, few[1])
        self.lanes = lanes

    def widen(self, X: Any, HIDDEN: Any, tokens: Any) -> None:
        """float32 activations; after a round trip through the weights' codes for w8a8."""
        if self.w8a8:
            each_row(tokens, 4 * self.k, lambda t: round_row(
                self.lanes, X, HIDDEN, t, self.k, self.dtype, self.block_k, self.w_dtype))
        elif self.dtype != "float32" and not self.pairs:
            each_row(tokens, self.k, lambda t: widen_row(
                self.lanes, X, HIDDEN, HIDDEN, t, self.k, self.dtype, self.block_k))

    def gemm_up(self, plan: Plan, X: Any, W: Any, S: Any, H: Any, few: Few) -> None:
        """H[sorted row] = silu(gate) * up of the row's token."""
        g = self.up
        if g.quarters:
            prepare(g, plan.items, plan.span, X, lambda r: plan.row(r) // self.top_k, few)

        def task(item: Any, chunk: Any) -> None:
            with scope("up"):
                C = scratch(g)
                first, count = plan.first(item), plan.count(item)
                Task(g, X, lambda r: plan.row(r) // self.top_k, W, S, C, plan.expert(item), first,
                     count, g.column(chunk), few=few if g.quarters else None).emit()
                write_tile(g, C, H, count, g.column(chunk),
                           "int16" if self.pairs else "float32", lambda r: (first + r,))

        each_task(plan.items, g.chunks, self.order, task)
        if self.w8a8:
            each_row(plan.total, 4 * self.inter, lambda r: round_row(
                self.lanes, H, H, r, self.inter, "float32", self.block_k, self.w_dtype))

    def gemm_down(self, plan: Plan, H: Any, W: Any, S: Any, Y: Any, factors: Any) -> None:
        """Y[pair] = H[sorted row] . W2 of its expert."""
        g, few = self.down, Few(H, factors)
        if g.quarters:
            prepare(g, plan.items, plan.span, H, lambda r: r, few)

        def task(item: Any, chunk: Any) -> None:
            with scope("down"):
                C = scratch(g)
                first, count = plan.first(item), plan.count(item)
                Task(g, H, lambda r: r, W, S, C, plan.expert(item), first, count,
                     g.column(chunk), few=few if g.quarters else None).emit()
                write_tile(g, C, Y, count, g.column(chunk), "float32",
                           lambda r: (plan.row(first + r),))

        each_task(plan.items, g.chunks, self.order, task)

    def add_up(self, Y: Any, WEIGHTS: Any, IDS: Any, OUT: Any, tokens: Any) -> None:
        """OUT[token] = sum of its pairs, in slot order: deterministic."""
        def vector(t: Any, first: Any, lanes: int) -> None:
            with scope("sum"):
                acc = local(lanes)
                with T.vectorized(lanes) as lane:
                    put(acc, lane, T.float32(0))
                with T.serial(self.top_k) as j:
                    ours = T.And(IDS[t, j] >= 0, IDS[t, j] < self.e)
                    with T.If(ours), T.Then(), T.vectorized(lanes) as lane:
                        put(acc, lane, acc[lane]
                            + WEIGHTS[t, j] * Y[t * self.top_k + j, first + lane])
                with T.vectorized(lanes) as lane:
                    put(OUT, (t, first + lane), T.Cast(self.dtype, acc[lane]))

        def row(t: Any) -> None:
            with T.serial(self.k // self.lanes) as v:
                vector(t, v * self.lanes, self.lanes)
            if self.k % self.lanes:
                with T.serial(self.k // self.lanes * self.lanes, self.k) as c:
                    vector(t, c, 1)

        each_row(tokens, self.top_k * self.k, row)


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main(hidden, w1, w2, weights, ids, scales, scratch x (or hidden) h y plan, out)."""
    if serves(target, static):
        return lower_moe(target, static, config)
    m = _Moe(target.lanes, static, config, uses_pairs(target, static))
    e, k, inter, top_k = m.e, m.k, m.inter, m.top_k

    def run(HIDDEN: Any, W1: Any, W2: Any, WEIGHTS: Any, IDS: Any, S1: Any, S2: Any, X: Any,
            H: Any, Y: Any, F: Any, PLAN: Any, OUT: Any, tokens: Any) -> None:
        plan = Plan(PLAN, tokens * top_k)
        plan.sort(lambda p: IDS[p // top_k, p % top_k], tokens * top_k, e, m.up.rows)
        m.widen(X, HIDDEN, tokens)
        with importing(*functions(m.up), *byte_functions(m.up, m.down)):
            m.gemm_up(plan, X, W1, S1, H, Few(Y, F))
            m.gemm_down(plan, H, W2, S2, Y, F)
        m.add_up(Y, WEIGHTS, IDS, OUT, tokens)

    @T.prim_func(s_tir=True)
    def main(  # type: ignore[no-untyped-def]
            hidden: T.handle, w1: T.handle, w2: T.handle, weights: T.handle, ids: T.handle,
            s1: T.handle, s2: T.handle, x: T.handle, h: T.handle, y: T.handle, f: T.handle,
            p: T.handle, o: T.handle):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        M = T.int64()
        PAIRS = T.int64()
        WORDS = T.int64()
        ES = T.int64()
        NS1 = T.int64()
        KS1 = T.int64()
        NS2 = T.int64()
        KS2 = T.int64()
        HIDDEN = tensor(hidden, (M, k), m.dtype)
        W1 = operand(w1, (e, 2 * inter, k), m.w_dtype)
        W2 = operand(w2, (e, k, inter), m.w_dtype)
        WEIGHTS = tensor(weights, (M, top_k), "float32")
        IDS = tensor(ids, (M, top_k), "int32")
        S1 = tensor(s1, (ES, NS1, KS1), "float32")
        S2 = tensor(s2, (ES, NS2, KS2), "float32")
        X = operand(x, (M, k), "bfloat16" if m.pairs else "float32")
        H = operand(h, (PAIRS, inter), "bfloat16" if m.pairs else "float32")
        Y = tensor(y, (PAIRS, k), "float32")
        F = tensor(f, (PAIRS,), "float32")
        PLAN = tensor(p, (WORDS,), "int32")
        OUT = tensor(o, (M, k), m.dtype)
        run(HIDDEN, W1, W2, WEIGHTS, IDS, S1, S2, X, H, Y, F, PLAN, OUT, M)

    return {"main": main}


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """Bind the compiled function to torch tensors; float32 hidden states are used in place."""
    if serves(target, shape):
        return bind_moe(target, OP.name, OP.static_of(shape), config)
    main, pairs = (target.compile(OP.name, OP.static_of(shape), config)["main"],
                   uses_pairs(target, shape))
    per_token = int(shape["top_k"]) * (int(shape["hidden"]) + int(shape["inter"]))
    at_most = max(_SCRATCH_ELEMENTS // max(per_token, 1), 1)

    def one_pass(hidden: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, s1: Tensor,
                 s2: Tensor, in_place: bool, out: Tensor) -> None:
        (tokens, k), rows = hidden.shape, ids.numel()
        x = hidden if in_place else torch.empty((tokens, k))
        main(hidden, w1, w2, weights, ids, s1, s2, hidden.view(torch.int16) if pairs else x,
             torch.empty((rows, w2.shape[2]), dtype=torch.int16 if pairs else torch.float32),
             torch.empty((rows, k)), torch.empty(rows),
             torch.empty(Plan.size(rows, w1.shape[0]), dtype=torch.int32), out)

    def run(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor,
            w1_scale: Tensor | None, w2_scale: Tensor | None, block_n: int, block_k: int,
            use_fp8_w8a8: bool, *, out: Outputs) -> None:
        hidden, weights, ids = (t.contiguous() for t in (hidden, topk_weights, topk_ids))
        w1, w2 = weights_of(w1), weights_of(w2)
        s1, s2 = scales_of(w1_scale, 3), scales_of(w2_scale, 3)
        in_place = pairs or hidden.dtype == torch.float32 and not use_fp8_w8a8
        for first in range(0, hidden.shape[0] if out[0].numel() else 0, at_most):
            part = slice(first, first + at_most)
            one_pass(hidden[part], w1, w2, weights[part], ids[part], s1, s2, in_place,
                     out[0][part])

    return run

