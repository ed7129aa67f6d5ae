"""CPU lowering: one token's latent and key at a time, tokens in parallel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm import plain_cast
from .._tvm.plain_cast import FP8
from .._tvm.tasks import each_row, each_vector
from ..fp8 import AMAX_FLOOR
from ..fp8_format import E4M3
from ..numerics import as_dtype
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape
from . import GROUP, OP

if TYPE_CHECKING:
    from ...targets.base import VectorTarget


def space(target: VectorTarget, shape: Shape) -> Space:
    """Vector width, tokens per parallel task, tokens below which one thread runs."""
    return Space({"lanes": (16, 8, 32), "rows": (4, 1, 16, 64), "serial": (16, 0, 64)})


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main(kv_a, norm_weight, cos_sin, positions, slots, eps, cache, scales, keys).

    The last three are the same memory: an FP8 cache as bytes, float32 and bfloat16.
    """
    dv, rope = int(static["kv_lora"]), int(static["rope"])
    dtype, cache, fp8 = str(static["dtype"]), str(static["cache"]), static["cache"] == "uint8"
    lanes, rows, serial = int(config["lanes"]), int(config["rows"]), int(config["serial"])
    scales = dv // GROUP if fp8 else 0
    width = dv + 4 * scales + 2 * rope if fp8 else dv + rope
    key_type, key_first = ("bfloat16", dv // 2 + 2 * scales) if fp8 else (cache, dv)
    align, cache_align = as_dtype(dtype).itemsize, as_dtype(cache).itemsize

    def wide(value: Any) -> Any:
        return T.Cast("float32", value)

    def double(value: Any) -> Any:
        return T.Cast("float64", value)

    @T.inline
    def square_span(X, r, acc, at, w):  # type: ignore[no-untyped-def]
        for l in T.vectorized(w):
            acc[l] = acc[l] + double(X[r, at + l]) * double(X[r, at + l])

    @T.inline
    def inverse_norm(X, r, eps, acc, inverse):  # type: ignore[no-untyped-def]
        for l in T.vectorized(lanes):
            acc[l] = T.float64(0)
        each_vector(dv, lanes, square_span, X, r, acc)
        for l in range(1, lanes):
            acc[0] = acc[0] + acc[l]
        inverse[0] = wide(T.float64(1) / T.sqrt(acc[0] / T.float64(dv) + eps))

    @T.inline
    def norm_span(X, W, r, C, slot, inverse, at, w):  # type: ignore[no-untyped-def]
        for l in T.vectorized(w):
            C[slot, at + l] = T.Cast(cache, wide(X[r, at + l]) * inverse[0] * W[at + l])

    def cast_group(y: Any, C: Any, slot: Any, g: Any, top: Any, scale: Any, ratio: Any) -> None:
        plain_cast.cast_group(FP8[E4M3], lambda column: y[column], T.float32(AMAX_FLOOR), C, slot,
                              g * GROUP, GROUP, lanes, top, scale, ratio, False)

    @T.inline
    def norm_and_cast(X, W, r, C, SCALES, slot, inverse):  # type: ignore[no-untyped-def]
        with T.sblock("groups"):
            y = T.sblock_alloc_buffer((GROUP,), "float32", scope="global")
            top = T.sblock_alloc_buffer((lanes,), "int32", scope="global")
            scale = T.sblock_alloc_buffer((1,), "float32", scope="global")
            ratio = T.sblock_alloc_buffer((lanes,), "float32", scope="global")
            for g in range(scales):
                for i in range(GROUP // lanes):
                    for l in T.vectorized(lanes):
                        y[i * lanes + l] = (wide(X[r, g * GROUP + i * lanes + l]) * inverse[0]
                                            * W[g * GROUP + i * lanes + l])
                cast_group(y, C, slot, g, top, scale, ratio)
                SCALES[slot, dv // 4 + g] = scale[0]

    def turned(a: Any, cos: Any, b: Any, sin: Any, sign: float) -> Any:
        # products of float32 are exact in float64: with or without FMA the result is the same
        value = double(a) * double(cos) + T.float64(sign) * (double(b) * double(sin))
        return T.Cast(key_type, wide(value))

    @T.inline
    def rotate(X, TABLE, r, p, KEY, slot):  # type: ignore[no-untyped-def]
        for i in range(rope // 2):
            KEY[slot, key_first + 2 * i] = turned(
                X[r, dv + 2 * i], TABLE[p, i], X[r, dv + 2 * i + 1], TABLE[p, rope // 2 + i], -1.0)
            KEY[slot, key_first + 2 * i + 1] = turned(
                X[r, dv + 2 * i + 1], TABLE[p, i], X[r, dv + 2 * i], TABLE[p, rope // 2 + i], 1.0)

    @T.inline
    def append(X, W, TABLE, POS, SLOT, eps, C, SCALES, KEY,  # type: ignore[no-untyped-def]
               last, slots, r):
        with T.sblock("append"):
            acc = T.sblock_alloc_buffer((lanes,), "float64", scope="global")
            inverse = T.sblock_alloc_buffer((1,), "float32", scope="global")
            if SLOT[r] >= T.int64(0) and SLOT[r] < slots:
                inverse_norm(X, r, eps, acc, inverse)
                if fp8:
                    norm_and_cast(X, W, r, C, SCALES, SLOT[r], inverse)
                else:
                    each_vector(dv, lanes, norm_span, X, W, r, C, SLOT[r], inverse)
                if rope > 0:
                    rotate(X, TABLE, r, T.max(T.min(POS[r], last), T.int64(0)), KEY, SLOT[r])

    @T.prim_func(s_tir=True)
    def main(x: T.handle, w: T.handle, table: T.handle,  # type: ignore[no-untyped-def]
             pos: T.handle, slot: T.handle, eps: T.float64, c: T.handle, scale: T.handle,
             key: T.handle):
        # the three views of the cache overlap; no byte is written through two, none is read
        T.func_attr({"global_symbol": "main", "tirx.noalias": not fp8})
        M = T.int64()
        P = T.int64()
        SLOTS = T.int64()
        xs = T.int64()
        # `align`: TVM takes 64 bytes for granted and a slice of a tensor would fault
        X = T.match_buffer(x, (M, dv + rope), dtype, strides=[xs, 1], align=align)
        W = T.match_buffer(w, (dv,), "float32", align=4)
        TABLE = T.match_buffer(table, (P, max(rope, 1)), "float32", align=4)
        POS = T.match_buffer(pos, (M,), "int64", align=8)
        SLOT = T.match_buffer(slot, (M,), "int64", align=8)
        C = T.match_buffer(c, (SLOTS, width), cache, align=cache_align)
        SCALES = T.match_buffer(scale, (SLOTS, width // 4 if fp8 else width),
                                "float32" if fp8 else cache, align=cache_align)
        KEY = T.match_buffer(key, (SLOTS, width // 2 if fp8 else width), key_type,
                             align=cache_align)
        each_row(M, rows, serial, target.lanes, "", append, X, W, TABLE, POS, SLOT, eps, C, SCALES,
                 KEY, P - 1, SLOTS)

    return {"main": main}


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """Slots are flat: pages of a contiguous cache follow one another."""
    main = target.compile("mla_kv_append", OP.static_of(shape), config)["main"]
    no_table = torch.zeros(1, 1)     # TVM takes no tensor of width 0

    def run(kv_a: Tensor, norm_weight: Tensor, cos_sin: Tensor, positions: Tensor,
            kv_cache: Tensor, slot_mapping: Tensor, eps: float, *, out: Outputs) -> None:
        if not kv_a.numel() or not kv_cache.numel():
            return
        x = kv_a if kv_a.stride(1) == 1 else kv_a.contiguous()
        table = cos_sin.contiguous() if cos_sin.numel() else no_table
        rows = kv_cache.view(-1, kv_cache.shape[-1])
        scales, keys = rows, rows
        if kv_cache.dtype == torch.uint8:
            scales, keys = rows.view(torch.float32), rows.view(torch.bfloat16)
        main(x, norm_weight.float().contiguous(), table, positions.long().contiguous(),
             slot_mapping.contiguous(), eps, rows, scales, keys)

    return run
