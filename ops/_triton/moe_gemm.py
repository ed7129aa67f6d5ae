"""The inner product of w8a8 for few rows: activations are cast on their way to the dot."""

from __future__ import annotations

import triton
import triton.language as tl

from .gemm import lost, operand
from .int8 import quantised


@triton.jit
def product_casting(x, x_rows, x_there, x_k, w, w_rows, w_k, w_scale, w_scales, ws_k, first, last,
                    K, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                    EVEN_K: tl.constexpr, SWAP: tl.constexpr, KIND: tl.constexpr,
                    DOT: tl.constexpr, FP8: tl.constexpr):
    """As `product` of gemm.py on x cast by per_token_group_quant_*; a K tile is one group.

    Every program casts its rows again: for a tile of 16 rows that is arithmetic in the shadow of
    the weights' loads, and saves a launch. w_rows, w_scales: int64 [BLOCK_N].
    """
    k = tl.arange(0, GROUP)
    xp = x + x_rows[:, None] + (first + k).to(tl.int64)[None, :] * x_k
    if SWAP:
        wp = w + w_rows[:, None] + (first + k).to(tl.int64)[None, :] * w_k
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        wp = w + w_rows[None, :] + (first + k).to(tl.int64)[:, None] * w_k
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for at in range(first, last, GROUP):
        if EVEN_K:
            xv = tl.load(xp, mask=x_there[:, None], other=0.0)
            wv = tl.load(wp)
        else:
            inside = k < K - at
            xv = tl.load(xp, mask=x_there[:, None] & inside[None, :], other=0.0)
            wv = tl.load(wp, mask=inside[None, :] if SWAP else inside[:, None], other=0.0)
        codes, scale = quantised(xv.to(tl.float32), KIND, FP8)
        xo = operand(codes, KIND, DOT, FP8)
        wo = operand(wv, KIND, DOT, FP8)
        sw = tl.load(w_scale + w_scales + at // GROUP * ws_k) * lost(DOT, FP8)
        if SWAP:
            acc += tl.dot(wo, tl.trans(xo)).to(tl.float32) * sw[:, None] * scale[None, :]
        else:
            acc += tl.dot(xo, wo).to(tl.float32) * scale[:, None] * sw[None, :]
        xp += GROUP * x_k
        wp += GROUP * w_k
    return acc
