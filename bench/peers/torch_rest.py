"""GEMM, attention and casts in plain torch, the ways its users write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.spec import Args
from .form import turns
from .torch_moe import wide

Forms = Iterator[tuple[str, Callable[[], Any]]]
_SHORT = {torch.float32: "f32", torch.bfloat16: "bf16"}


def gemm(sets: list[Args], dtypes: tuple[torch.dtype, ...], compiled: bool) -> Forms:
    """a @ b.T with the weights widened at load."""
    for dtype in dtypes:
        calls = []
        for a, a_s, b, b_s, block_n, block_k, _ in sets:
            x = wide(a[None], None if a_s is None else a_s[None], (1, block_k), dtype)[0]
            calls.append((x, wide(b[None], None if b_s is None else b_s[None],
                                  (block_n, block_k), dtype)[0]))
        yield f"torch {_SHORT[dtype]} linear", turns(F.linear, calls)


def absorbed(q: Tensor, cache: Tensor, dv: int, scale: float) -> Tensor:
    """Absorbed MLA decode: q [B, H, D], cache [B, L, D] -> [B, H, dv]."""
    p = torch.softmax(torch.bmm(q, cache.transpose(1, 2)) * scale, -1)
    return torch.bmm(p, cache[..., :dv])


def _sdpa(q: Tensor, cache: Tensor, dv: int, scale: float) -> Tensor:
    """The heads are the rows of one attention head."""
    keys = cache[:, None]
    return F.scaled_dot_product_attention(q[:, None], keys, keys[..., :dv], scale=scale)[:, 0]


def _flex(q: Tensor, cache: Tensor, dv: int, scale: float) -> Tensor:
    """flex attention with one key head for all (GQA)."""
    from torch.nn.attention.flex_attention import flex_attention

    keys = cache[:, None]
    out = flex_attention(q[:, :, None], keys, keys[..., :dv], scale=scale, enable_gqa=True)
    assert isinstance(out, Tensor)
    return out[:, :, 0]


def decode(sets: list[Args], dtypes: tuple[torch.dtype, ...], compiled: bool) -> Forms:
    """On a contiguous cache of equal lengths, without pages: in torch's favour."""
    for dtype in dtypes:
        calls = []
        for q, cache, table, lengths, dv, scale, _ in sets:
            rows = cache[table.long().clamp(0, len(cache) - 1)].flatten(1, 2)[
                :, :int(lengths.max()), 0]
            calls.append((q[:, 0].to(dtype), rows.to(dtype).contiguous(), dv, scale))
        yield f"torch {_SHORT[dtype]} absorbed", turns(absorbed, calls)
        yield f"torch {_SHORT[dtype]} SDPA", turns(_sdpa, calls)
        if compiled:
            yield (f"torch.compile {_SHORT[dtype]} absorbed",
                   turns(torch.compile(absorbed, dynamic=True), calls))
            yield f"flex attention {_SHORT[dtype]}", turns(torch.compile(_flex), calls)


def _causal(b: Any, h: Any, row: Any, column: Any) -> Any:
    return row >= column


def prefill(sets: list[Args], dtypes: tuple[torch.dtype, ...], compiled: bool) -> Forms:
    """One sequence, as SDPA takes it, value heads as they are and padded to the key's width."""
    def plain(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)

    for dtype in dtypes:
        calls, padded = [], []
        for q, k, v, _, _, scale, _ in sets:
            heads = [x.to(dtype).transpose(0, 1)[None].contiguous() for x in (q, k, v)]
            calls.append((*heads, scale))
            padded.append((*heads[:2], F.pad(heads[2], (0, q.shape[2] - v.shape[2])), scale))
        yield f"torch {_SHORT[dtype]} SDPA", turns(plain, calls)
        yield f"torch {_SHORT[dtype]} SDPA, v padded", turns(plain, padded)
        if compiled:
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention

            n = sets[0][0].shape[0]
            mask = create_block_mask(_causal, None, None, n, n, device="cpu")
            fn = torch.compile(flex_attention)
            yield (f"flex attention {_SHORT[dtype]}",
                   turns(lambda q, k, v, s, fn=fn, mask=mask: fn(q, k, v, block_mask=mask,
                                                                 scale=s), padded))


def quantise(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Per-token-group cast to e4m3; the division as per_token_group_quant_fp8 defines it."""
    v = x.float().unflatten(-1, (-1, group))
    s = v.abs().amax(-1, keepdim=True).clamp_min(1e-10) / 448.0
    return (v / s).clamp(-448, 448).to(torch.float8_e4m3fn).flatten(-2), s[..., 0]


def silu_quantise(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """SwiGLU, gate first, then the cast."""
    gate, up = x.float().chunk(2, -1)
    return quantise(F.silu(gate) * up, group)


def dequantise(q: Tensor, s: Tensor, block: int, dtype: torch.dtype) -> Tensor:
    """Block-scaled weights as a plain matrix; sizes divide by the block."""
    n, k = q.shape
    tiles = q.to(torch.float32).view(n // block, block, k // block, block)
    return (tiles * s[:, None, :, None]).view(n, k).to(dtype)


def casts(name: str, sets: list[Args], compiled: bool) -> Forms:
    """Eager and compiled."""
    fns: dict[str, Callable[..., Any]] = {
        "per_token_group_quant_fp8": quantise, "silu_mul_quant_fp8": silu_quantise,
        "weight_dequant": dequantise}
    width = 4 if name == "weight_dequant" else 2
    calls = [a[:width] for a in sets]
    yield "torch eager", turns(fns[name], calls)
    if compiled:
        yield "torch.compile", turns(torch.compile(fns[name]), calls)
