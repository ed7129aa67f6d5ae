"""Public routing and fused experts."""

from __future__ import annotations

import torch
from torch import Tensor

from .custom_ops import custom_op

_route = custom_op(
    "moe_route",
    "(Tensor logits, Tensor? bias, int top_k, str scoring, int n_group, int topk_group, "
    "str group_score, bool norm_topk_prob, float routed_scaling_factor) -> (Tensor, Tensor)")
_fused_moe = custom_op(
    "fused_moe",
    "(Tensor hidden, Tensor w1, Tensor w2, Tensor topk_weights, Tensor topk_ids, "
    "Tensor? w1_scale, Tensor? w2_scale, int block_n, int block_k, bool w8a8) -> Tensor")


def moe_route(logits: Tensor, top_k: int, bias: Tensor | None = None, scoring: str = "softmax",
              n_group: int = 1, topk_group: int = 1, group_score: str = "max",
              norm_topk_prob: bool = False,
              routed_scaling_factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Choose experts: the routing of DeepSeek-V2 (softmax) and V3 (sigmoid with bias).

    Args:
        logits: [T, E] float32.
        top_k: experts per token.
        bias: [E] float32, added to the scores to select, never to weigh (V3's
            e_score_correction_bias).
        scoring: "softmax" over all experts, or "sigmoid".
        n_group, topk_group: experts stand in n_group groups, of which the best topk_group are kept.
        group_score: a group is worth its best expert ("max", V2) or its best two ("top2_sum", V3).
        norm_topk_prob: make the chosen weights sum to one.
        routed_scaling_factor: what the weights are multiplied with.

    Returns:
        topk_weights [T, top_k] float32 and topk_ids [T, top_k] int32, best first; equal scores go
        to the lower expert id.

    Raises:
        ValueError: an option is unknown, or sizes do not fit (E % n_group, top_k > E ...).
    """
    weights, ids = _route(logits, bias, top_k, scoring, n_group, topk_group, group_score,
                          norm_topk_prob, routed_scaling_factor)
    return weights, ids


def fused_moe(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor,
              w1_scale: Tensor | None = None, w2_scale: Tensor | None = None,
              block_shape: tuple[int, int] = (128, 128), use_fp8_w8a8: bool = False,
              use_int8_w8a8: bool = False, per_channel_quant: bool = False) -> Tensor:
    """All routed experts of a MoE layer: gather, GEMM 1, SwiGLU, GEMM 2, weighted sum.

    Args:
        hidden: [T, K] float32 or bfloat16.
        w1: [E, 2I, K] float32, bfloat16, e4m3fn or int8; the gate is the first I rows.
        w2: [E, K, I] like w1.
        topk_weights: [T, top_k] float32.
        topk_ids: [T, top_k] int32; an id outside 0 .. E-1 contributes nothing (another rank's).
        w1_scale: [E, ceil(2I / block_n), ceil(K / block_k)] float32 for e4m3fn and int8 weights.
        w2_scale: [E, ceil(K / block_n), ceil(I / block_k)] float32 for e4m3fn and int8 weights.
        block_shape: (block_n, block_k), rows and columns per scale.
        use_fp8_w8a8: also cast the activations to FP8 per token and block_k columns; otherwise
            FP8 is the weights' storage only.
        use_int8_w8a8: the same for int8 weights.
        per_channel_quant: one scale for each row of the weights, [E, 2I, 1] and [E, K, 1], and for
            each token: block_shape is (1, the whole row).

    Returns:
        [T, K] in hidden's dtype.

    Raises:
        ValueError, TypeError: shapes or dtypes do not fit together; the message says which.
    """
    for name, wanted, codes in (("use_fp8_w8a8", use_fp8_w8a8, torch.float8_e4m3fn),
                                ("use_int8_w8a8", use_int8_w8a8, torch.int8)):
        if wanted and w1.dtype != codes:
            raise TypeError(f"{name} needs {codes} weights, got {w1.dtype}")
    if per_channel_quant:
        block_shape = 1, max(w1.shape[-1], w2.shape[-1], 1)
    out = _fused_moe(hidden, w1, w2, topk_weights, topk_ids, w1_scale, w2_scale, *block_shape,
                     use_fp8_w8a8 or use_int8_w8a8)
    assert isinstance(out, Tensor)
    return out
