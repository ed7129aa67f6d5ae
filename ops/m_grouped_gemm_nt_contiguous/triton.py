"""GPU lowering: windows of rows; a program takes one run of rows, of one expert, in its window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton.gemm import (
    constants,
    held,
    raster,
    scale_strides,
    store_tile,
    times_weights,
)
from .._triton.gemm_space import gemm_of, gemm_space
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import GridTarget


@triton.jit
def runs_of(m_indices, window, M, E, BLOCK_M: tl.constexpr):
    """Of BLOCK_M rows: their experts (-1: none), and the number of each row's run, from 1.

    A run is a longest piece of rows of one expert inside the window; so the scheduling needs no
    pass of its own, no scratch, and no word from the host, whatever the runs' lengths are.
    """
    inside = tl.arange(0, BLOCK_M)
    rows = window * BLOCK_M + inside
    expert = tl.load(m_indices + rows, mask=rows < M, other=-1)
    before = tl.load(m_indices + rows - 1, mask=(inside > 0) & (rows < M), other=-1)
    expert = tl.where((expert >= 0) & (expert < E), expert, -1)
    starts = (expert >= 0) & (expert != before)
    return expert, tl.cumsum(starts.to(tl.int32), 0)


@triton.jit(do_not_specialize=["M", "as_m", "as_k"])
def grouped_gemm(a, a_scale, b, b_scale, m_indices, out, M, N, K, E, a_m, a_k, as_m, as_k,
                 b_e, b_n, b_k, bs_e, bs_n, bs_k, o_m, o_n, LANES: tl.constexpr,
                 GROUP_M: tl.constexpr, SCALE_N: tl.constexpr, SCALE_K: tl.constexpr,
                 BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                 EVEN_K: tl.constexpr, SWAP: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
                 DOT: tl.constexpr, SCALES: tl.constexpr, FP8: tl.constexpr,
                 PRECISION: tl.constexpr):
    """One column tile of the runs lane, lane + LANES ... of one window."""
    at, pn = raster(tl.program_id(0), tl.cdiv(M, BLOCK_M) * LANES, tl.cdiv(N, BLOCK_N), GROUP_M)
    window, lane = at // LANES, at % LANES
    experts, run_of = runs_of(m_indices, window, M, E, BLOCK_M)
    rows = (window * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    for run in range(lane + 1, tl.max(run_of, 0) + 1, LANES):
        there = (experts >= 0) & (run_of == run)
        e = tl.max(tl.where(there, experts, 0), 0).to(tl.int64)
        acc = times_weights(a, rows * a_m, there, a_k, a_scale, rows * as_m, as_k, b + e * b_e,
                            b_n, b_k,
                            b_scale + e * bs_e if b_scale is not None else b_scale, bs_n, bs_k,
                            pn, N, K, 0, K, SCALE_N, SCALE_K, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K,
                            SWAP, A, B, DOT, SCALES, FP8, PRECISION)
        store_tile(out, rows * o_m, there, o_n, pn, N, acc, BLOCK_N, SWAP)


def space(target: GridTarget, shape: Shape) -> Space:
    """Tiles for the rows of an expert, and how many of a window's runs stand side by side."""
    tokens = int(shape["tokens"])
    rows = -(-tokens // max(int(shape["e"]), 1))
    made = gemm_space(target, gemm_of(shape, rows, tokens, tma=True))
    runs = min(tokens, int(made.default()["block_m"])) // rows if tokens else 1
    lanes = min(triton.next_power_of_2(max(runs, 1)), 16)
    more = tuple(n for n in (1, 2, 4, 8, 16) if lanes // 2 <= n <= 2 * lanes)
    return Space({**made.knobs, "lanes": tuple(dict.fromkeys((lanes, *more)))}, made.where)


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """Rows of no expert are not read, and their output is left alone."""
    e, n, k = (int(shape[axis]) for axis in ("e", "n", "k"))
    block_m, block_n, lanes = (int(config[c]) for c in ("block_m", "block_n", "lanes"))
    if config["form"] != "pointer":
        from .._triton.gemm_tma import descriptors_take
        from .triton_tma import grouped_gemm_tma, list_runs

    def run(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None,
            m_indices: Tensor, scale_n: int, scale_k: int, out_dtype: torch.dtype, *,
            out: Outputs) -> None:
        c, m = out[0], a.shape[0]
        if not c.numel() or not e:
            return
        windows = triton.cdiv(m, block_m)
        grid = (windows * lanes * triton.cdiv(n, block_n),)
        given = {"LANES": lanes,
                 **constants(target, config, a, b, out_dtype, scale_n, scale_k)}
        operands = held(a, target.fp8), a_scale, held(b, target.fp8), b_scale
        indices = m_indices.contiguous()
        a_s, b_s = scale_strides(a_scale, 2), scale_strides(b_scale, 3)
        if config["form"] != "pointer" and descriptors_take(a, b):
            runs = torch.empty((windows, 3 * block_m + 1), dtype=torch.int32, device=a.device)
            target.launch(list_runs, (windows,), indices, runs, m, e, BLOCK_M=block_m, num_warps=4)
            target.launch(grouped_gemm_tma, grid, *operands, runs, c, m, n, k, a.stride(0), *a_s,
                          *b.stride()[:2], *b_s, *c.stride(), WS=config["form"] == "tma_ws",
                          STORE=descriptors_take(c), **given)
        else:
            target.launch(grouped_gemm, grid, *operands, indices, c, m, n, k, e, *a.stride(), *a_s,
                          *b.stride(), *b_s, *c.stride(), **given)

    return run
