"""Normalise and rotate new tokens' latents and write them into the paged MLA cache.

kv_a [T, Dv + rope] is what the down-projection gives: the latent, then the shared rotary key.

    latent: y = (x * r) * norm_weight with r = 1 / sqrt(mean(x^2) + eps); r is computed in float64
            and rounded to float32, the two products are float32
    key:    pairs stay interleaved: (x0, x1) -> (x0 cos - x1 sin, x0 sin + x1 cos), computed in
            float64 and rounded to float32; cos_sin[p] = [cos (rope / 2), sin (rope / 2)]

Both are rounded once more to the cache's dtype. Float64 makes the definition reproducible: the
order of a sum and the use of FMA no longer show, so lowerings can agree bit for bit.

The cache is [pages, page, 1, Dv + rope] in a float dtype, or the FP8 layout of FlashMLA: uint8
[pages, page, 1, Dv + 4 * Dv / 128 + 2 * rope], per token Dv e4m3 bytes, one float32 scale per 128
of them (as per_token_group_quant_fp8 makes it, from the float32 y), then the key in bfloat16
(656 bytes for 512 + 64). Slot = page * page_size + offset. A token whose slot is negative or
beyond the cache is skipped; positions are clamped to the table; two tokens must not share a slot.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..fp8 import AMAX_FLOOR, group_cast
from ..models import Load, ModelDims
from ..numerics import as_dtype, blank, dtype_name
from ..spec import Args, Operator, Outputs, Shape, Work

GROUP = 128                          # latent columns per scale in FlashMLA's FP8 layout
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def row_width(kv_lora: int, rope: int, cache: torch.dtype) -> int:
    """Elements of one token in the cache: values, or bytes of the FP8 layout."""
    if cache != torch.uint8:
        return kv_lora + rope
    return kv_lora + 4 * (kv_lora // GROUP) + 2 * rope


def shape_of(kv_a: Tensor, norm_weight: Tensor, cos_sin: Tensor, positions: Tensor,
             kv_cache: Tensor, slot_mapping: Tensor, eps: float) -> Shape:
    """Axes of a call."""
    if kv_a.ndim != 2 or kv_a.dtype not in _FLOATS:
        raise TypeError("kv_a must be a float32, bfloat16 or float16 tensor [T, Dv + rope], "
                        f"got {kv_a.dtype}{list(kv_a.shape)}")
    tokens, width = kv_a.shape
    if norm_weight.ndim != 1 or not norm_weight.dtype.is_floating_point:
        raise TypeError(f"norm_weight must be a float tensor [Dv], got {norm_weight.dtype}"
                        f"{list(norm_weight.shape)}")
    dv, rope = norm_weight.shape[0], width - norm_weight.shape[0]
    if not 0 < dv <= width or rope % 2:
        raise ValueError(f"kv_a holds Dv + rope columns with rope even, got {width} columns and "
                         f"norm_weight [{dv}]")
    if cos_sin.dtype != torch.float32 or cos_sin.ndim != 2 or cos_sin.shape[1] != rope:
        raise TypeError(f"cos_sin must be float32 [positions, {rope}], got {cos_sin.dtype}"
                        f"{list(cos_sin.shape)}")
    if rope and not cos_sin.shape[0]:
        raise ValueError("cos_sin must hold at least one position, got none")
    for name, index, dtypes in (("positions", positions, (torch.int32, torch.int64)),
                                ("slot_mapping", slot_mapping, (torch.int64,))):
        if list(index.shape) != [tokens] or index.dtype not in dtypes:
            raise TypeError(f"{name} must be {' or '.join(map(dtype_name, dtypes))} [{tokens}], "
                            f"got {index.dtype}{list(index.shape)}")
    if kv_cache.dtype == torch.uint8 and dv % GROUP:
        raise ValueError(f"an FP8 cache needs Dv % {GROUP} == 0, got {dv}; use a bfloat16 cache")
    want = row_width(dv, rope, kv_cache.dtype)
    if kv_cache.dtype not in (*_FLOATS, torch.uint8) or kv_cache.ndim != 4 or list(
            kv_cache.shape[2:]) != [1, want]:
        raise TypeError("kv_cache must be float32, bfloat16, float16 or uint8 (FP8 layout) "
                        f"[pages, page, 1, {want}], got {kv_cache.dtype}{list(kv_cache.shape)}")
    if not kv_cache.is_contiguous():
        raise ValueError("kv_cache must be contiguous: it is written in place")
    return {"kv_lora": dv, "rope": rope, "dtype": dtype_name(kv_a.dtype),
            "cache": dtype_name(kv_cache.dtype), "tokens": tokens}


def empty(kv_a: Tensor, norm_weight: Tensor, cos_sin: Tensor, positions: Tensor, kv_cache: Tensor,
          slot_mapping: Tensor, eps: float) -> Outputs:
    """Nothing: the cache is written in place."""
    return ()


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Interleaved RoPE of x [T, rope] by rows of the table; float64 inside, float32 out."""
    cos, sin = cos_sin.double().chunk(2, -1)
    x0, x1 = x.double()[:, ::2], x.double()[:, 1::2]
    return torch.stack((x0 * cos - x1 * sin, x0 * sin + x1 * cos), -1).flatten(1).float()


