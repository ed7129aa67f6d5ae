"""The form of the dense GEMM that loads by tensor descriptors."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton.gemm import raster
from .._triton.gemm_tma import tile_tma


@triton.jit(do_not_specialize=["M", "as_m", "as_k", "o_s"])
def gemm_tma(a, a_scale, b, b_scale, out, M, N, K, a_m, as_m, as_k, b_n, bs_n, bs_k, o_s, o_m,
             o_n, SPLIT_K: tl.constexpr, GROUP_M: tl.constexpr, SCALE_N: tl.constexpr,
             SCALE_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
             BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, SWAP: tl.constexpr, A: tl.constexpr,
             B: tl.constexpr, DOT: tl.constexpr, SCALES: tl.constexpr, FP8: tl.constexpr,
             PRECISION: tl.constexpr, WS: tl.constexpr, STORE: tl.constexpr):
    """One tile of the output, over SPLIT_K columns of K (0: all)."""
    pm, pn = raster(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    row = (pm * BLOCK_M).to(tl.int64)
    count = tl.minimum(M - pm * BLOCK_M, BLOCK_M)
    a_scales = (row + tl.arange(0, BLOCK_M)) * as_m
    split = tl.program_id(1)
    if SPLIT_K:
        first = split * SPLIT_K
        last = tl.minimum(first + SPLIT_K, K)
    else:
        first = 0
        last = K
    tile_tma(a + row * a_m, count, a_m, a_scale, a_scales, as_k, b, b_n, b_scale, bs_n, bs_k,
             out + split.to(tl.int64) * o_s + row * o_m, o_m, o_n, pn, N, K, first, last, SCALE_N,
             SCALE_K, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, A, B, DOT, SCALES, FP8, PRECISION, WS, STORE)
