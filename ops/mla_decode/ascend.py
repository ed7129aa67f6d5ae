"""Ascend lowering: a block for a sequence, some heads and a split; pages through the table.

Scores and values on the cube, the softmax between them on the vector cores. A tile of keys is part
of one page where pages have 16 tokens or more, else it is gathered token by token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from .._ascend import attention
from .._ascend.casts import word
from .._ascend.fp8 import decoded, stored
from .._ascend.tile import constant, kernel
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape
from . import FP8_GROUP, fp8_row_bytes

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget

_SPLITS = (1, 2, 4, 8, 16)
_COMBINE_ROWS = 16


def space(target: AscendTarget, shape: Shape) -> Space:
    """Heads and keys of a tile, splits of the keys, and the compiler's switches."""
    page, rows = int(shape["page"]), int(shape["heads"]) * int(shape["s_q"])
    fits = [b for b in (64, 128, 32, 16) if page % b == 0] if page >= 16 else [16, 32, 64]
    wide = "float32" in (shape["dtype"], shape["kv_dtype"])
    heights = [16, 32, 64] if target.ub_bytes < 200 << 10 or wide else [64, 32, 16]
    first = next((h for h in sorted(heights) if h >= rows), heights[0])
    block_h = (first, *(h for h in heights if h != first))
    blocks = int(shape["batch"]) * -(-rows // first)
    tiles = max(1, int(shape["ctx"]) // (fits or [page])[0])
    splits = next((s for s in _SPLITS if s * blocks >= target.cores or 2 * s > tiles), 16)
    return Space({"block_h": block_h, "block_n": tuple(fits or [page]),
                  "splits": (splits, *(s for s in _SPLITS if s != splits)),
                  "double_buffer": (True, False), "workspace_buffers": (2, 1, 4)})


def program(target: AscendTarget, shape: Shape, config: Config) -> Any:
    """decode(batch, pages, room, scale, last [rows], q, cache..., table, lengths, o, lse)."""
    heads, dv, rope, page, s_q = (int(shape[a]) for a in (
        "heads", "head_dim_v", "rope", "page", "s_q"))
    rows, tile, keys, splits = heads * s_q, *(int(config[c]) for c in (
        "block_h", "block_n", "splits"))
    kind, dtype = str(shape["kv_dtype"]), str(shape["dtype"])
    compute = "float32" if "float32" in (dtype, kind) else "bfloat16"
    direct = kind == compute
    widths = [dv] if direct else [min(FP8_GROUP, dv - c) for c in range(0, dv, FP8_GROUP)]
    with kernel("mla_decode") as k:
        batch, pages, room = k.scalar("batch"), k.scalar("pages"), k.scalar("room")
        scale = k.float_scalar("scale")
        last = k.tensor("last", (rows,), "int32")
        q = k.tensor("q", (batch, rows, dv + rope), dtype)
        width = fp8_row_bytes(dv, rope) if kind == "fp8" else dv + rope
        if kind == "fp8":
            cache = k.tensor("cache", (pages * page, width), stored(target, "float8_e4m3fn"))
            cache_f32 = k.tensor("cache_f32", (pages * page, width // 4), "float32")
            cache_bf16 = k.tensor("cache_bf16", (pages * page, width // 2), "bfloat16")
        else:
            cache = k.tensor("cache", (pages * page, width), kind)
        table = k.tensor("table", (batch, room), "int32")
        lengths = k.tensor("lengths", (batch,), "int32")
        out_dtype = dtype if splits == 1 else "float32"
        o = k.tensor("o", (batch, rows, splits, dv), out_dtype)
        lse = k.tensor("lse", (batch, rows, splits), "float32")
        b = k.block("x", batch)
        r0 = k.block("y", -(-rows // tile)) * tile
        split = k.block("z", splits)

        def there(i: Any, *_: Any) -> Any:
            return r0 + i < rows

        def cast(x: Any, shape_: tuple[int, int]) -> Any:
            return x if str(x.dtype) == compute else k.new(
                shape_, compute, lambda i, j: T.Cast(compute, x[i, j]))

        def query(first: int, w: int) -> Any:
            return cast(k.new((tile, w), dtype, lambda i, j: q[b, r0 + i, first + j], there),
                        (tile, w))

        length = T.min(T.max(lengths[b], 0), room * page)
        starts = [sum(widths[:c]) for c in range(len(widths))]
        queries = [query(first, w) for first, w in zip(starts, widths, strict=True)]
        queries += [query(dv, rope)] if rope else []
        limit = k.new((tile,), "int32", lambda i: last[r0 + i], there)
        state = attention.start(k, tile, widths, compute)
        tiles = T.ceildiv(length, keys)
        share = T.ceildiv(tiles, splits)
        with k.loop(T.max(T.min(tiles - split * share, share), 0)) as turn:
            token = (split * share + turn) * keys
            known = length - token

            def row(i: Any) -> Any:
                at = token if page % keys == 0 else token + i
                inside = token % page + i if page % keys == 0 else (token + i) % page
                return T.max(T.min(table[b, at // page], pages - 1), 0) * page + inside

            def load(source: Any, first: int, w: int) -> Any:
                kind_ = str(source.dtype)
                return k.new((keys, w), kind_, lambda i, j: T.if_then_else(
                    i < known, source[row(i), first + j], constant(0, kind_)))

            def latent(first: int, w: int) -> Any:
                if kind != "fp8":
                    return cast(load(cache, first, w), (keys, w))
                raw = load(cache, first, w)
                if target.fp8 == "native":
                    number = k.new((keys, w), "float32", lambda i, j: T.Cast("float32", raw[i, j]))
                else:
                    number = decoded(k, (keys, w), lambda i, j: raw[i, j], "float32")
                # the codes are exact in bfloat16, so scores lose nothing; scales come after
                return cast(number, (keys, w))

            def factor(c: int) -> Any:
                if kind != "fp8":
                    return None

                def scale_of(i: Any, *o: Any) -> Any:
                    return T.if_then_else(i < known, cache_f32[row(i), dv // 4 + sum(o, c)],
                                          T.float32(0))

                if page % keys == 0:
                    return k.new((keys,), "float32", scale_of)
                # fetched one by one into one row, each would wipe those before it
                apart = k.new((keys, 1), "float32", scale_of)
                return k.new((keys,), "float32", lambda i: apart[i, 0])

            factors = [factor(c) for c in range(len(widths))]
            values = [latent(first, w) for first, w in zip(starts, widths, strict=True)]
            ropes = [] if not rope else [
                cast(load(cache, dv, rope), (keys, rope)) if kind != "fp8" else
                cast(load(cache_bf16, (dv + 4 * len(widths)) // 2, rope), (keys, rope))]
            raw = attention.scores(k, queries, [*values, *ropes],
                                   [*factors, *(None for _ in ropes)])

            def seen(i: Any, j: Any) -> Any:
                if s_q == 1 or not shape["causal"]:
                    return j < known
                return j < limit[i] + known

            attention.add(k, state, raw, scale, seen, values, factors)
        for first, w, part in zip(starts, widths, attention.divided(k, state), strict=True):
            k.store(o, (tile, w), lambda i, j, first=first: (b, r0 + i, split, first + j),
                    lambda i, j, part=part: part[i, j] if out_dtype == "float32"
                    else T.Cast(out_dtype, part[i, j]), there)
        sums = attention.log_sum(k, state, -float("inf") if splits == 1 else attention.NOTHING)
        k.store(lse, (tile,), lambda i: (b, r0 + i, split), lambda i: sums[i], there)
    return k.func


def combine(shape: Shape, splits: int) -> Any:
    """combine(rows, parts [rows, splits, dv], part_lse [rows, splits], o [rows, dv], lse [rows]).

    The output of the splits weighed by what each saw.
    """
    dv, dtype, tile = int(shape["head_dim_v"]), str(shape["dtype"]), _COMBINE_ROWS
    with kernel("mla_decode_combine") as k:
        rows = k.scalar("rows")
        parts = k.tensor("parts", (rows, splits, dv), "float32")
        part_lse = k.tensor("part_lse", (rows, splits), "float32")
        o, lse = k.tensor("o", (rows, dv), dtype), k.tensor("lse", (rows,), "float32")
        r0 = k.block("x", T.ceildiv(rows, tile)) * tile

        def there(i: Any, *_: Any) -> Any:
            return r0 + i < rows

        each = k.new((tile, splits), "float32", lambda i, s: part_lse[r0 + i, s], there)
        top = k.fill((tile,), "float32", attention.NOTHING)
        k.reduce("max", top, (tile, splits), lambda i, s: each[i, s])
        total = k.fill((tile,), "float32", 0)
        k.reduce("add", total, (tile, splits), lambda i, s: T.exp(each[i, s] - top[i]))
        acc = k.fill((tile, dv), "float32", 0)
        with k.loop(splits) as s:
            one = k.new((tile,), "float32", lambda i: part_lse[r0 + i, s], there)
            part = k.new((tile, dv), "float32", lambda i, j: parts[r0 + i, s, j], there)
            k.put(acc, lambda i, j: acc[i, j] + part[i, j] * T.exp(one[i] - top[i]))
        k.store(o, (tile, dv), lambda i, j: (r0 + i, j), lambda i, j: T.Cast(
            dtype, acc[i, j] / total[i]) if dtype != "float32" else acc[i, j] / total[i], there)
        sums = k.new((tile,), "float32", lambda i: T.Select(
            top[i] > T.float32(attention.NOTHING / 2), top[i] + T.log(total[i]),
            T.FloatImm("float32", -float("inf"))))
        k.store(lse, (tile,), lambda i: (r0 + i,), lambda i: sums[i], there)
    return k.func


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """Rows are (query position, head); lse is transposed into its place where s_q > 1."""
    made, splits = program(target, shape, config), int(config["splits"])
    merged = combine(shape, splits) if splits > 1 else None
    heads, s_q, dv = int(shape["heads"]), int(shape["s_q"]), int(shape["head_dim_v"])
    rows, tile, fp8 = heads * s_q, int(config["block_h"]), shape["kv_dtype"] == "fp8"
    flags = {"enable_auto_multi_buffer": word(config["double_buffer"]),
             "set_workspace_multibuffer": str(config["workspace_buffers"])}

    def run(q: Tensor, kv_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor,
            head_dim_v: int, softmax_scale: float, causal: bool, *, out: Outputs) -> None:
        o, lse = out
        batch = q.shape[0]
        if not batch:
            return
        def fresh(*sizes: int) -> Tensor:
            return torch.empty(sizes, dtype=torch.float32, device=q.device)

        last = torch.arange(rows, dtype=torch.int32, device=q.device) // heads - (s_q - 1)
        cache = kv_cache.view(-1, kv_cache.shape[-1])
        views = [cache]
        if fp8:
            codes = torch.int8 if target.fp8 == "bits" else torch.float8_e4m3fn
            views = [cache.view(codes), cache.view(torch.float32), cache.view(torch.bfloat16)]
        flat = o if o.is_contiguous() else torch.empty_like(o)
        parts = flat if merged is None else fresh(batch, rows, splits, dv)
        sums, part_lse = fresh(batch, rows), fresh(batch, rows, splits)
        room = block_table.shape[1] if kv_cache.shape[0] else 0
        target.launch(made, (batch, -(-rows // tile), splits), batch, kv_cache.shape[0], room,
                      float(softmax_scale), last, q.contiguous(), *views,
                      block_table.contiguous(), cache_seqlens.contiguous(), parts,
                      sums if merged is None else part_lse, **flags)
        if merged is not None:
            target.launch(merged, (-(-batch * rows // _COMBINE_ROWS),), batch * rows, parts,
                          part_lse, flat, sums)
        if flat is not o:
            o.copy_(flat)
        lse.copy_(sums.view(batch, s_q, heads).transpose(1, 2))

    return run
