"""GPU lowering: some tokens a program, one pass: normalise, rotate, cast, write into the pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton.casts import cast, largest, scale_from
from .._triton.fp8 import codes
from ..fp8 import AMAX_FLOOR
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape
from . import GROUP

if TYPE_CHECKING:
    from ...targets.base import GridTarget


@triton.jit(do_not_specialize=["tokens", "slots", "positions"])
def mla_kv_append(kv_a, norm_weight, cos_sin, position, kv, scales, keys, slot_mapping, tokens,
                  slots, positions, kv_row,
                  EPS: tl.constexpr, DV: tl.constexpr,
                  WIDTH: tl.constexpr, ROPE: tl.constexpr, PAIRS: tl.constexpr,
                  GROUPS: tl.constexpr, FP8: tl.constexpr, FLOOR: tl.constexpr,
                  TILE: tl.constexpr):
    """TILE tokens of kv_a [tokens, Dv + rope], whose rows stand kv_row apart.

    The sum of squares, its root and the rotation are float64, as the definition says. GROUPS is 0
    for a float cache, else how many scales a token has; scales and keys see the cache's bytes as
    float32 and bfloat16.
    """
    token = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    slot = tl.load(slot_mapping + token, mask=token < tokens, other=-1)
    kept = (slot >= 0) & (slot < slots)
    column = tl.arange(0, WIDTH)
    there = kept[:, None] & (column < DV)[None, :]
    x = tl.load(kv_a + (token * kv_row)[:, None] + column[None, :], mask=there, other=0.0)
    x = x.to(tl.float32)
    wide = x.to(tl.float64)
    mean = tl.sum(wide * wide, 1) / DV + tl.full((), EPS, tl.float64)
    inverse = (1.0 / tl.sqrt(mean)).to(tl.float32)
    weight = tl.load(norm_weight + column, mask=column < DV, other=0.0).to(tl.float32)
    y = x * inverse[:, None] * weight[None, :]
    if GROUPS == 0:
        tl.store(kv + (slot * (DV + ROPE))[:, None] + column[None, :], y.to(kv.dtype.element_ty),
                 mask=there)
    else:
        ROW: tl.constexpr = DV + 4 * GROUPS + 2 * ROPE
        grouped = tl.reshape(y, (TILE * (WIDTH // 128), 128))
        scale = scale_from(largest(grouped), FLOOR, False, False)
        code = cast(grouped, scale, False, False, FP8)
        tl.store(kv + (slot * ROW)[:, None] + column[None, :], tl.reshape(code, (TILE, WIDTH)),
                 mask=there)
        group = tl.arange(0, WIDTH // 128)
        tl.store(scales + (slot * (ROW // 4) + DV // 4)[:, None] + group[None, :],
                 tl.reshape(scale, (TILE, WIDTH // 128)),
                 mask=kept[:, None] & (group < GROUPS)[None, :])
    if ROPE > 0:
        at = tl.load(position + token, mask=kept, other=0).to(tl.int64)
        at = tl.minimum(tl.maximum(at, 0), positions - 1)
        pair = tl.arange(0, PAIRS)
        turned = kept[:, None] & (pair < ROPE // 2)[None, :]
        key = kv_a + (token * kv_row + DV)[:, None] + 2 * pair[None, :]
        x0 = tl.load(key, mask=turned, other=0.0).to(tl.float32).to(tl.float64)
        x1 = tl.load(key + 1, mask=turned, other=0.0).to(tl.float32).to(tl.float64)
        angle = cos_sin + (at * ROPE)[:, None] + pair[None, :]
        cos = tl.load(angle, mask=turned, other=0.0).to(tl.float64)
        sin = tl.load(angle + ROPE // 2, mask=turned, other=0.0).to(tl.float64)
        y0 = (x0 * cos - x1 * sin).to(tl.float32)
        y1 = (x0 * sin + x1 * cos).to(tl.float32)
        KEYS: tl.constexpr = DV + ROPE if GROUPS == 0 else DV // 2 + 2 * GROUPS + ROPE
        to = keys + (slot * KEYS + (KEYS - ROPE))[:, None] + 2 * pair[None, :]
        tl.store(to, y0.to(keys.dtype.element_ty), mask=turned)
        tl.store(to + 1, y1.to(keys.dtype.element_ty), mask=turned)


def space(target: GridTarget, shape: Shape) -> Space:
    """Tokens a program, and its warps: 1 to 64 latents a thread."""
    width = triton.next_power_of_2(int(shape["kv_lora"]))
    few = int(shape["tokens"]) < 4 * target.cores
    first = 1 if few else 4
    warps = 4 if width >= 4 * target.warp_size else 1
    return Space({"tile": (first, *(t for t in (1, 2, 4, 8, 16) if t != first)),
                  "warps": (warps, *(w for w in (1, 2, 4, 8) if w != warps))},
                 lambda c: (c["tile"], c["warps"]) == (first, warps) or (
                     target.warp_size <= int(c["tile"]) * width // int(c["warps"])
                     <= 64 * target.warp_size))


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """Views of the cache's bytes; a kv_a whose columns do not stand together is copied."""
    dv, rope, tile = int(shape["kv_lora"]), int(shape["rope"]), int(config["tile"])
    fp8 = shape["cache"] == "uint8"

    def run(kv_a: Tensor, norm_weight: Tensor, cos_sin: Tensor, positions: Tensor,
            kv_cache: Tensor, slot_mapping: Tensor, eps: float, *, out: Outputs) -> None:
        tokens, slots = kv_a.shape[0], kv_cache.shape[0] * kv_cache.shape[1]
        if not tokens or not slots:
            return
        if kv_a.stride(1) != 1:
            kv_a = kv_a.contiguous()
        kv = scales = keys = kv_cache
        if fp8:
            kv = codes(kv_cache.view(torch.float8_e4m3fn), target.fp8)
            scales, keys = kv_cache.view(torch.float32), kv_cache.view(torch.bfloat16)
        target.launch(mla_kv_append, (triton.cdiv(tokens, tile),), kv_a, norm_weight.contiguous(),
                      cos_sin.contiguous(), positions.contiguous(), kv, scales, keys,
                      slot_mapping.contiguous(), tokens, slots, cos_sin.shape[0], kv_a.stride(0),
                      EPS=eps, DV=dv, WIDTH=triton.next_power_of_2(dv), ROPE=rope,
                      PAIRS=max(1, triton.next_power_of_2(rope // 2)),
                      GROUPS=dv // GROUP if fp8 else 0, FP8=target.fp8, FLOOR=AMAX_FLOOR, TILE=tile,
                      num_warps=int(config["warps"]))

    return run
