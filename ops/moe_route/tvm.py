"""CPU lowering: a token's scores stay in L1; scoring and each selection pass run in vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm.exp import exp, sigmoid
from .._tvm.fp8 import bits, magnitude_bits
from .._tvm.route_llvm import STEP, best_function
from .._tvm.tasks import each_row
from ..numerics import as_dtype
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape
from . import NORM_FLOOR, OP, mask_value

if TYPE_CHECKING:
    from ...targets.base import VectorTarget

_TAKEN = -(1 << 31)                  # below the key of -inf: a selected expert never comes back


def space(target: VectorTarget, shape: Shape) -> Space:
    """Vector width, tokens per parallel task, tokens below which one thread runs."""
    serial = (8, 32) if int(shape["experts"]) >= 128 else (16, 64)
    return Space({"lanes": (16, 32, 8), "rows": (8, 4, 16, 64), "serial": serial})


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main(logits [M, E], bias [E], factor, weights [M, k], ids [M, k])."""
    e, k, dtype = int(static["experts"]), int(static["top_k"]), str(static["dtype"])
    n_group, topk_group = int(static["n_group"]), int(static["topk_group"])
    softmax, top2 = static["scoring"] == "softmax", static["group_score"] == "top2_sum"
    norm, has_bias, grouped = bool(static["norm"]), bool(static["has_bias"]), topk_group < n_group
    lanes, rows, serial = int(config["lanes"]), int(config["rows"]), int(config["serial"])
    size, wider = e // n_group, max(lanes, STEP)
    padded = -(-e // wider) * wider
    gl = next(w for w in (16, 8, 4, 2, 1) if size % w == 0)   # lanes within a group
    masked = mask_value(str(static["scoring"]), has_bias)
    tail, align = e // lanes * lanes, as_dtype(dtype).itemsize
    infinity = float("inf")

    def wide(value: Any) -> Any:
        return T.Cast("float32", value)

    def ordered(value: Any) -> Any:  # int32 that sorts as torch sorts float32: NaN on top
        raw = bits(value)
        key = raw ^ ((raw >> 31) & T.int32(0x7FFFFFFF))
        return T.Select(magnitude_bits(value) > T.int32(0x7F800000), T.int32(0x7FFFFFFF), key)

    @T.inline
    def largest(values, n, w, lane, top):  # type: ignore[no-untyped-def]
        for l in T.vectorized(w):
            lane[l] = values[l]
        for i in range(1, n // w):
            for l in T.vectorized(w):
                lane[l] = T.max(lane[l], values[i * w + l])
        top[0] = lane[0]
        for l in T.unroll(1, w):
            top[0] = T.max(top[0], lane[l])

    @T.inline
    def score_softmax(X, r, scores, lane, total):  # type: ignore[no-untyped-def]
        for l in range(e):           # the padding takes part in nothing: exp(-inf) is 0
            scores[l] = wide(X[r, l])
        for l in range(e, padded):
            scores[l] = T.float32(-infinity)
        largest(scores, padded, lanes, lane, total)
        for i in range(padded // lanes):
            for l in T.vectorized(lanes):
                scores[i * lanes + l] = scores[i * lanes + l] - total[0]
            for l in T.vectorized(lanes):
                scores[i * lanes + l] = exp(scores[i * lanes + l])
        for l in T.vectorized(lanes):
            lane[l] = scores[l]
        for i in range(1, padded // lanes):
            for l in T.vectorized(lanes):
                lane[l] = lane[l] + scores[i * lanes + l]
        total[0] = T.float32(0)
        for l in T.unroll(lanes):
            total[0] = total[0] + lane[l]
        for i in range(padded // lanes):
            for l in T.vectorized(lanes):
                scores[i * lanes + l] = scores[i * lanes + l] / total[0]

    @T.inline
    def score_sigmoid(X, r, scores):  # type: ignore[no-untyped-def]
        for i in range(e // lanes):
            for l in T.vectorized(lanes):    # a store between: exp repeats its argument
                scores[i * lanes + l] = wide(X[r, i * lanes + l])
            for l in T.vectorized(lanes):
                scores[i * lanes + l] = sigmoid(scores[i * lanes + l])
        for l in range(tail, e):
            scores[l] = wide(X[r, l])
            scores[l] = sigmoid(scores[l])

    @T.inline
    def keep_groups(choice, first, second, best, kept, where):  # type: ignore[no-untyped-def]
        for g in range(n_group):
            for l in T.vectorized(gl):
                first[l] = choice[g * size + l]
                second[l] = T.float32(-infinity)
            for i in range(1, size // gl):
                for l in T.vectorized(gl):
                    second[l] = T.max(second[l], T.min(first[l], choice[g * size + i * gl + l]))
                for l in T.vectorized(gl):
                    first[l] = T.max(first[l], choice[g * size + i * gl + l])
            for l in T.unroll(1, gl):
                second[0] = T.max(T.max(second[0], second[l]), T.min(first[0], first[l]))
                first[0] = T.max(first[0], first[l])
            if top2:
                best[g] = ordered(first[0] + second[0])
            else:
                best[g] = ordered(first[0])
            kept[g] = 0
        for p in range(topk_group):
            where[0] = 0
            for g in range(1, n_group):
                if best[g] > best[where[0]]:
                    where[0] = g
            kept[where[0]] = 1
            best[where[0]] = T.int32(_TAKEN)
        for g in range(n_group):
            if kept[g] == 0:
                for j in range(size):
                    choice[g * size + j] = T.float32(masked)

    @T.inline
    def route(X, BIAS, factor, WEIGHTS, IDS, r):  # type: ignore[no-untyped-def]
        with T.sblock("route"):
            scores = T.sblock_alloc_buffer((padded,), "float32", scope="local")
            choice = T.sblock_alloc_buffer((padded,), "float32", scope="local")
            keys = T.sblock_alloc_buffer((padded,), "int32", scope="local")
            lane = T.sblock_alloc_buffer((lanes,), "float32", scope="global")
            total = T.sblock_alloc_buffer((1,), "float32", scope="global")
            ids = T.sblock_alloc_buffer((k,), "int32", scope="global")
            if softmax:
                score_softmax(X, r, scores, lane, total)
            else:
                score_sigmoid(X, r, scores)
            for j in range(e):
                if has_bias:
                    choice[j] = scores[j] + BIAS[j]
                else:
                    choice[j] = scores[j]
            if grouped:
                with T.sblock("groups"):
                    first = T.sblock_alloc_buffer((gl,), "float32", scope="global")
                    second = T.sblock_alloc_buffer((gl,), "float32", scope="global")
                    best = T.sblock_alloc_buffer((n_group,), "int32", scope="global")
                    kept = T.sblock_alloc_buffer((n_group,), "int32", scope="global")
                    where = T.sblock_alloc_buffer((1,), "int32", scope="global")
                    keep_groups(choice, first, second, best, kept, where)
            for j in range(e):
                keys[j] = ordered(choice[j])
            for j in range(e, padded):
                keys[j] = T.int32(_TAKEN)
            for p in range(k):
                ids[p] = T.call_extern("int32", "expertile_best", T.address_of(keys[0]),
                                       T.int64(padded))
                keys[ids[p]] = T.int32(_TAKEN)
            total[0] = T.float32(0)
            for p in range(k):
                # V2's mask is 0 and so are the weights that it leaves
                if masked == 0.0:
                    WEIGHTS[r, p] = choice[ids[p]]
                else:
                    WEIGHTS[r, p] = scores[ids[p]]
                IDS[r, p] = ids[p]
                total[0] = total[0] + WEIGHTS[r, p]
            for p in range(k):
                if norm:
                    WEIGHTS[r, p] = (WEIGHTS[r, p] / (total[0] + T.float32(NORM_FLOOR))) * factor
                else:
                    WEIGHTS[r, p] = WEIGHTS[r, p] * factor

    @T.prim_func(s_tir=True)
    def main(x: T.handle, bias: T.handle, factor: T.float32,  # type: ignore[no-untyped-def]
             weights: T.handle, ids: T.handle):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        M = T.int32()
        xs = T.int32()
        # `align`: TVM takes 64 bytes for granted and a slice of a tensor would fault
        X = T.match_buffer(x, (M, e), dtype, strides=[xs, 1], align=align)
        BIAS = T.match_buffer(bias, (e,), "float32", align=4)
        WEIGHTS = T.match_buffer(weights, (M, k), "float32", align=4)
        IDS = T.match_buffer(ids, (M, k), "int32", align=4)
        each_row(M, rows, serial, target.lanes, best_function(), route, X, BIAS, factor, WEIGHTS,
                 IDS)

    return {"main": main}


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """An absent bias is passed as zeros that nobody reads."""
    main = target.compile("moe_route", OP.static_of(shape), config)["main"]
    absent = torch.zeros(int(shape["experts"]))

    def run(logits: Tensor, bias: Tensor | None, top_k: int, scoring: str, n_group: int,
            topk_group: int, group_score: str, norm_topk_prob: bool,
            routed_scaling_factor: float, *, out: Outputs) -> None:
        if logits.numel():
            rows = logits if logits.stride(1) == 1 else logits.contiguous()
            main(rows, absent if bias is None else bias.contiguous(), routed_scaling_factor, *out)

    return run
