"""Absorbed MLA decode on the paged latent cache (DeepSeek-V2 report, 2.1; FlashMLA's API)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..fp8 import E4M3_MAX
from ..models import Load, ModelDims
from ..numerics import as_dtype, blank, dtype_name, poison
from ..spec import Args, Operator, Outputs, Shape, Work

FP8_GROUP = 128                      # latent features that share a scale in FlashMLA's fp8 cache


def fp8_row_bytes(head_dim_v: int, rope: int) -> int:
    """Bytes of one token in the fp8 cache: e4m3 latent, float32 scales, bf16 rope."""
    return head_dim_v + 4 * -(-head_dim_v // FP8_GROUP) + 2 * rope


def pack_fp8(rows: Tensor, head_dim_v: int) -> Tensor:
    """Rows [..., Dv + rope] as bytes of the fp8 cache (FlashMLA: 656 bytes at 512 + 64)."""
    latent, rope = rows[..., :head_dim_v].float(), rows[..., head_dim_v:].bfloat16()
    groups = -(-head_dim_v // FP8_GROUP)
    blocks = torch.nn.functional.pad(latent, (0, groups * FP8_GROUP - head_dim_v)).unflatten(
        -1, (groups, FP8_GROUP))
    scale = blocks.abs().amax(-1).clamp_min(1e-10) / torch.tensor(E4M3_MAX)
    q = (blocks / scale[..., None]).clamp(-E4M3_MAX, E4M3_MAX).flatten(-2)[..., :head_dim_v]
    parts = (q.to(torch.float8_e4m3fn), scale, rope)
    return torch.cat([p.clone(memory_format=torch.contiguous_format).view(torch.uint8)
                      for p in parts], -1)


def unpack_fp8(packed: Tensor, head_dim_v: int) -> Tensor:
    """The float32 rows [..., Dv + rope] behind bytes of the fp8 cache; exact."""
    groups = -(-head_dim_v // FP8_GROUP)
    q, scale, rope = packed.split(
        (head_dim_v, 4 * groups, packed.shape[-1] - head_dim_v - 4 * groups), -1)
    scales = scale.contiguous().view(torch.float32).repeat_interleave(FP8_GROUP, -1)
    latent = q.contiguous().view(torch.float8_e4m3fn).float() * scales[..., :head_dim_v]
    return torch.cat((latent, rope.contiguous().view(torch.bfloat16).float()), -1)


def shape_of(q: Tensor, kv_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor,
             head_dim_v: int, softmax_scale: float, causal: bool) -> Shape:
    """Axes of a call; ctx is what the block table can hold, so that no length is read."""
    if q.ndim != 4 or q.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError("q must be [batch, s_q, heads, head_dim_v + rope] in float32 or bfloat16, "
                        f"got {q.dtype}{list(q.shape)}")
    batch, s_q, heads, d = q.shape
    if not 0 < head_dim_v <= d or s_q < 1 or heads < 1:
        raise ValueError(f"head_dim_v must be in 1..{d} (q's last axis) and s_q and heads at least "
                         f"1, got {head_dim_v=}, q {list(q.shape)}")
    fp8 = kv_cache.dtype == torch.uint8
    if not fp8 and kv_cache.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError("kv_cache must be float32, bfloat16 or, for fp8, uint8 bytes, "
                        f"got {kv_cache.dtype}; use kv_cache.view(torch.uint8) for fp8")
    if fp8 and (head_dim_v % 4 or d % 2):
        raise ValueError(f"an fp8 cache needs head_dim_v % 4 == 0 and an even rope, got "
                         f"{head_dim_v} and {d - head_dim_v}")
    width = fp8_row_bytes(head_dim_v, d - head_dim_v) if fp8 else d
    if kv_cache.ndim != 4 or kv_cache.shape[1] < 1 or kv_cache.shape[2:] != (1, width):
        raise ValueError(f"kv_cache must be [pages, page, 1, {width}] for {kv_cache.dtype}, "
                         f"got {list(kv_cache.shape)}")
    if not kv_cache.is_contiguous():
        raise ValueError("kv_cache must be contiguous (a copy per call would cost more than the "
                         f"attention), got strides {kv_cache.stride()}")
    for name, x, want in (("block_table", block_table, (batch, *block_table.shape[1:2])),
                          ("cache_seqlens", cache_seqlens, (batch,))):
        if x.dtype != torch.int32 or x.shape != want or x.ndim != len(want):
            raise ValueError(f"{name} must be int32{list(want)}, got {x.dtype}{list(x.shape)}")
    page = kv_cache.shape[1]
    return {"heads": heads, "head_dim_v": head_dim_v, "rope": d - head_dim_v, "page": page,
            "s_q": s_q, "dtype": dtype_name(q.dtype),
            "kv_dtype": "fp8" if fp8 else dtype_name(kv_cache.dtype), "causal": causal,
            "batch": batch, "ctx": block_table.shape[1] * page}


def empty(q: Tensor, kv_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor, head_dim_v: int,
          softmax_scale: float, causal: bool) -> Outputs:
    """out [B, s_q, H, Dv] like q, and lse [B, H, s_q] float32."""
    batch, s_q, heads, _ = q.shape
    return (q.new_empty(batch, s_q, heads, head_dim_v),
            q.new_empty(batch, heads, s_q, dtype=torch.float32))


def reference(q: Tensor, kv_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor,
              head_dim_v: int, softmax_scale: float, causal: bool, *, out: Outputs) -> None:
    """Softmax attention in float64, one sequence after the other.

    Lengths are clamped to what the table holds, page ids to the pages that exist.
    """
    o, lse = out
    batch, s_q = q.shape[:2]
    pages, page, _, width = kv_cache.shape
    most = block_table.shape[1] * page if pages else 0
    for b in range(batch):
        n = min(max(int(cache_seqlens[b]), 0), most)
        ids = block_table[b, :-(-n // page)].long().clamp(0, max(pages - 1, 0))
        rows = kv_cache[ids].reshape(-1, width)[:n]
        keys = (unpack_fp8(rows, head_dim_v) if rows.dtype == torch.uint8 else rows).double()
        s = torch.einsum("ihd,nd->hin", q[b].double(), keys) * softmax_scale
        if causal:
            sees = n - s_q + 1 + torch.arange(s_q, device=q.device)
            s = s.masked_fill(torch.arange(n, device=q.device) >= sees[:, None], float("-inf"))
        lse[b] = torch.logsumexp(s, -1)
        p = torch.softmax(s, -1).masked_fill(lse[b].isneginf()[..., None], 0.0)
        o[b] = torch.einsum("hin,nd->ihd", p, keys[:, :head_dim_v])


def _latents(n: int, d: int, g: torch.Generator) -> Tensor:
    """Rows of a cache. Their mean, with that of `_queries`, keeps scores near 8: a log-sum-exp
    near zero would have no relative accuracy to compare."""
    rows: Tensor = torch.randn(n, d, generator=g) + 0.5
    return rows


def _queries(shape: Shape, d: int, g: torch.Generator) -> Tensor:
    size = (int(shape["batch"]), int(shape["s_q"]), int(shape["heads"]), d)
    made: Tensor = torch.randn(size, generator=g) + 16.0 * d**-0.5
    return made


def _call(shape: Shape, rows: Sequence[Tensor], g: torch.Generator, q: Tensor | None = None,
          unused: int = 2) -> Args:
    """A call whose sequences hold `rows`, on shuffled pages; all that is unread is poisoned."""
    dv, page, kind = int(shape["head_dim_v"]), int(shape["page"]), str(shape["kv_dtype"])
    d, batch = dv + int(shape["rope"]), len(rows)
    q = _queries({**shape, "batch": batch}, d, g) if q is None else q
    need = [-(-len(r) // page) for r in rows]
    order = torch.randperm(sum(need) + unused, generator=g).int()
    width = fp8_row_bytes(dv, d - dv) if kind == "fp8" else d
    dtype = torch.uint8 if kind == "fp8" else as_dtype(kind)
    cache = poison(torch.empty(len(order), page, 1, width, dtype=dtype))
    table = poison(torch.empty(batch, max((-(-int(shape["ctx"]) // page), *need)),
                               dtype=torch.int32))
    used = 0
    for b, r in enumerate(rows):
        ids = order[used:used + need[b]]
        table[b, :need[b]] = ids
        slots = (ids.long()[:, None] * page + torch.arange(page)).flatten()[:len(r)]
        cache.view(-1, width)[slots] = pack_fp8(r, dv) if kind == "fp8" else r.to(dtype)
        used += need[b]
    lengths = torch.tensor([len(r) for r in rows], dtype=torch.int32)
    return (q.to(as_dtype(str(shape["dtype"]))), cache, table, lengths, dv, d**-0.5,
            bool(shape["causal"]))


def _of_lengths(shape: Shape, lengths: Sequence[int], seed: int) -> Args:
    g = torch.Generator().manual_seed(seed)
    d = int(shape["head_dim_v"]) + int(shape["rope"])
    return _call(shape, [_latents(n, d, g) for n in lengths], g)


def signature(shape: Shape) -> Args:
    """A call without data, on as many pages as its sequences need."""
    batch, s_q, heads, dv, rope, page = (int(shape[a]) for a in (
        "batch", "s_q", "heads", "head_dim_v", "rope", "page"))
    fp8, table = shape["kv_dtype"] == "fp8", -(-int(shape["ctx"]) // page)
    width = fp8_row_bytes(dv, rope) if fp8 else dv + rope
    return (blank(str(shape["dtype"]), batch, s_q, heads, dv + rope),
            blank("uint8" if fp8 else str(shape["kv_dtype"]), batch * table, page, 1, width),
            blank("int32", batch, table), blank("int32", batch), dv, (dv + rope)**-0.5,
            bool(shape["causal"]))


def inputs(shape: Shape, seed: int) -> Args:
    """Sequences that end within the last page of ctx."""
    ctx, page = int(shape["ctx"]), int(shape["page"])
    batch = int(shape["batch"])
    return _of_lengths(shape, [max(ctx - (7 * b + 3) % page, 0) for b in range(batch)], seed)


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """Ragged and empty sequences, page edges, huge scores, lengths and page ids out of range."""
    page = int(shape["page"])
    small: Shape = {**shape, "ctx": 2 * page}
    g = torch.Generator().manual_seed(seed)
    yield "ragged", _of_lengths(small, (3 * page + 5, 1, 171, 2, 40), seed)
    yield "page edges", _of_lengths(small, (page, page + 1, 0, 2 * page, 1), seed + 1)
    yield "all empty", _of_lengths(small, (0, 0), seed + 2)
    yield "no sequence", _of_lengths(small, (), seed + 3)
    d = int(shape["head_dim_v"]) + int(shape["rope"])
    axis = torch.randn(d, generator=g).sign()
    ramps = [torch.arange(1, n + 1)[:, None] / n * axis for n in (37, 5)]
    sign = _queries({**shape, "batch": 2}, d, g)[..., :1].sub(16.0 * d**-0.5).sign()
    yield "scores of 1e4", _call(small, ramps, g, sign * axis * (1e4 / d**0.5))
    args = _of_lengths(small, (page + 2, 2 * page), seed + 4)
    yield "no cache", (args[0], args[1][:0], *args[2:])
    q, cache, table, lengths, *rest = _of_lengths(small, (2 * page, 2 * page, 2 * page), seed + 5)
    cache = _call(small, [_latents(len(cache) * page, d, g)], g, unused=0)[1]
    table = table.clone()
    table[0] = torch.tensor([-5, 2_147_483_647])
    table[1, 0] = -2_147_483_648
    yield "page ids out of range", (q, cache, table, lengths, *rest)
    lengths = torch.tensor([2_147_483_647, 2 * page + 1, -3], dtype=torch.int32)
    yield "lengths out of range", (q, cache, table, lengths, *rest)


def work(shape: Shape) -> Work:
    """Two products with the cache; the cache is read once for all heads."""
    dv, rope, h, s_q = (int(shape[a]) for a in ("head_dim_v", "rope", "heads", "s_q"))
    batch, ctx = int(shape["batch"]), int(shape["ctx"])
    kind, size = str(shape["kv_dtype"]), as_dtype(str(shape["dtype"])).itemsize
    row = fp8_row_bytes(dv, rope) if kind == "fp8" else (dv + rope) * as_dtype(kind).itemsize
    rows = batch * s_q * h
    return Work(2 * rows * ctx * (2 * dv + rope),
                batch * ctx * row + rows * (size * (2 * dv + rope) + 4))


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """One new token per sequence."""
    kv = "float32" if model.act_dtype == "float32" else "bfloat16"
    return tuple({"heads": model.heads, "head_dim_v": model.kv_lora, "rope": model.rope,
                  "page": model.page, "s_q": 1, "dtype": model.act_dtype, "kv_dtype": kv,
                  "causal": True, "batch": b, "ctx": c} for b in load.batch for c in load.ctx)


def _odd(heads: int, dv: int, rope: int, page: int, s_q: int, dtype: str, kv_dtype: str,
         causal: bool = True) -> Shape:
    return {"heads": heads, "head_dim_v": dv, "rope": rope, "page": page, "s_q": s_q,
            "dtype": dtype, "kv_dtype": kv_dtype, "causal": causal, "batch": 3, "ctx": 2 * page + 6}


OP = Operator(
    name="mla_decode",
    static=("heads", "head_dim_v", "rope", "page", "s_q", "dtype", "kv_dtype", "causal"),
    dynamic=("batch", "ctx"),
    shape_of=shape_of, empty=empty, reference=reference, signature=signature, inputs=inputs,
    cases=cases, work=work,
    shapes=shapes,
    rtol={"float32": 2e-5, "bfloat16": 1e-2},
    odd_shapes=(_odd(4, 128, 32, 16, 1, "float32", "float32"),       # the tiny preset
                _odd(20, 128, 64, 64, 1, "bfloat16", "bfloat16"),
                _odd(16, 256, 0, 7, 3, "float32", "bfloat16"),
                _odd(1, 128, 32, 1, 1, "float32", "fp8"),
                _odd(3, 256, 64, 64, 3, "bfloat16", "fp8"),
                _odd(3, 128, 0, 16, 3, "float32", "float32", causal=False)),
)