def reference(kv_a: Tensor, norm_weight: Tensor, cos_sin: Tensor, positions: Tensor,
              kv_cache: Tensor, slot_mapping: Tensor, eps: float, *, out: Outputs) -> None:
    """The definition above, row by row of the cache."""
    dv, rows = norm_weight.shape[0], kv_cache.view(-1, kv_cache.shape[-1])
    kept = (slot_mapping >= 0) & (slot_mapping < len(rows))
    x, slots = kv_a[kept], slot_mapping[kept]
    latent = x[:, :dv].double()
    inverse = (1.0 / (latent.square().sum(-1, keepdim=True) / dv + eps).sqrt()).float()
    y = (x[:, :dv].float() * inverse) * norm_weight.float()
    at = positions[kept].long().clamp(0, max(len(cos_sin) - 1, 0))
    key = rotate(x[:, dv:], cos_sin[at]) if x.shape[1] > dv else x[:, dv:].float()
    if kv_cache.dtype != torch.uint8:
        rows[slots] = torch.cat((y, key), -1).to(kv_cache.dtype)
        return
    values, scale = group_cast(y.unflatten(1, (-1, GROUP)), AMAX_FLOOR, False, (-1,))
    parts = (values.flatten(1).to(torch.float8_e4m3fn), scale.flatten(1), key.to(torch.bfloat16))
    rows[slots] = torch.cat([p.contiguous().view(torch.uint8) for p in parts], -1)


