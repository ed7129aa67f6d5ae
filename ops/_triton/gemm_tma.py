"""The inner product of gemm.py with operands loaded by tensor descriptors (TMA): sm_90 and up.

Descriptors are made on the device: for warp specialisation on sm_90 nothing else compiles
(docs/facts.md). With WS the loads have a warp of their own; Triton takes that from num_warps=4
programs alone and ignores it elsewhere, without a word.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .gemm import operand, scaled, store_tile


def descriptors_take(*tensors: Tensor) -> bool:
    """Whether TMA reads these tensors: rows unit-strided, all else on 16 bytes."""
    return all(x.stride(-1) == 1 and x.data_ptr() % 16 == 0
               and all(s * x.element_size() % 16 == 0 for s in x.stride()[:-1]) for x in tensors)


@triton.jit
def scaled_tile(part, a_scale, a_at, there, b_scale, b_at, ONE: tl.constexpr, SWAP: tl.constexpr,
                A: tl.constexpr, B: tl.constexpr, DOT: tl.constexpr, FP8: tl.constexpr):
    """A product of codes in either order, times the scales at these offsets."""
    if SWAP:
        return scaled(part, b_scale, b_at, None, a_scale, a_at, there, ONE, False, B, A, DOT, FP8)
    else:
        return scaled(part, a_scale, a_at, there, b_scale, b_at, None, False, ONE, A, B, DOT, FP8)


@triton.jit
def tile_tma(a, count, a_m, a_scale, a_scales, as_k, b, b_n, b_scale, bs_n, bs_k, out, o_m, o_n,
             tile, N, K, first, last, SCALE_N: tl.constexpr, SCALE_K: tl.constexpr,
             BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
             SWAP: tl.constexpr, A: tl.constexpr, B: tl.constexpr, DOT: tl.constexpr,
             SCALES: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr, WS: tl.constexpr,
             STORE: tl.constexpr):
    """`count` <= BLOCK_M rows at a, times column tile `tile` of b [N, K], to the rows at out.

    a and out point to the tile's first row, b to its expert, a_scales [BLOCK_M] are offsets of
    the rows' scales. The descriptors end after `count` rows: others are neither read nor written.
    SCALES is "none", "tile" or "late". STORE: out takes a descriptor too; stores by pointers cost
    the warp-specialised form 160 bytes of spills.
    """
    there = tl.arange(0, BLOCK_M) < count
    ad = tl.make_tensor_descriptor(a, [count, K], [a_m, 1], [BLOCK_M, BLOCK_K])
    bd = tl.make_tensor_descriptor(b, [N, K], [b_n, 1], [BLOCK_N, BLOCK_K])
    column = tile * BLOCK_N
    ONE: tl.constexpr = SCALE_N % BLOCK_N == 0
    columns = column if ONE else (column + tl.arange(0, BLOCK_N)) % N
    b_scales = (columns // SCALE_N).to(tl.int64) * bs_n
    ROWS: tl.constexpr = BLOCK_N if SWAP else BLOCK_M
    SUMS: tl.constexpr = tl.int32 if DOT == "int8" and SCALES == "late" else tl.float32
    acc = tl.zeros((ROWS, BLOCK_M + BLOCK_N - ROWS), SUMS)
    for at in tl.range(first, last, BLOCK_K, warp_specialize=WS):
        av = operand(ad.load([0, at]), A, DOT, FP8)
        bv = operand(bd.load([column, at]), B, DOT, FP8)
        if SCALES == "tile":
            block = at // SCALE_K
            part = tl.dot(bv if SWAP else av, av.T if SWAP else bv.T, input_precision=PRECISION)
            acc += scaled_tile(part, a_scale, a_scales + block * as_k, there, b_scale,
                               b_scales + block * bs_k, ONE, SWAP, A, B, DOT, FP8)
        else:
            acc = tl.dot(bv if SWAP else av, av.T if SWAP else bv.T, acc,
                         input_precision=PRECISION, out_dtype=SUMS)
    if SCALES == "late":
        total = scaled_tile(acc, a_scale, a_scales, there, b_scale, b_scales, ONE, SWAP, A, B, DOT,
                            FP8)
    else:
        total = acc
    if STORE:
        od = tl.make_tensor_descriptor(out, [count, N], [o_m, 1], [BLOCK_M, BLOCK_N])
        value = total.to(out.dtype.element_ty)
        od.store([0, column], value.T if SWAP else value)
    else:
        store_tile(out, tl.arange(0, BLOCK_M).to(tl.int64) * o_m, there, o_n, tile, N, total,
                   BLOCK_N, SWAP)
