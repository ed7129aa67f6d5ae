"""Weights in another storage type, made once at load: plain torch, not tuned operators."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .ops.fp8 import AMAX_FLOOR
from .ops.int8 import int8_cast


def per_block_quant_int8(w: Tensor, block: tuple[int, int] = (128, 128)) -> tuple[Tensor, Tensor]:
    """Cast weights to int8 with one scale per block; (1, K) is one per output channel.

    Each value is kept within half a scale: |w - q * s| <= s / 2 (1 + 2^-16), with s = amax / 127 of
    its block.

    Args:
        w: [..., N, K] float32, bfloat16 or float16; blocks at the edges may be partial.
        block: rows and columns per scale.

    Returns:
        q [..., N, K] int8 and s [..., ceil(N / rows), ceil(K / columns)] float32.

    Raises:
        ValueError: a block has no rows or columns, or w no two axes.
    """
    block_n, block_k = block
    if w.ndim < 2 or block_n < 1 or block_k < 1:
        raise ValueError(f"per_block_quant_int8 needs w [..., N, K] and a block of at least (1, 1),"
                         f" got {list(w.shape)} and {block}")
    n, k = w.shape[-2:]
    blocks_n, blocks_k = -(-n // block_n), -(-k // block_k)
    padded = torch.nn.functional.pad(w.float(), (0, blocks_k * block_k - k,
                                                 0, blocks_n * block_n - n))
    tiles = padded.unflatten(-1, (blocks_k, block_k)).unflatten(-3, (blocks_n, block_n))
    q, s = int8_cast(tiles, AMAX_FLOOR, (-3, -1))
    return (q.flatten(-4, -3).flatten(-2)[..., :n, :k].contiguous(),
            s.squeeze(-1).squeeze(-2).contiguous())


def convert_fp8_weight(
        q: Tensor, scale: Tensor, block: tuple[int, int] = (128, 128),
        to: Literal["int8", "bf16"] = "int8",
        block_shape: tuple[int, int] | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """An FP8 weight for a device without FP8.

    With w = q * scale in float32 (exact but for one rounding, 2^-24 of w) and w' the result:

    - "bf16": |w - w'| <= 2^-8 |w|, and w' = w where the scale is a power of two: e4m3 has 4
      significant bits, bfloat16 8;
    - "int8": |w - w'| <= s' / 2 (1 + 2^-16), with s' the new scale, the largest |w| of its block
      over 127. A float format keeps small values better, an integer format large ones: e4m3's own
      rounding is up to |w| / 16, so above s' * 8 it is the larger of the two.

    Args:
        q: [..., N, K] float8_e4m3fn.
        scale: [..., ceil(N / rows), ceil(K / columns)] float32, as `per_block_quant_fp8` makes it.
        block: rows and columns per scale of q.
        to: "int8" or "bf16".
        block_shape: rows and columns per scale of an int8 result; None = (1, K), per channel.

    Returns:
        w' [..., N, K] bfloat16, or the pair of codes and scales that `gemm_nt` takes.

    Raises:
        ValueError, TypeError: `to` is unknown, q is not FP8, or the scales do not fit.
    """
    if q.dtype != torch.float8_e4m3fn or q.ndim < 2:
        raise TypeError(f"q must be float8_e4m3fn [..., N, K], got {q.dtype}{list(q.shape)}")
    n, k = q.shape[-2:]
    want = [*q.shape[:-2], -(-n // block[0]), -(-k // block[1])]
    if list(scale.shape) != want:
        raise ValueError(f"scales of q{list(q.shape)} in blocks {block} must be {want}, got "
                         f"{list(scale.shape)}")
    if to not in ("int8", "bf16"):
        raise ValueError(f"an FP8 weight becomes int8 or bf16, got {to!r}")
    full = scale.float().repeat_interleave(block[0], -2)[..., :n, :]
    w = q.float() * full.repeat_interleave(block[1], -1)[..., :k]
    if to == "bf16":
        return w.to(torch.bfloat16)
    return per_block_quant_int8(w, block_shape or (1, max(k, 1)))