def _draw(shape: Shape, g: torch.Generator, tokens: int, page: int = 16) -> list[object]:
    """Random tokens for random slots of a cache that is a third larger; the rest is not touched."""
    dv, rope, cache = int(shape["kv_lora"]), int(shape["rope"]), as_dtype(str(shape["cache"]))
    pages = max(1, -(-tokens * 4 // 3 // page))
    width = row_width(dv, rope, cache)
    table = torch.rand(max(97, tokens), rope // 2, generator=g) * 6.28
    if cache == torch.uint8:
        kv_cache = torch.randint(0, 256, (pages, page, 1, width), generator=g, dtype=torch.uint8)
    else:
        kv_cache = torch.randn(pages, page, 1, width, generator=g).to(cache)
    x = torch.randn(tokens, dv + rope, generator=g) * (0.1 + torch.rand(tokens, 1, generator=g))
    return [x.to(as_dtype(str(shape["dtype"]))), 1.0 + 0.1 * torch.randn(dv, generator=g),
            torch.cat((table.cos(), table.sin()), -1),
            torch.randint(0, len(table), (tokens,), generator=g), kv_cache,
            torch.randperm(pages * page, generator=g)[:tokens], 1e-6]


def signature(shape: Shape) -> Args:
    """A call without data, on pages of 64 tokens."""
    tokens, dv, rope = (int(shape[a]) for a in ("tokens", "kv_lora", "rope"))
    cache, pages = str(shape["cache"]), max(1, -(-tokens * 4 // 3 // 64))
    return (blank(str(shape["dtype"]), tokens, dv + rope), blank("float32", dv),
            blank("float32", max(97, tokens), rope), blank("int64", tokens),
            blank(cache, pages, 64, 1, row_width(dv, rope, as_dtype(cache))),
            blank("int64", tokens), 1e-6)


def inputs(shape: Shape, seed: int) -> Args:
    """New tokens of several requests, scattered over the pages."""
    return tuple(_draw(shape, torch.Generator().manual_seed(seed), int(shape["tokens"]), 64))


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """Skipped and out-of-range slots (their rows poisoned), wild positions, strided kv_a."""
    g = torch.Generator().manual_seed(seed)
    yield "typical", tuple(_draw(shape, g, 7))
    yield "no token", tuple(_draw(shape, g, 0))
    yield "page of one", tuple(_draw(shape, g, 40, page=1))
    for name, bad in (("skipped", -1), ("far negative", -(1 << 62)), ("beyond the cache", None),
                      ("far beyond", 1 << 62)):
        kv_a, weight, table, positions, cache, slots, eps = _draw(shape, g, 9)
        assert isinstance(kv_a, Tensor) and isinstance(slots, Tensor)
        assert isinstance(positions, Tensor) and isinstance(cache, Tensor)
        slots[::2] = cache.shape[0] * cache.shape[1] if bad is None else bad
        kv_a[::2], positions[::2] = torch.nan, 1 << 62
        yield name, (kv_a, weight, table, positions, cache, slots, eps)
    kv_a, weight, table, positions, cache, slots, eps = _draw(shape, g, 6)
    wild = torch.tensor([-1, -(1 << 31), (1 << 31) - 1, 96, 97, 0])
    yield "positions outside", (kv_a, weight, table, wild, cache, slots, eps)
    yield "int32 positions", (kv_a, weight, table, wild.int(), cache, slots, eps)
    assert isinstance(kv_a, Tensor) and isinstance(weight, Tensor)
    fused = torch.cat((torch.full((6, 5), torch.nan, dtype=kv_a.dtype), kv_a), -1)
    yield "last columns of q_a + kv_a", (fused[:, 5:], weight, table, positions, cache, slots, eps)
    yield "zeros", (torch.zeros_like(kv_a), weight, table, positions, cache, slots, eps)
    yield "bfloat16 weight", (kv_a, weight.bfloat16(), table, positions, cache, slots, eps)
    yield "large eps", (kv_a, weight, table, positions, cache, slots, 0.5)


def work(shape: Shape) -> Work:
    """Read kv_a, its row of the table and its indices, write its row of the cache."""
    t, dv, rope = (int(shape[a]) for a in ("tokens", "kv_lora", "rope"))
    cache = as_dtype(str(shape["cache"]))
    row = ((dv + rope) * as_dtype(str(shape["dtype"])).itemsize + 4 * rope + 16
           + row_width(dv, rope, cache) * cache.itemsize)
    return Work(t * (4 * dv + 3 * rope), t * row)


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """The model's own sizes, with a cache of the activations' dtype."""
    return tuple({"kv_lora": model.kv_lora, "rope": model.rope, "dtype": model.act_dtype,
                  "cache": model.act_dtype, "tokens": t} for t in load.tokens)


def _odd(kv_lora: int, rope: int, dtype: str, cache: str) -> Shape:
    return {"kv_lora": kv_lora, "rope": rope, "dtype": dtype, "cache": cache, "tokens": 5}


OP = Operator(
    name="mla_kv_append",
    static=("kv_lora", "rope", "dtype", "cache"),
    dynamic=("tokens",),
    shape_of=shape_of, empty=empty, reference=reference, signature=signature, inputs=inputs,
    cases=cases, work=work,
    shapes=shapes,
    # an ulp of a row's largest value for lowerings without float64; tests hold the CPU to 0
    rtol={"float32": 2.0**-22, "bfloat16": 2.0**-7, "float16": 2.0**-10},
    odd_shapes=(_odd(128, 32, "float32", "float32"), _odd(512, 64, "bfloat16", "bfloat16"),
                _odd(256, 64, "float32", "uint8"), _odd(512, 0, "bfloat16", "uint8"),
                _odd(77, 6, "float16", "float16"), _odd(200, 0, "bfloat16", "float32")),
    mutates=(4,),
)
