"""Fused MoE with int8 weights and activations (w8a8) on dot-product instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from ..int8 import INT8_MAX
from ..space import Config
from ..spec import Kernel, Outputs, Shape
from .emit import Buffer, Expr, put, scope, widen
from .fetch import importing
from .fp8 import bits, floats, magnitude_bits
from .gemm_stages import Plan, along, each_row, tensor
from .int8_cast import int8_code
from .int8_lower import Stage, functions, packed, same, tiles
from .int8_tiles import Int8Tiles
from .registers import local

if TYPE_CHECKING:
    from ...targets.base import VectorTarget

_EPS = 1e-10                         # least magnitude of a group, as per_token_group_quant_int8's
_SCRATCH_BYTES = 256 << 20           # more tokens run in several passes


def cast_row(g: Int8Tiles, Q: Buffer, QS: Buffer, X: Buffer, row: Expr, dtype: str) -> None:
    """Q[row], QS[row] = the int8 codes of X[row] and their scales, by groups of block_k."""
    def read(c: Expr) -> Expr:
        return widen(X[row, c], dtype)

    def group(kb: int, first: int, length: int) -> None:
        with scope("group"):
            top, tops = local(1, "int32"), local(g.lanes, "int32")
            with T.vectorized(g.lanes) as l:
                put(tops, l, bits(T.float32(_EPS)))
            with T.serial(length // g.lanes) as v, T.vectorized(g.lanes) as l:
                put(tops, l, T.max(tops[l], magnitude_bits(read(first + v * g.lanes + l))))
            put(top, 0, tops[0])
            with T.serial(1, g.lanes) as l:
                put(top, 0, T.max(top[0], tops[l]))
            with T.serial(length // g.lanes * g.lanes, length) as c:
                put(top, 0, T.max(top[0], magnitude_bits(read(first + c))))
            s = local(1)
            put(s, 0, floats(top[0]) / T.float32(INT8_MAX))
            put(QS, (row, kb), s[0])
            along(g.lanes, length, lambda c: put(Q, (row, first + c),
                                                 int8_code(read(first + c), s[0])))

    for kb in range(g.k_blocks):
        group(kb, kb * g.step, min(g.step, g.k - kb * g.step))


def _add_up(g: Int8Tiles, top_k: int, experts: int, dtype: str, Y: Any, WEIGHTS: Any, IDS: Any,
            OUT: Any, t: Any) -> None:
    """OUT[t] = the weighted sum of its rows, in slot order: deterministic."""
    def vector(first: Any, lanes: int) -> None:
        with scope("sum"):
            acc = local(lanes)
            with T.vectorized(lanes) as lane:
                put(acc, lane, T.float32(0))
            with T.serial(top_k) as j:
                ours = T.And(IDS[t, j] >= 0, IDS[t, j] < experts)
                with T.If(ours), T.Then(), T.vectorized(lanes) as lane:
                    put(acc, lane, acc[lane] + WEIGHTS[t, j] * Y[t * top_k + j, first + lane])
            with T.vectorized(lanes) as lane:
                put(OUT, (t, first + lane), T.Cast(dtype, acc[lane]))

    with T.serial(g.n // g.lanes) as v:
        vector(v * g.lanes, g.lanes)
    if g.n % g.lanes:
        with T.serial(g.n // g.lanes * g.lanes, g.n) as c:
            vector(c, 1)


def _sizes(target: VectorTarget, static: Shape, config: Config) -> tuple[Int8Tiles, Int8Tiles]:
    """The GEMMs up (gate and up) and down."""
    k, inter = int(static["hidden"]), int(static["inter"])
    return (tiles(target, inter, k, static, config, halves=2),
            tiles(target, k, inter, static, config))


def lower_moe(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main(hidden, w1, w2, weights, ids, scales, scratch: q qs h hq hs y packed plan, out)."""
    up, down = _sizes(target, static, config)
    e, top_k, dtype = int(static["e"]), int(static["top_k"]), str(static["dtype"])
    k, inter, order = up.k, down.k, str(config["order"])

    def run(HIDDEN: Any, W1: Any, W2: Any, WEIGHTS: Any, IDS: Any, S1: Any, S2: Any, Q: Any,
            QS: Any, H: Any, HQ: Any, HS: Any, Y: Any, UP: Any, DOWN: Any, PLAN: Any, OUT: Any,
            tokens: Any) -> None:
        plan = Plan(PLAN, tokens * top_k)
        plan.sort(lambda p: IDS[p // top_k, p % top_k], tokens * top_k, e, up.rows)
        each_row(tokens, 4 * k, lambda t: cast_row(up, Q, QS, HIDDEN, t, dtype))
        with importing(*functions(up)):
            Stage(up, order, Q, QS, UP, W1, S1).run_plan(
                plan, lambda r: plan.row(r) // top_k, H, "float32", same)
            each_row(plan.total, 4 * inter, lambda r: cast_row(down, HQ, HS, H, r, "float32"))
            Stage(down, order, HQ, HS, DOWN, W2, S2).run_plan(plan, same, Y, "float32", plan.row)
        each_row(tokens, top_k * k,
                 lambda t: _add_up(down, top_k, e, dtype, Y, WEIGHTS, IDS, OUT, t))

    @T.prim_func(s_tir=True)
    def main(  # type: ignore[no-untyped-def]
            hidden: T.handle, w1: T.handle, w2: T.handle, weights: T.handle, ids: T.handle,
            s1: T.handle, s2: T.handle, q: T.handle, qs: T.handle, h: T.handle, hq: T.handle,
            hs: T.handle, y: T.handle, u: T.handle, d: T.handle, p: T.handle, o: T.handle):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        M = T.int64()
        PAIRS = T.int64()
        WORDS = T.int64()
        BU = T.int64()
        BD = T.int64()
        NS1 = T.int64()
        NS2 = T.int64()
        HIDDEN = tensor(hidden, (M, k), dtype)
        W1 = tensor(w1, (e, 2 * inter, k), "int8")
        W2 = tensor(w2, (e, k, inter), "int8")
        WEIGHTS = tensor(weights, (M, top_k), "float32")
        IDS = tensor(ids, (M, top_k), "int32")
        S1 = tensor(s1, (e, NS1, up.k_blocks), "float32")
        S2 = tensor(s2, (e, NS2, down.k_blocks), "float32")
        Q = tensor(q, (M, k), "int8")
        QS = tensor(qs, (M, up.k_blocks), "float32")
        H = tensor(h, (PAIRS, inter), "float32")
        HQ = tensor(hq, (PAIRS, inter), "int8")
        HS = tensor(hs, (PAIRS, down.k_blocks), "float32")
        Y = tensor(y, (PAIRS, k), "float32")
        UP = tensor(u, (BU, up.words, up.lanes), "int32")
        DOWN = tensor(d, (BD, down.words, down.lanes), "int32")
        PLAN = tensor(p, (WORDS,), "int32")
        OUT = tensor(o, (M, k), dtype)
        run(HIDDEN, W1, W2, WEIGHTS, IDS, S1, S2, Q, QS, H, HQ, HS, Y, UP, DOWN, PLAN, OUT, M)

    return {"main": main}


def bind_moe(target: VectorTarget, op: str, static: Shape, config: Config) -> Kernel:
    """The kernel of fused_moe with w8a8."""
    main = target.compile(op, static, config)["main"]
    up, down = _sizes(target, static, config)
    k, inter, experts = up.k, down.k, int(static["e"])
    at_most = max(_SCRATCH_BYTES // max(int(static["top_k"]) * (5 * k + 6 * inter), 1), 1)

    def one_pass(hidden: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor,
                 s1: Tensor, s2: Tensor, out: Tensor) -> None:
        tokens, pairs = hidden.shape[0], ids.numel()
        items = min(pairs, experts) + pairs // up.rows
        main(hidden, w1, w2, weights, ids, s1, s2,
             torch.empty((tokens, k), dtype=torch.int8), torch.empty((tokens, up.k_blocks)),
             torch.empty((pairs, inter)), torch.empty((pairs, inter), dtype=torch.int8),
             torch.empty((pairs, down.k_blocks)), torch.empty((pairs, k)),
             packed(up, pairs, items), packed(down, pairs, items),
             torch.empty(Plan.size(pairs, experts), dtype=torch.int32), out)

    def run(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor,
            w1_scale: Tensor, w2_scale: Tensor, block_n: int, block_k: int, w8a8: bool, *,
            out: Outputs) -> None:
        given = (hidden, w1, w2, topk_weights, topk_ids, w1_scale, w2_scale)
        hidden, w1, w2, weights, ids, s1, s2 = (t.contiguous() for t in given)
        for first in range(0, hidden.shape[0] if out[0].numel() else 0, at_most):
            part = slice(first, first + at_most)
            one_pass(hidden[part], w1, w2, weights[part], ids[part], s1, s2, out[0][part])

    return run
