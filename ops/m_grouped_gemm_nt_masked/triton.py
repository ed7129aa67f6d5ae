"""GPU lowering: tiles of every expert's rows; those past masked_m end at once."""

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


@triton.jit(do_not_specialize=["M", "windows", "as_e", "as_m", "as_k"])
def masked_gemm(a, a_scale, b, b_scale, masked_m, out, M, N, K, windows, a_e, a_m, a_k, as_e,
                as_m, as_k, b_e, b_n, b_k, bs_e, bs_n, bs_k, o_e, o_m, o_n,
                GROUP_M: tl.constexpr, SCALE_N: tl.constexpr, SCALE_K: tl.constexpr,
                BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                EVEN_K: tl.constexpr, SWAP: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
                DOT: tl.constexpr, SCALES: tl.constexpr, FP8: tl.constexpr,
                PRECISION: tl.constexpr):
    """One column tile of an expert's row tiles at, at + windows, ..."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    at, pn = raster(tl.program_id(0) % (windows * tiles_n), windows, tiles_n, GROUP_M)
    e = (tl.program_id(0) // (windows * tiles_n)).to(tl.int64)
    count = tl.minimum(tl.load(masked_m + e), M)
    for pm in range(at, tl.cdiv(tl.maximum(count, 0), BLOCK_M), windows):
        rows = pm * BLOCK_M + tl.arange(0, BLOCK_M)
        there = rows < count
        rows = rows.to(tl.int64)
        acc = times_weights(a + e * a_e, rows * a_m, there, a_k,
                            a_scale + e * as_e if a_scale is not None else a_scale, rows * as_m,
                            as_k, b + e * b_e, b_n, b_k,
                            b_scale + e * bs_e if b_scale is not None else b_scale, bs_n, bs_k,
                            pn, N, K, 0, K, SCALE_N, SCALE_K, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K,
                            SWAP, A, B, DOT, SCALES, FP8, PRECISION)
        store_tile(out + e * o_e, rows * o_m, there, o_n, pn, N, acc, BLOCK_N, SWAP)


def windows_of(expected: int | None, m_max: int, block_m: int) -> int:
    """Row tiles of an expert that get programs of their own: those of twice the expected rows.

    A hint: the programs of an expert with more rows take several tiles each.
    """
    rows = m_max if expected is None else min(max(2 * expected, 1), m_max)
    return -(-rows // block_m)


def space(target: GridTarget, shape: Shape) -> Space:
    """Tiles for the expected rows."""
    rows = int(shape["expected_m"])
    return gemm_space(target, gemm_of(shape, rows, 2 * rows, tma=True))


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """Rows past masked_m are neither read nor written."""
    n, k = int(shape["n"]), int(shape["k"])
    block_m, block_n = int(config["block_m"]), int(config["block_n"])
    if config["form"] != "pointer":
        from .._triton.gemm_tma import descriptors_take
        from .triton_tma import masked_gemm_tma

    def run(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None,
            masked_m: Tensor, expected_m: int | None, scale_n: int, scale_k: int,
            out_dtype: torch.dtype, *, out: Outputs) -> None:
        c, m = out[0], a.shape[1]
        if not c.numel():
            return
        windows = windows_of(expected_m, m, block_m)
        grid = (b.shape[0] * windows * triton.cdiv(n, block_n),)
        given = constants(target, config, a, b, out_dtype, scale_n, scale_k)
        operands = (held(a, target.fp8), a_scale, held(b, target.fp8), b_scale,
                    masked_m.contiguous(), c, m, n, k, windows)
        a_s, b_s = scale_strides(a_scale, 3), scale_strides(b_scale, 3)
        if config["form"] != "pointer" and descriptors_take(a, b):
            target.launch(masked_gemm_tma, grid, *operands, *a.stride()[:2], *a_s,
                          *b.stride()[:2], *b_s, *c.stride(), WS=config["form"] == "tma_ws",
                          STORE=descriptors_take(c), **given)
        else:
            target.launch(masked_gemm, grid, *operands, *a.stride(), *a_s, *b.stride(), *b_s,
                          *c.stride(), **given)

    return run
