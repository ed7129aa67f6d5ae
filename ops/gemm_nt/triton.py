"""GPU lowering: tiles of the output, K split over programs where there are few of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton.gemm import constants, held, raster, scale_strides, store_tile, times_weights
from .._triton.gemm_space import gemm_of, gemm_space
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import GridTarget


@triton.jit(do_not_specialize=["M", "as_m", "as_k", "o_s"])
def gemm(a, a_scale, b, b_scale, out, M, N, K, a_m, a_k, as_m, as_k, b_n, b_k, bs_n, bs_k,
         o_s, o_m, o_n, SPLIT_K: tl.constexpr, GROUP_M: tl.constexpr, SCALE_N: tl.constexpr,
         SCALE_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
         BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, SWAP: tl.constexpr, A: tl.constexpr,
         B: tl.constexpr, DOT: tl.constexpr, SCALES: tl.constexpr, FP8: tl.constexpr,
         PRECISION: tl.constexpr):
    """One tile of the output, over SPLIT_K columns of K (0: all)."""
    pm, pn = raster(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    rows = pm * BLOCK_M + tl.arange(0, BLOCK_M)
    there = rows < M
    rows = rows.to(tl.int64)
    split = tl.program_id(1)
    if SPLIT_K:
        first = split * SPLIT_K
        last = tl.minimum(first + SPLIT_K, K)
    else:
        first = 0
        last = K
    acc = times_weights(a, rows * a_m, there, a_k, a_scale, rows * as_m, as_k, b, b_n, b_k,
                        b_scale, bs_n, bs_k, pn, N, K, first, last, SCALE_N, SCALE_K, BLOCK_M,
                        BLOCK_N, BLOCK_K, EVEN_K, SWAP, A, B, DOT, SCALES, FP8, PRECISION)
    store_tile(out + split.to(tl.int64) * o_s, rows * o_m, there, o_n, pn, N, acc, BLOCK_N, SWAP)


@triton.jit(do_not_specialize=["M"])
def add_splits(parts, out, M, N, o_m, o_n, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """out = the sum of parts [SPLITS, M, N] in a fixed order."""
    size = M.to(tl.int64) * N
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts + split * size + at, mask=at < size, other=0.0)
    tl.store(out + at // N * o_m + at % N * o_n, total.to(out.dtype.element_ty), mask=at < size)


def space(target: GridTarget, shape: Shape) -> Space:
    """Tiles, operand order and splits; the order of choices follows the rows and the device."""
    tokens = int(shape["tokens"])
    return gemm_space(target, gemm_of(shape, tokens, tokens, tma=True, split=True))


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """Partial sums of a split K stand in a scratch tensor of the call."""
    n, k = int(shape["n"]), int(shape["k"])
    block_m, block_n, block_k = (int(config[b]) for b in ("block_m", "block_n", "block_k"))
    if config["form"] != "pointer":
        from .._triton.gemm_tma import descriptors_take
        from .triton_tma import gemm_tma
    part = triton.cdiv(k, block_k * int(config["splits"])) * block_k
    splits = triton.cdiv(k, part) if k else 1

    def run(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, scale_n: int,
            scale_k: int, out_dtype: torch.dtype, *, out: Outputs) -> None:
        c, m = out[0], a.shape[0]
        if not c.numel():
            return
        to = c if splits == 1 else torch.empty((splits, m, n), dtype=torch.float32,
                                               device=a.device)
        grid = triton.cdiv(m, block_m) * triton.cdiv(n, block_n), splits
        given = {"SPLIT_K": part if splits > 1 else 0,
                 **constants(target, config, a, b, out_dtype, scale_n, scale_k)}
        operands = held(a, target.fp8), a_scale, held(b, target.fp8), b_scale, to, m, n, k
        a_s, b_s = scale_strides(a_scale, 2), scale_strides(b_scale, 2)
        o_s = m * n, *to.stride()[-2:]
        if config["form"] != "pointer" and descriptors_take(a, b):
            target.launch(gemm_tma, grid, *operands, a.stride(0), *a_s, b.stride(0), *b_s, *o_s,
                          WS=config["form"] == "tma_ws",
                          STORE=descriptors_take(to), **given)
        else:
            target.launch(gemm, grid, *operands, *a.stride(), *a_s, *b.stride(), *b_s, *o_s,
                          **given)
        if splits > 1:
            target.launch(add_splits, (triton.cdiv(m * n, 1024),), to, c, m, n, *c.stride(),
                          SPLITS=splits, BLOCK=1024, num_warps=4)

    return run
