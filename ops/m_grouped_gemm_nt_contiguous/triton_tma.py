"""The form of the contiguous grouped GEMM that loads by tensor descriptors."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton.gemm import raster
from .._triton.gemm_tma import tile_tma
from .triton import runs_of


@triton.jit(do_not_specialize=["M"])
def list_runs(m_indices, runs, M, E, BLOCK_M: tl.constexpr):
    """Of one window: runs [windows, 3 BLOCK_M + 1] = number of runs; (expert, first, end) each.

    Warp specialisation takes no reduction inside its loops (docs/facts.md), so they are done here.
    """
    window = tl.program_id(0)
    inside = tl.arange(0, BLOCK_M)
    rows = window * BLOCK_M + inside
    experts, run_of = runs_of(m_indices, window, M, E, BLOCK_M)
    before = tl.load(m_indices + rows - 1, mask=(inside > 0) & (rows < M), other=-1)
    after = tl.load(m_indices + rows + 1, mask=(inside < BLOCK_M - 1) & (rows < M - 1), other=-1)
    to = runs + window.to(tl.int64) * (3 * BLOCK_M + 1)
    tl.store(to, tl.max(run_of, 0))
    entry = to + 3 * run_of - 2
    tl.store(entry, experts, mask=(experts >= 0) & (experts != before))
    tl.store(entry + 1, rows, mask=(experts >= 0) & (experts != before))
    tl.store(entry + 2, rows + 1, mask=(experts >= 0) & (experts != after))


@triton.jit(do_not_specialize=["M", "as_m", "as_k"])
def grouped_gemm_tma(a, a_scale, b, b_scale, runs, out, M, N, K, a_m, as_m, as_k, b_e,
                     b_n, bs_e, bs_n, bs_k, o_m, o_n, LANES: tl.constexpr, GROUP_M: tl.constexpr,
                     SCALE_N: tl.constexpr, SCALE_K: tl.constexpr, BLOCK_M: tl.constexpr,
                     BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
                     SWAP: tl.constexpr, A: tl.constexpr, B: tl.constexpr, DOT: tl.constexpr,
                     SCALES: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr,
                     WS: tl.constexpr, STORE: tl.constexpr):
    """One column tile of the runs lane, lane + LANES ... of one window."""
    at, pn = raster(tl.program_id(0), tl.cdiv(M, BLOCK_M) * LANES, tl.cdiv(N, BLOCK_N), GROUP_M)
    of = runs + (at // LANES).to(tl.int64) * (3 * BLOCK_M + 1)
    for run in range(at % LANES, tl.load(of), LANES):
        e = tl.load(of + 1 + 3 * run).to(tl.int64)
        row = tl.load(of + 2 + 3 * run).to(tl.int64)
        count = tl.load(of + 3 + 3 * run) - row.to(tl.int32)
        tile_tma(a + row * a_m, count, a_m, a_scale, (row + tl.arange(0, BLOCK_M)) * as_m, as_k,
                 b + e * b_e, b_n, b_scale + e * bs_e if b_scale is not None else b_scale, bs_n,
                 bs_k,
                 out + row * o_m, o_m, o_n, pn, N, K, 0, K, SCALE_N, SCALE_K, BLOCK_M, BLOCK_N,
                 BLOCK_K, SWAP, A, B, DOT, SCALES, FP8, PRECISION, WS, STORE)
