"""What a user of torch alone would call instead, on the same data."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.spec import Args, Shape

Peers = dict[str, Callable[[], object]]


def peers(op: str, shape: Shape, args: Args) -> Peers:
    """Callables by name; empty where torch has no equivalent."""
    makers: dict[str, Callable[..., Peers]] = {
        "per_token_group_quant_fp8": _group_quant, "silu_mul_quant_fp8": _silu_quant,
        "gemm_nt": _gemm, "m_grouped_gemm_nt_contiguous": _grouped, "fused_moe": _moe,
        "m_grouped_gemm_nt_masked": _masked, "mla_decode": _decode, "mla_prefill": _prefill}
    make = makers.get(op)
    return make(*args) if make is not None else {}


def _cast(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    v = x.float().unflatten(-1, (-1, group))
    s = v.abs().amax(-1, keepdim=True).clamp_min(1e-10) / 448.0
    return (v / s).clamp(-448, 448).to(torch.float8_e4m3fn).flatten(-2), s[..., 0]


def _group_quant(x: Tensor, group: int, *rest: object) -> Peers:
    compiled = torch.compile(_cast)
    return {"torch.compile": lambda: compiled(x, group), "torch eager": lambda: _cast(x, group)}


def _silu_quant(x: Tensor, group: int, *rest: object) -> Peers:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = x.float().chunk(2, -1)
        return _cast(F.silu(gate) * up, group)

    compiled = torch.compile(both)
    return {"torch.compile": lambda: compiled(x), "torch eager": lambda: both(x)}


def _gemm(a: Tensor, a_s: Tensor | None, b: Tensor, b_s: Tensor | None, *rest: object) -> Peers:
    wide_a, wide_b = a.bfloat16(), b.bfloat16()
    found: Peers = {"torch bf16 matmul": lambda: wide_a @ wide_b.T}
    if a_s is not None and b_s is not None:
        one = torch.ones((), device=a.device)
        rows, columns = (torch.ones(n, 1, device=a.device) for n in (a.shape[0], b.shape[0]))
        block_a = a_s.t().contiguous().t()
        found |= {
            "torch._scaled_mm, one scale": lambda: torch._scaled_mm(
                a, b.T, one, one, out_dtype=torch.bfloat16),
            "torch._scaled_mm, row scales": lambda: torch._scaled_mm(
                a, b.T, rows, columns.T, out_dtype=torch.bfloat16),
            "torch._scaled_mm, block scales": lambda: torch._scaled_mm(
                a, b.T, block_a, b_s.T, out_dtype=torch.bfloat16)}
    return found


def _grouped(a: Tensor, a_s: Tensor | None, b: Tensor, b_s: Tensor | None, indices: Tensor,
             *rest: object) -> Peers:
    wide_a, wide_b = a.bfloat16(), b.bfloat16().transpose(1, 2)
    ends = torch.bincount(indices.clamp_min(0), minlength=b.shape[0]).cumsum(0).int()
    return {"torch._grouped_mm bf16": lambda: torch._grouped_mm(wide_a, wide_b, offs=ends)}


def _masked(a: Tensor, a_s: Tensor | None, b: Tensor, b_s: Tensor | None, *rest: object) -> Peers:
    wide_a, wide_b = a.float().nan_to_num().bfloat16(), b.bfloat16().transpose(1, 2)
    return {"torch bmm bf16, all rows": lambda: torch.bmm(wide_a, wide_b)}


def _moe(hidden: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor,
         *rest: object) -> Peers:
    """bfloat16 experts by torch._grouped_mm: sort, two grouped products, add."""
    up, down = w1.bfloat16().transpose(1, 2), w2.bfloat16().transpose(1, 2)
    experts, top_k = w1.shape[0], ids.shape[1]

    def run() -> Tensor:
        order = ids.flatten().argsort(stable=True)
        ends = torch.bincount(ids.flatten(), minlength=experts).cumsum(0).int()
        gate, value = torch._grouped_mm(hidden[order // top_k], up, offs=ends).chunk(2, -1)
        out = torch._grouped_mm(F.silu(gate) * value, down, offs=ends)
        out *= weights.flatten()[order, None].to(out.dtype)
        return torch.zeros_like(hidden).index_add_(0, order // top_k, out)

    return {"torch._grouped_mm bf16": run}


def _decode(q: Tensor, cache: Tensor, table: Tensor, lengths: Tensor, dv: int, scale: float,
            causal: bool) -> Peers:
    """Gather the pages, then absorbed attention as SDPA with one key head."""
    if cache.dtype == torch.uint8:
        return {}
    cache, page = cache.nan_to_num(), cache.shape[1]     # a mask does not keep NaN out of a product
    most = int(lengths.max())

    def run() -> Tensor:
        rows = cache[table[:, :-(-most // page)].long()].flatten(1, 2)[:, :most, 0]
        keep = torch.arange(most, device=q.device) < lengths[:, None]
        keys = rows[:, None].expand(-1, q.shape[2], -1, -1)
        return F.scaled_dot_product_attention(
            q.transpose(1, 2), keys, keys[..., :dv], keep[:, None, None], scale=scale)

    return {"torch SDPA on gathered pages": run, "the same, torch.compile": torch.compile(run)}


def _prefill(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, scale: float,
             causal: bool) -> Peers:
    query, key, value = (x.transpose(0, 1)[None] for x in (q, k, v))
    padded = F.pad(value, (0, q.shape[2] - v.shape[2]))
    return {
        "torch SDPA": lambda: F.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=scale),
        "torch SDPA, v padded to d_qk": lambda: F.scaled_dot_product_attention(
            query, key, padded, is_causal=causal, scale=scale)[..., :v.shape[2]]}
