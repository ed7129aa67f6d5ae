"""Kernels of the fused MoE: two GEMMs that gather by (token, slot) pair, and what stands between.

Rows of every scratch tensor are pairs, in their own order: only row tiles know of experts, and
rows of pairs whose expert is foreign are neither written nor read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton.casts import silu_mul
from .._triton.gemm import product, raster, store_tile, times_weights
from .._triton.int8 import quantised
from .._triton.moe import tile_expert, tile_rows
from .._triton.moe_gemm import product_casting


@triton.jit
def halves(acc, HALF: tl.constexpr, BLOCK_M: tl.constexpr, SWAP: tl.constexpr):
    """Gate and up, each [BLOCK_M, HALF] ([HALF, BLOCK_M] with SWAP), of a tile that holds both."""
    if SWAP:
        gate, up = tl.split(tl.permute(tl.reshape(acc, (2, HALF, BLOCK_M)), (1, 2, 0)))
    else:
        gate, up = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, HALF)), (0, 2, 1)))
    return gate, up


@triton.jit
def store_quantised(h, h_scale, pair, there, tile, v, INTER, groups, HALF: tl.constexpr,
                    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, KIND: tl.constexpr,
                    FP8: tl.constexpr):
    """Rows of v [BLOCK_M, HALF] as codes and one scale per GROUP columns; GROUP divides HALF."""
    COUNT: tl.constexpr = HALF // GROUP
    column = tile * HALF + tl.arange(0, HALF)
    v = tl.where((column < INTER)[None, :], v, 0.0)      # no part in the maximum
    v = tl.reshape(v, (BLOCK_M * COUNT, GROUP))
    codes, scale = quantised(v, KIND, FP8)
    code = tl.reshape(codes, (BLOCK_M, HALF))
    row = pair.to(tl.int64)
    tl.store(h + (row * INTER)[:, None] + column[None, :], code,
             mask=there[:, None] & (column < INTER)[None, :])
    group = tile * COUNT + tl.arange(0, COUNT)
    tl.store(h_scale + (row * groups)[:, None] + group[None, :],
             tl.reshape(scale, (BLOCK_M, COUNT)), mask=there[:, None] & (group < groups)[None, :])


@triton.jit(do_not_specialize=["pairs", "tiles", "table", "order", "part"])
def gemm_up(x, x_scale, w, w_scale, ids, plan, h, h_scale, pairs, tiles, table, order, INTER, K,
            groups, x_m, x_k, xs_m, w_e, w_n, w_k, ws_e, ws_n, ws_k, part,
            E: tl.constexpr, TOP_K: tl.constexpr, LED: tl.constexpr, SPLIT_K: tl.constexpr,
            GROUP_M: tl.constexpr, FUSED: tl.constexpr, GROUP: tl.constexpr,
            CAST: tl.constexpr, SCALE_N: tl.constexpr, SCALE_K: tl.constexpr, BLOCK_M: tl.constexpr,
            BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
            SWAP: tl.constexpr, A: tl.constexpr, B: tl.constexpr, DOT: tl.constexpr,
            SCALES: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr):
    """BLOCK_N / 2 columns of gate and of up for the tokens of one row tile.

    CAST: x is plain, and cast to the weights' codes on its way to the dot.
    FUSED: h[pair] = SwiGLU, quantised per GROUP columns unless GROUP is 0. Else h holds float32
    partial sums [splits, pairs, 2 * INTER], splits `part` elements apart.
    """
    HALF: tl.constexpr = BLOCK_N // 2
    tile_m, tile = raster(tl.program_id(0), tiles, tl.cdiv(INTER, HALF), GROUP_M)
    expert = tile_expert(ids, plan, table, tile_m, E, BLOCK_M, LED)
    if expert >= 0:
        pair, there = tile_rows(ids, plan, pairs, table, order, tile_m, expert, BLOCK_M, LED)
        token = (pair // TOP_K).to(tl.int64)
        # gate rows first, then up rows: in WGMMA's layout the halves stand in a thread's own
        # registers. Columns past INTER wrap around: read from inside w, and not stored.
        n = tl.arange(0, BLOCK_N)
        rows = ((tile * HALF + n % HALF) % INTER + n // HALF * INTER).to(tl.int64)
        of = expert.to(tl.int64)
        w_rows = of * w_e + rows * w_n
        w_scales = of * ws_e + rows // SCALE_N * ws_n
        split = tl.program_id(1)
        if SPLIT_K:
            first = split * SPLIT_K
            last = tl.minimum(first + SPLIT_K, K)
        else:
            first = 0
            last = K
        if CAST:
            acc = product_casting(x, token * x_m, there, x_k, w, w_rows, w_k, w_scale, w_scales,
                                  ws_k, first, last, K, SCALE_K, BLOCK_M, BLOCK_N, EVEN_K, SWAP,
                                  A, DOT, FP8)
        elif SWAP:
            acc = product(w, w_rows, None, w_k, w_scale, w_scales, ws_k,
                          x, token * x_m, there, x_k, x_scale, token * xs_m, 1, first, last, K,
                          SCALE_K, False, False, BLOCK_N, BLOCK_M, BLOCK_K, EVEN_K, B, A, DOT,
                          SCALES, FP8, PRECISION)
        else:
            acc = product(x, token * x_m, there, x_k, x_scale, token * xs_m, 1,
                          w, w_rows, None, w_k, w_scale, w_scales, ws_k, first, last, K,
                          SCALE_K, False, False, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, A, B, DOT,
                          SCALES, FP8, PRECISION)
        row = pair.to(tl.int64)
        gate, up = halves(acc, HALF, BLOCK_M, SWAP)
        if FUSED:
            v = silu_mul(gate, up)
            if GROUP:
                if SWAP:
                    v = tl.trans(v)
                store_quantised(h, h_scale, pair, there, tile, v, INTER, groups, HALF, GROUP,
                                BLOCK_M, A, FP8)
            else:
                store_tile(h, row * INTER, there, 1, tile, INTER, v, HALF, SWAP)
        else:
            to = h + split.to(tl.int64) * part
            store_tile(to, row * (2 * INTER), there, 1, tile, INTER, gate, HALF, SWAP)
            store_tile(to + INTER, row * (2 * INTER), there, 1, tile, INTER, up, HALF, SWAP)


@triton.jit(do_not_specialize=["part"])
def act(parts, ids, h, h_scale, INTER, groups, part, E: tl.constexpr, SPLITS: tl.constexpr,
        GROUP: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr, KIND: tl.constexpr,
        FP8: tl.constexpr):
    """SwiGLU of the sum of SPLITS partial sums, in a fixed order; COUNT groups of one pair.

    KIND: what h is stored as, "fp8" and "int8" with scales.
    """
    pair = tl.program_id(0).to(tl.int64)
    expert = tl.load(ids + pair)
    if (expert >= 0) & (expert < E):
        group = tl.program_id(1) * COUNT + tl.arange(0, COUNT)
        column = group[:, None] * GROUP + tl.arange(0, WIDTH)[None, :]
        mask = (tl.arange(0, WIDTH) < GROUP)[None, :] & (column < INTER)
        at = pair * (2 * INTER) + column         # int64
        gate = tl.zeros((COUNT, WIDTH), tl.float32)
        up = tl.zeros((COUNT, WIDTH), tl.float32)
        for split in tl.static_range(SPLITS):
            # offsets, not a pointer that moves: Triton 3.9's AMD passes never end on a chain of 8
            gate += tl.load(parts + (at + split * part), mask=mask, other=0.0)
            up += tl.load(parts + (at + split * part + INTER), mask=mask, other=0.0)
        v = silu_mul(gate, up)
        to = h + pair * INTER + column
        if KIND == "fp8" or KIND == "int8":
            codes, scale = quantised(v, KIND, FP8)
            tl.store(to, codes, mask=mask)
            tl.store(h_scale + pair * groups + group, scale, mask=group < groups)
        else:
            tl.store(to, v.to(h.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["pairs", "tiles", "table", "order"])
def gemm_down(h, h_scale, w, w_scale, ids, plan, y, pairs, tiles, table, order, N, INTER, groups,
              w_e, w_n, w_k, ws_e, ws_n, ws_k, E: tl.constexpr, LED: tl.constexpr,
              GROUP_M: tl.constexpr, SCALE_N: tl.constexpr, SCALE_K: tl.constexpr,
              BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
              EVEN_K: tl.constexpr, SWAP: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
              DOT: tl.constexpr, SCALES: tl.constexpr, FP8: tl.constexpr,
              PRECISION: tl.constexpr):
    """y[pair] = h[pair] @ w2[expert of the pair].T for one row tile and BLOCK_N columns."""
    tile_m, tile = raster(tl.program_id(0), tiles, tl.cdiv(N, BLOCK_N), GROUP_M)
    expert = tile_expert(ids, plan, table, tile_m, E, BLOCK_M, LED)
    if expert >= 0:
        pair, there = tile_rows(ids, plan, pairs, table, order, tile_m, expert, BLOCK_M, LED)
        row, of = pair.to(tl.int64), expert.to(tl.int64)
        acc = times_weights(h, row * INTER, there, 1, h_scale, row * groups, 1,
                            w + of * w_e, w_n, w_k,
                            w_scale + of * ws_e if w_scale is not None else w_scale,
                            ws_n, ws_k, tile, N, INTER, 0, INTER, SCALE_N, SCALE_K, BLOCK_M,
                            BLOCK_N, BLOCK_K, EVEN_K, SWAP, A, B, DOT, SCALES, FP8, PRECISION)
        store_tile(y, row * N, there, 1, tile, N, acc, BLOCK_N, SWAP)


@triton.jit(do_not_specialize=["tokens"])
def add_up(y, weights, ids, out, tokens, N, o_m, o_n, E: tl.constexpr, TOP_K: tl.constexpr,
           ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out[token] = sum of weight * y over the token's slots, in slot order."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = token < tokens
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for slot in tl.static_range(TOP_K):
        pair = token * TOP_K + slot
        expert = tl.load(ids + pair, mask=there, other=-1)
        ours = (expert >= 0) & (expert < E)
        weight = tl.load(weights + pair, mask=ours, other=0.0)
        value = tl.load(y + (pair * N)[:, None] + column[None, :],
                        mask=ours[:, None] & (column < N)[None, :], other=0.0)
        total += weight[:, None] * value.to(tl.float32)
    tl.store(out + (token * o_m)[:, None] + (column.to(tl.int64) * o_n)[None, :],
             total.to(out.dtype.element_ty), mask=there[:, None] & (column < N)[None, :])
