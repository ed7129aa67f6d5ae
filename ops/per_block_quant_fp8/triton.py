"""GPU lowering: a run of blocks a program; a block is read once if it fits the registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from .._triton.casts import cast, first, largest, scale_from
from .._triton.fp8 import codes
from ..fp8 import AMAX_FLOOR, scale_count
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import GridTarget

_HELD = 16384                        # elements of a block that the threads of a program can hold


@triton.jit
def _place(nb, kb, start, n, K: tl.constexpr, NB: tl.constexpr, KB: tl.constexpr,
           WIDE: tl.constexpr, CHUNK: tl.constexpr):
    """Row, column and existence of elements start .. start + CHUNK of blocks (nb, kb[:]).

    A block is padded to rows of WIDE columns, a power of two.
    """
    at = start + tl.arange(0, CHUNK)[None, :]
    i, j = at // WIDE, at % WIDE
    row = nb.to(tl.int64) * NB + i
    column = kb[:, None] * KB + j
    there = (row < n) & (i < NB) & (column < K)
    if KB != WIDE:
        there &= j < KB
    return row, column, there


@triton.jit(do_not_specialize=["n"])
def per_block_quant(w, q, s, n, w_n, eps, K: tl.constexpr, NB: tl.constexpr, KB: tl.constexpr,
                    AREA: tl.constexpr, WIDE: tl.constexpr, CHUNK: tl.constexpr,
                    BLOCKS: tl.constexpr, UE8M0: tl.constexpr, FP8: tl.constexpr):
    """q and s of BLOCKS neighbours along K; a block is AREA elements after padding.

    CHUNK < AREA reads the block twice, in chunks.
    """
    ALL: tl.constexpr = (K + KB - 1) // KB
    SPANS: tl.constexpr = (ALL + BLOCKS - 1) // BLOCKS
    nb = tl.program_id(0) // SPANS
    kb = tl.program_id(0) % SPANS * BLOCKS + tl.arange(0, BLOCKS)
    if CHUNK == AREA:
        row, column, there = _place(nb, kb, 0, n, K, NB, KB, WIDE, CHUNK)
        v = tl.load(w + row * w_n + column, mask=there, other=0.0).to(tl.float32)
        scale = scale_from(largest(v), eps, UE8M0, False)
        tl.store(q + row * K + column, cast(v, scale, UE8M0, False, FP8), mask=there)
    else:
        top = tl.zeros((BLOCKS,), tl.float32)
        for start in range(0, AREA, CHUNK):
            row, column, there = _place(nb, kb, start, n, K, NB, KB, WIDE, CHUNK)
            v = tl.load(w + row * w_n + column, mask=there, other=0.0).to(tl.float32)
            top = tl.maximum(top, largest(v), propagate_nan=tl.PropagateNan.ALL)
        scale = scale_from(top, eps, UE8M0, False)
        for start in range(0, AREA, CHUNK):
            row, column, there = _place(nb, kb, start, n, K, NB, KB, WIDE, CHUNK)
            v = tl.load(w + row * w_n + column, mask=there, other=0.0).to(tl.float32)
            tl.store(q + row * K + column, cast(v, scale, UE8M0, False, FP8), mask=there)
    tl.store(s + nb.to(tl.int64) * ALL + kb, scale, mask=kb < ALL)


def _area(shape: Shape) -> int:
    high, wide = int(shape["block_n"]), int(shape["block_k"])
    return int(triton.next_power_of_2(high) * triton.next_power_of_2(wide))


def space(target: GridTarget, shape: Shape) -> Space:
    """Blocks a program, elements of a block held at once, and warps; 32 values a thread."""
    area, held = _area(shape), min(_area(shape), _HELD)
    row = scale_count(int(shape["k"]), int(shape["block_k"]))
    blocks = min(max(4096 // held, 1), max(row & -row, 1))
    warps = min(max(blocks * held // (32 * target.warp_size), 1), 16)
    best = (blocks, held, warps)

    def valid(c: Config) -> bool:
        each = int(c["blocks"]) * int(c["chunk"]) // (int(c["warps"]) * target.warp_size)
        return (c["blocks"], c["chunk"], c["warps"]) == best or (
            8 <= each <= 64 and int(c["blocks"]) <= triton.next_power_of_2(row)
            and int(c["chunk"]) <= area)

    return Space({"warps": first(warps, 1, 2, 4, 8, 16), "blocks": first(blocks, 1, 2, 4, 8),
                  "chunk": first(held, area, 1024, 2048, 4096, 8192)}, valid)


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """w without dense rows is copied."""
    k, high, wide = int(shape["k"]), int(shape["block_n"]), int(shape["block_k"])
    blocks, spans = int(config["blocks"]), triton.cdiv(scale_count(k, wide), int(config["blocks"]))

    def run(w: Tensor, block_n: int, block_k: int, use_ue8m0: bool, *, out: Outputs) -> None:
        if not w.numel():
            return
        q, s = out
        w = w if w.stride(1) == 1 else w.contiguous()
        target.launch(per_block_quant, (scale_count(w.shape[0], high) * spans,), w,
                      codes(q, target.fp8), s, w.shape[0], w.stride(0), AMAX_FLOOR, K=k, NB=high,
                      KB=wide, AREA=_area(shape), WIDE=triton.next_power_of_2(wide),
                      CHUNK=int(config["chunk"]), BLOCKS=blocks, UE8M0=use_ue8m0, FP8=target.fp8,
                      num_warps=int(config["warps"]))

    return run
