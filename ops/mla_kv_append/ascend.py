"""Ascend lowering: rows that have a slot are gathered, normalised, rotated, and scattered.

Bit for bit as defined in float64, which the vector cores lack (ops/_ascend/exact.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from .._ascend.casts import cast_rows, compiler_flags, narrowed, row_space, widened
from .._ascend.exact import halves, inverse_root_mean_square, rotated
from .._ascend.fp8 import stored
from .._ascend.tile import kernel
from ..fp8 import AMAX_FLOOR
from ..numerics import as_dtype
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape
from . import GROUP, row_width

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget


def space(target: AscendTarget, shape: Shape) -> Space:
    """Rows of a tile."""
    width = int(shape["kv_lora"]) + int(shape["rope"])
    return row_space(target, int(shape["tokens"]),
                     width * (44 if shape["dtype"] == "float32" else 28))


def program(target: AscendTarget, shape: Shape, config: Config) -> Any:
    """append(eps, its rest, tokens, slots, positions, kept [1], tables, x, w, cos_sin, caches)."""
    dv, rope, dtype, kind = (int(shape["kv_lora"]), int(shape["rope"]), str(shape["dtype"]),
                             str(shape["cache"]))
    rows, width = int(config["rows"]), row_width(dv, rope, as_dtype(kind))
    fp8, groups, short = kind == "uint8", dv // GROUP, dtype != "float32"
    with kernel("mla_kv_append") as k:
        eps = k.float_scalar("eps"), k.float_scalar("eps_rest")
        tokens, slots, positions = k.scalar("tokens"), k.scalar("slots"), k.scalar("positions")
        kept = k.tensor("kept", (1,), "int32")
        token, slot, position = (k.tensor(name, (tokens,), "int32")
                                 for name in ("token", "slot", "position"))
        x = k.tensor("x", (tokens, dv + rope), dtype)
        weight = k.tensor("weight", (dv,), "float32")
        table: Any = k.tensor("table", (positions, rope), "float32") if rope else None
        cache = k.tensor("cache", (slots, width), stored(target, "float8_e4m3fn") if fp8 else kind)
        scales = k.tensor("scales", (slots, width // 4), "float32") if fp8 else None
        keys = k.tensor("keys", (slots, width // 2), "bfloat16") if fp8 and rope else cache
        first = k.block("x", T.ceildiv(tokens, rows)) * rows

        def there(i: Any, *_: Any) -> Any:
            return first + i < kept[0]

        def source(start: int, w: int, step: int = 1) -> Any:
            return widened(k, k.new((rows, w), dtype, lambda i, j: x[
                token[first + i], start + j * step], there))

        # of a cache with scales, what one of them belongs to
        pieces = [(g * GROUP, GROUP) for g in range(groups)] if fp8 else [(0, dv)]
        parts = [source(*piece) for piece in pieces]
        inverse = inverse_root_mean_square(k, parts, eps, short)

        def cast_part(start: int, part: Any) -> None:
            cast_rows(k, target, part, T.float32(AMAX_FLOOR), False,
                      lambda tile, value: k.store(
                          cache, (rows, GROUP), lambda i, j: (slot[first + i], start + j),
                          lambda i, j: value(tile, i, j), there),
                      lambda factor: k.store(
                          scales, (rows, 1), lambda i, o: (slot[first + i],
                                                           dv // 4 + start // GROUP + o),
                          lambda i, o: factor[i], there))

        for (start, w), part in zip(pieces, parts, strict=True):
            scale = k.new((w,), "float32", lambda j, start=start: weight[start + j])
            y = k.new((rows, w), "float32", lambda i, j, part=part, scale=scale:
                      part[i, j] * inverse[i] * scale[j])
            if fp8:
                cast_part(start, y)
            else:
                k.store(cache, (rows, w), lambda i, j: (slot[first + i], j),
                        lambda i, j, y=y: narrowed(y[i, j], kind), there)
        if rope:
            start = (dv + 4 * groups) // 2 if fp8 else dv
            cos, sin = (k.new((rows, rope // 2), "float32", lambda i, j, at=at: table[
                position[first + i], at + j], there) for at in (0, rope // 2))
            even, odd = source(dv, rope // 2, 2), source(dv + 1, rope // 2, 2)
            out = "bfloat16" if fp8 else kind

            def put_key(at: int, value: Any) -> None:
                k.store(keys, (rows, rope // 2), lambda i, j: (slot[first + i], start + 2 * j + at),
                        lambda i, j: narrowed(value[i, j], out), there)

            put_key(0, rotated(k, even, cos, odd, sin, False, short))
            put_key(1, rotated(k, even, sin, odd, cos, True, short))
    return k.func


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """Tokens without a slot of the cache are sorted to the end and left out."""
    made, rows, rope = program(target, shape, config), int(config["rows"]), int(shape["rope"])

    def run(kv_a: Tensor, norm_weight: Tensor, cos_sin: Tensor, positions: Tensor,
            kv_cache: Tensor, slot_mapping: Tensor, eps: float, *, out: Outputs) -> None:
        tokens, cache = kv_a.shape[0], kv_cache.view(-1, kv_cache.shape[-1])
        if not tokens or not cache.shape[0]:
            return
        kept = (slot_mapping >= 0) & (slot_mapping < cache.shape[0])
        order = torch.argsort(~kept, stable=True)
        position = positions.clamp(0, max(cos_sin.shape[0] - 1, 0))
        slots = torch.where(kept, slot_mapping, 0)
        views = [cache]
        if cache.dtype == torch.uint8:
            codes = torch.int8 if target.fp8 == "bits" else torch.float8_e4m3fn
            views = [cache.view(codes), cache.view(torch.float32),
                     *([cache.view(torch.bfloat16)] if rope else [])]
        target.launch(made, (-(-tokens // rows),), *halves(eps), tokens, cache.shape[0],
                      cos_sin.shape[0], kept.sum().int().view(1), order.int(),
                      slots[order].int(), position[order].int(), kv_a.contiguous(),
                      norm_weight.float().contiguous(),
                      *([cos_sin.contiguous()] if rope else []), *views,
                      **compiler_flags(config))

    return run
