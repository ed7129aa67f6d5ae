"""Public latent attention: decode on the paged cache, varlen prefill, cache append."""

from __future__ import annotations

from torch import Tensor

from .custom_ops import custom_op, custom_op_in_place

_decode = custom_op(
    "mla_decode",
    "(Tensor q, Tensor kv_cache, Tensor block_table, Tensor cache_seqlens, int head_dim_v, "
    "float softmax_scale, bool causal) -> (Tensor, Tensor)")
_prefill = custom_op(
    "mla_prefill",
    "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
    "float softmax_scale, bool causal) -> (Tensor, Tensor)")
_append = custom_op_in_place(
    "mla_kv_append",
    "(Tensor kv_a, Tensor norm_weight, Tensor cos_sin, Tensor positions, Tensor(a!) kv_cache, "
    "Tensor slot_mapping, float eps) -> ()", ("kv_cache",))


def mla_decode(q: Tensor, kv_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor,
               head_dim_v: int = 512, softmax_scale: float | None = None,
               causal: bool = True) -> tuple[Tensor, Tensor]:
    """Attend new tokens to the paged latent cache, absorbed form (as FlashMLA's decode).

    Args:
        q: [B, s_q, H, Dv + rope] float32 or bfloat16, W_UK already absorbed.
        kv_cache: [pages, page, 1, Dv + rope] float32 or bfloat16, or uint8 [pages, page, 1, bytes]
            in FlashMLA's FP8 layout (Dv e4m3 bytes, a float32 scale per 128, rope in bfloat16).
        block_table: [B, max_pages] int32; entries past a sequence's pages are never followed.
        cache_seqlens: [B] int32 tokens in the cache, the new ones included.
        head_dim_v: Dv, the latent's width.
        softmax_scale: by default (Dv + rope) ** -0.5; models pass their own.
        causal: query i of s_q sees the keys up to cache_seqlens - s_q + i.

    Returns:
        out [B, s_q, H, Dv] in q's dtype and lse [B, H, s_q] float32 (natural logarithm). A query
        that sees no key gives 0 and -inf.
    """
    out, lse = _decode(q, kv_cache, block_table, cache_seqlens, head_dim_v,
                       q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale, causal)
    return out, lse


def mla_prefill(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
                softmax_scale: float | None = None,
                causal: bool = True) -> tuple[Tensor, Tensor]:
    """Attention over several sequences of different lengths, expanded form.

    Args:
        q: [Tq, H, D] float32 or bfloat16, sequences one after another.
        k: [Tk, H, D] and v: [Tk, H, Dv] likewise.
        cu_seqlens_q, cu_seqlens_k: [B + 1] int32 prefix sums of the lengths.
        softmax_scale: by default D ** -0.5.
        causal: the mask is aligned to the end, so that a chunk of queries sees all earlier keys.

    Returns:
        out [Tq, H, Dv] in q's dtype and lse [H, Tq] float32 (natural logarithm).
    """
    out, lse = _prefill(q, k, v, cu_seqlens_q, cu_seqlens_k,
                        q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale, causal)
    return out, lse


def mla_kv_append(kv_a: Tensor, norm_weight: Tensor, cos_sin: Tensor, positions: Tensor,
                  kv_cache: Tensor, slot_mapping: Tensor, eps: float = 1e-6) -> None:
    """Write new tokens into the latent cache: RMSNorm of the latent, interleaved RoPE of the key.

    Args:
        kv_a: [T, Dv + rope] float32 or bfloat16, the output of kv_a_proj_with_mqa.
        norm_weight: [Dv], kv_a_layernorm's weight.
        cos_sin: [positions, rope] float32, the cosines first.
        positions: [T] int32 or int64.
        kv_cache: as in `mla_decode`; written in place.
        slot_mapping: [T] int64, page * page_size + offset; a negative slot is skipped.
        eps: of the RMSNorm.
    """
    _append(kv_a, norm_weight, cos_sin, positions, kv_cache, slot_mapping, eps)
