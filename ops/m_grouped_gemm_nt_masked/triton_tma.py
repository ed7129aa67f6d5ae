"""The form of the masked grouped GEMM that loads by tensor descriptors."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton.gemm import raster
from .._triton.gemm_tma import tile_tma


@triton.jit(do_not_specialize=["M", "windows", "as_e", "as_m", "as_k"])
def masked_gemm_tma(a, a_scale, b, b_scale, masked_m, out, M, N, K, windows, a_e, a_m, as_e, as_m,
                    as_k, b_e, b_n, bs_e, bs_n, bs_k, o_e, o_m, o_n, GROUP_M: tl.constexpr,
                    SCALE_N: tl.constexpr, SCALE_K: tl.constexpr, BLOCK_M: tl.constexpr,
                    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
                    SWAP: tl.constexpr, A: tl.constexpr, B: tl.constexpr, DOT: tl.constexpr,
                    SCALES: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr,
                    WS: tl.constexpr, STORE: tl.constexpr):
    """One column tile of an expert's row tiles at, at + windows, ..."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    at, pn = raster(tl.program_id(0) % (windows * tiles_n), windows, tiles_n, GROUP_M)
    e = (tl.program_id(0) // (windows * tiles_n)).to(tl.int64)
    rows = tl.minimum(tl.load(masked_m + e), M)
    for pm in range(at, tl.cdiv(tl.maximum(rows, 0), BLOCK_M), windows):
        row = tl.full((), pm * BLOCK_M, tl.int64)
        tile_tma(a + e * a_e + row * a_m, tl.minimum(rows - pm * BLOCK_M, BLOCK_M), a_m,
                 a_scale + e * as_e if a_scale is not None else a_scale,
                 (row + tl.arange(0, BLOCK_M)) * as_m, as_k, b + e * b_e, b_n,
                 b_scale + e * bs_e if b_scale is not None else b_scale, bs_n, bs_k,
                 out + e * o_e + row * o_m, o_m, o_n, pn, N, K, 0, K, SCALE_N, SCALE_K, BLOCK_M,
                 BLOCK_N, BLOCK_K, SWAP, A, B, DOT, SCALES, FP8, PRECISION, WS, STORE)
