"""Ascend lowering: rows that have a slot are gathered, normalised, rotated, and scattered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from .._ascend.casts import cast_rows, compiler_flags, narrowed, row_space, widened
from .._ascend.fp8 import stored
from .._ascend.tile import Kernel as Tiles
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
    return row_space(target, int(shape["tokens"]), width * 20)


def program(target: AscendTarget, shape: Shape, config: Config) -> Any:
    """append(eps, tokens, kept [1], token, slot, position [tokens], x, w, table, cache views)."""
    dv, rope, dtype, kind = (int(shape["kv_lora"]), int(shape["rope"]), str(shape["dtype"]),
                             str(shape["cache"]))
    rows, width = int(config["rows"]), row_width(dv, rope, as_dtype(kind))
    fp8, groups = kind == "uint8", dv // GROUP
    with kernel("mla_kv_append") as k:
        eps = k.float_scalar("eps")
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

        squares = k.fill((rows,), "float32", 0)
        # one sum over all columns would err by many ulp
        parts = next(p for p in (4, 7, 5, 3, 2, 1) if dv % p == 0)
        for p in range(parts):
            square_part(k, squares, source(p * (dv // parts), dv // parts))
        norm = k.new((rows,), "float32", lambda i: T.sqrt(
            squares[i] * T.float32(1.0 / dv) + eps))
        inverse = k.new((rows,), "float32", lambda i: T.float32(1.0) / norm[i])
        def cast_part(g: int, part: Any) -> None:
            cast_rows(k, target, part, T.float32(AMAX_FLOOR), False,
                      lambda tile, value: k.store(
                          cache, (rows, GROUP), lambda i, j: (slot[first + i], g * GROUP + j),
                          lambda i, j: value(tile, i, j), there),
                      lambda factor: k.store(
                          scales, (rows, 1), lambda i, o: (slot[first + i], dv // 4 + g + o),
                          lambda i, o: factor[i], there))

        if not fp8:
            scale = k.new((dv,), "float32", lambda j: weight[j])
            latent = source(0, dv)
            y = k.new((rows, dv), "float32", lambda i, j: latent[i, j] * inverse[i] * scale[j])
            k.store(cache, (rows, dv), lambda i, j: (slot[first + i], j),
                    lambda i, j: narrowed(y[i, j], kind), there)
        for g in range(groups if fp8 else 0):
            # part of a tile cannot be read, so its columns are fetched again
            x_part = source(g * GROUP, GROUP)
            column = k.new((GROUP,), "float32", lambda j, g=g: weight[g * GROUP + j])
            part = k.new((rows, GROUP), "float32", lambda i, j, x_part=x_part, column=column:
                         x_part[i, j] * inverse[i] * column[j])
            cast_part(g, part)
        if rope:
            start = (dv + 4 * groups) // 2 if fp8 else dv
            cos, sin = (k.new((rows, rope // 2), "float32", lambda i, j, at=at: table[
                position[first + i], at + j], there) for at in (0, rope // 2))
            even, odd = source(dv, rope // 2, 2), source(dv + 1, rope // 2, 2)
            out = "bfloat16" if fp8 else kind

            def put_key(at: int, value: Any) -> None:
                k.store(keys, (rows, rope // 2), lambda i, j: (slot[first + i], start + 2 * j + at),
                        lambda i, j: narrowed(value(i, j), out), there)

            put_key(0, lambda i, j: even[i, j] * cos[i, j] - odd[i, j] * sin[i, j])
            put_key(1, lambda i, j: even[i, j] * sin[i, j] + odd[i, j] * cos[i, j])
    return k.func


def square_part(k: Tiles, into: Any, x: Any) -> None:
    """into[i] += sum of x[i, j]^2."""
    rows, width = (int(n) for n in x.shape)
    part = k.fill((rows,), "float32", 0)
    k.reduce("add", part, (rows, width), lambda i, j: x[i, j] * x[i, j])
    k.put(into, lambda i: into[i] + part[i])


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
        target.launch(made, (-(-tokens // rows),), float(eps), tokens, cache.shape[0],
                      cos_sin.shape[0], kept.sum().int().view(1), order.int(),
                      slots[order].int(), position[order].int(), kv_a.contiguous(),
                      norm_weight.float().contiguous(),
                      *([cos_sin.contiguous()] if rope else []), *views,
                      **compiler_flags(config))

    return run
