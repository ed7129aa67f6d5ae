"""The inner product that all matrix kernels share: one float32 tile of x @ y.T, operands scaled.

How to call it. `times_weights` multiplies gathered rows with one tile of one expert's weights:

    acc = times_weights(a, a_rows, a_there, a_k, a_scale, a_scales, as_k,
                        b, b_n, b_k, b_scale, bs_n, bs_k, tile, N, K, first, last,
                        SCALE_N, SCALE_K, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, SWAP,
                        A, B, DOT, SCALES, FP8, PRECISION)
    # float32 [BLOCK_M, BLOCK_N]; with SWAP b @ a.T, [BLOCK_N, BLOCK_M]
    store_tile(out, o_rows, a_there, o_n, tile, N, acc, BLOCK_N, SWAP)

a, b          pointers, made by `held(tensor, target.fp8)`; b at its expert's start
a_rows        int64 [BLOCK_M]: offset of each row's element 0, so rows may be gathered
a_there       bool [BLOCK_M]: rows that are read; the others count as zero: never store them
a_k, b_k      strides along K: plain ints, so that 1 becomes a constant
a_scale       float32 pointer (None for plain tensors); a_scales: int64 [BLOCK_M] offsets of each
              row's scale 0; as_k: stride of the scales along K
b_n           stride of b's rows; b_scale at its expert's start, bs_n and bs_k its strides
tile          columns tile * BLOCK_N ... of the output
first, last   the part of [0, K) to sum: first a multiple of BLOCK_K; 0 and K for all of it
SCALE_N, _K   rows and columns of b that one scale covers (block_n, block_k)
EVEN_K        K % BLOCK_K == 0 (and of a split's part): no mask code is made
SWAP          weights stand on the matrix unit's M side: keeps WGMMA at BLOCK_M 16 and 32
A ... PRECISION   `**modes(target, a.dtype, b.dtype, out_dtype, block_k, BLOCK_K, precision, K)`
o_rows        int64 [BLOCK_M]: offset of each output row; o_n: stride along N

`product` below is the same for any two operands (see its parameters).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..space import Config
from .fp8 import codes, decode, to_fnuz
from .gemm_space import fits_int32, options

if TYPE_CHECKING:
    from ...targets.base import GridTarget

KINDS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16",
         torch.float8_e4m3fn: "fp8", torch.int8: "int8"}
Modes = dict[str, str | bool]


def modes(target: GridTarget, a: torch.dtype, b: torch.dtype, out: torch.dtype, scale_k: int,
          block_k: int, precision: str, k: int) -> Modes:
    """A, B, DOT, SCALES, FP8 and PRECISION of a kernel for operands of these dtypes.

    SCALES "tile": one scale per row and K tile, applied to the tile's product in float32 (the
    two-level accumulation of DeepSeek-V3, section 3.3.2). "element": K tiles cut scale blocks, so
    the scales are applied before the dot, which is then a float32 one. "late": int8 with one scale
    for all of K, applied once to the sum; two int8 operands are summed in int32, without error.
    FP8 pairs are multiplied as FP8 where the device does, but for float32 results: Hopper's FP8
    matrix unit keeps 14 bits of a sum (same section). "f16" holds e4m3 and int8 exactly, "bf16"
    too: codes meet plain numbers of 16 bits in their dtype.
    """
    kinds = KINDS[a], KINDS[b]
    aligned = scale_k % block_k == 0
    if "int8" in kinds and scale_k >= k:
        scales = "late" if fits_int32(k) else "tile"
    elif "fp8" in kinds or "int8" in kinds:
        scales = "tile" if aligned else "element"
    else:
        scales = "none"
    if "f32" in kinds or scales == "element":
        dot = "f32"
    elif kinds == ("fp8", "fp8"):
        fp8 = target.fp8 != "bits" and out == torch.bfloat16 and block_k >= 32
        dot = "fp8" if fp8 else "f16"
    elif kinds == ("int8", "int8"):
        dot = "int8"
    else:
        dot = "f16" if "f16" in kinds else "bf16"
    return {"A": kinds[0], "B": kinds[1], "DOT": dot, "SCALES": scales, "FP8": target.fp8,
            "PRECISION": precision}


def held(x: Tensor, fp8: str) -> Tensor:
    """An operand as a kernel of a device with that `fp8` takes it."""
    return codes(x, fp8) if KINDS[x.dtype] == "fp8" else x


def constants(target: GridTarget, config: Config, a: Tensor, b: Tensor, out: torch.dtype,
              scale_n: int, scale_k: int) -> dict[str, Any]:
    """What a kernel around `times_weights` is compiled for, and its launch options."""
    block_k = int(config["block_k"])
    return {"SCALE_N": scale_n, "SCALE_K": scale_k, "BLOCK_M": int(config["block_m"]),
            "BLOCK_N": int(config["block_n"]), "BLOCK_K": block_k,
            "EVEN_K": a.shape[-1] % block_k == 0, "SWAP": bool(config["swap"]),
            "GROUP_M": int(config["group_m"]),
            **modes(target, a.dtype, b.dtype, out, scale_k, block_k, str(config["precision"]),
                    a.shape[-1]),
            **options(config)}


def scale_strides(scale: Tensor | None, axes: int) -> tuple[int, ...]:
    """Strides of a scale tensor; zeros where there is none."""
    return (0,) * axes if scale is None else scale.stride()


@triton.jit
def halved(code):
    """e4m3fn bytes -> float16 of 2^-8 times the value: the same bits under another bias; exact."""
    bits = code.to(tl.uint16)
    size = bits & 0x7F
    half = tl.where(size == 0x7F, 0x7E00, size << 7) | ((bits & 0x80) << 8)
    return half.to(tl.uint16).to(tl.float16, bitcast=True)


@triton.jit
def operand(tile, KIND: tl.constexpr, DOT: tl.constexpr, FP8: tl.constexpr):
    """A loaded tile as tl.dot takes it: exact, up to the power of two of `exponent`."""
    if KIND != "fp8":
        if DOT == "f32":
            return tile.to(tl.float32)
        elif KIND == "int8" and DOT == "bf16":
            return tile.to(tl.bfloat16)
        elif KIND == "int8" and DOT == "f16":
            return tile.to(tl.float16)
        else:
            return tile
    elif DOT == "fp8":
        if FP8 == "native":
            return tile
        else:
            return to_fnuz(tile)
    elif DOT == "f16":
        if FP8 == "native":
            return tile.to(tl.float16)
        else:
            return halved(tile)
    elif DOT == "bf16":
        if FP8 == "native":
            return tile.to(tl.bfloat16)
        else:
            return decode(tile, FP8).to(tl.bfloat16)
    else:
        return decode(tile, FP8)


@triton.jit
def lost(DOT: tl.constexpr, FP8: tl.constexpr):
    """What the products of `operand` must be multiplied by."""
    if DOT == "fp8" and FP8 == "fnuz":
        return 4.0
    elif DOT == "f16" and FP8 != "native":
        return 65536.0
    else:
        return 1.0


@triton.jit
def scale_of_codes(scale, KIND: tl.constexpr, DOT: tl.constexpr, FP8: tl.constexpr):
    """The scale of codes that are multiplied with plain numbers."""
    if KIND == "fp8" and DOT == "f16":
        if FP8 != "native":
            return scale * 256.0
        else:
            return scale
    else:
        return scale


@triton.jit
def tile_scale(scale, offsets, there, ONE: tl.constexpr):
    """The scale of every row at one K tile: a scalar, or a vector."""
    if ONE or there is None:
        return tl.load(scale + offsets)
    else:
        return tl.load(scale + offsets, mask=there, other=0.0)


@triton.jit
def scaled(part, x_scale, x_scales, x_there, y_scale, y_scales, y_there, X_ONE: tl.constexpr,
           Y_ONE: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, DOT: tl.constexpr,
           FP8: tl.constexpr):
    """A product of codes times the scales at these offsets, in float32."""
    X_CODES: tl.constexpr = X == "fp8" or X == "int8"
    Y_CODES: tl.constexpr = Y == "fp8" or Y == "int8"
    part = part.to(tl.float32)
    if X_CODES:
        sx = tile_scale(x_scale, x_scales, x_there, X_ONE)
    if Y_CODES:
        sy = tile_scale(y_scale, y_scales, y_there, Y_ONE)
    if X_CODES and Y_CODES:                      # one multiply-add of the tile where possible
        if X_ONE and Y_ONE:
            return part * (sx * lost(DOT, FP8) * sy)
        elif X_ONE:
            return part * (sy * lost(DOT, FP8) * sx)[None, :]
        elif Y_ONE:
            return part * (sx * lost(DOT, FP8) * sy)[:, None]
        else:
            return part * (sx * lost(DOT, FP8))[:, None] * sy[None, :]
    elif X_CODES:
        sx = scale_of_codes(sx, X, DOT, FP8)
        return part * (sx if X_ONE else sx[:, None])
    else:
        sy = scale_of_codes(sy, Y, DOT, FP8)
        return part * (sy if Y_ONE else sy[None, :])


@triton.jit
def load_tile(at, seen, inside, EVEN_K: tl.constexpr):
    """A tile, zero where its rows are not seen (None: all are) and outside K."""
    if seen is None:
        if EVEN_K:
            return tl.load(at)
        else:
            return tl.load(at, mask=inside, other=0.0)
    elif EVEN_K:
        return tl.load(at, mask=seen, other=0.0)
    else:
        return tl.load(at, mask=seen & inside, other=0.0)


@triton.jit
def product(x, x_rows, x_there, x_k, x_scale, x_scales, x_scale_k,
            y, y_rows, y_there, y_k, y_scale, y_scales, y_scale_k, first, last, K,
            SCALE_K: tl.constexpr, X_ONE: tl.constexpr, Y_ONE: tl.constexpr,
            BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_K: tl.constexpr,
            EVEN_K: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, DOT: tl.constexpr,
            SCALES: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr):
    """float32 [BLOCK_X, BLOCK_Y]: the sum over k in [first, last) of x[i, k] * y[j, k].

    x stands on the matrix unit's M side, y on its N side. *_there None: all rows are read.
    *_ONE: *_scales is one offset, the tile's rows share their scales; else an offset for each row.
    """
    k = tl.arange(0, BLOCK_K)
    xp = x + x_rows[:, None] + (first + k).to(tl.int64)[None, :] * x_k
    yp = y + y_rows[None, :] + (first + k).to(tl.int64)[:, None] * y_k
    x_seen = None if x_there is None else x_there[:, None]
    y_seen = None if y_there is None else y_there[None, :]
    SUMS: tl.constexpr = tl.int32 if DOT == "int8" and SCALES == "late" else tl.float32
    acc = tl.zeros((BLOCK_X, BLOCK_Y), SUMS)
    for at in range(first, last, BLOCK_K):
        inside = k < K - at
        xv = load_tile(xp, x_seen, inside[None, :], EVEN_K)
        yv = load_tile(yp, y_seen, inside[:, None], EVEN_K)
        xo = operand(xv, X, DOT, FP8)
        yo = operand(yv, Y, DOT, FP8)
        if SCALES == "element":
            block = ((at + k) // SCALE_K).to(tl.int64)
            if X == "fp8" or X == "int8":
                at_x = x_scale + (x_scales if X_ONE else x_scales[:, None])
                xo *= load_tile(at_x + (block * x_scale_k)[None, :], None if X_ONE else x_seen,
                                inside[None, :], EVEN_K)
            if Y == "fp8" or Y == "int8":
                at_y = y_scale + (y_scales if Y_ONE else y_scales[None, :])
                yo *= load_tile(at_y + (block * y_scale_k)[:, None], None if Y_ONE else y_seen,
                                inside[:, None], EVEN_K)
            acc = tl.dot(xo, yo, acc, input_precision=PRECISION)
        elif SCALES == "tile":
            block = at // SCALE_K
            part = tl.dot(xo, yo, input_precision=PRECISION)
            acc += scaled(part, x_scale, x_scales + block * x_scale_k, x_there, y_scale,
                          y_scales + block * y_scale_k, y_there, X_ONE, Y_ONE, X, Y, DOT, FP8)
        else:
            acc = tl.dot(xo, yo, acc, input_precision=PRECISION, out_dtype=SUMS)
        xp += BLOCK_K * x_k
        yp += BLOCK_K * y_k
    if SCALES == "late":
        return scaled(acc, x_scale, x_scales, x_there, y_scale, y_scales, y_there, X_ONE, Y_ONE, X,
                      Y, DOT, FP8)
    else:
        return acc


@triton.jit
def times_weights(a, a_rows, a_there, a_k, a_scale, a_scales, as_k,
                  b, b_n, b_k, b_scale, bs_n, bs_k, tile, N, K, first, last,
                  SCALE_N: tl.constexpr, SCALE_K: tl.constexpr, BLOCK_M: tl.constexpr,
                  BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
                  SWAP: tl.constexpr, A: tl.constexpr, B: tl.constexpr, DOT: tl.constexpr,
                  SCALES: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr):
    """Rows of a times one tile of b [N, K]: float32 [BLOCK_M, BLOCK_N], turned with SWAP."""
    # columns past N wrap around: they are read from inside b, and not stored
    rows = ((tile * BLOCK_N + tl.arange(0, BLOCK_N)) % N).to(tl.int64)
    b_rows = rows * b_n
    ONE: tl.constexpr = SCALE_N % BLOCK_N == 0
    b_scales = ((tile * BLOCK_N).to(tl.int64) if ONE else rows) // SCALE_N * bs_n
    if SWAP:
        return product(b, b_rows, None, b_k, b_scale, b_scales, bs_k,
                       a, a_rows, a_there, a_k, a_scale, a_scales, as_k, first, last, K,
                       SCALE_K, ONE, False, BLOCK_N, BLOCK_M, BLOCK_K, EVEN_K, B, A, DOT, SCALES,
                       FP8, PRECISION)
    else:
        return product(a, a_rows, a_there, a_k, a_scale, a_scales, as_k,
                       b, b_rows, None, b_k, b_scale, b_scales, bs_k, first, last, K,
                       SCALE_K, False, ONE, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, A, B, DOT, SCALES,
                       FP8, PRECISION)


@triton.jit
def store_tile(out, o_rows, there, o_n, tile, N, acc, BLOCK_N: tl.constexpr, SWAP: tl.constexpr):
    """Write the rows that are there and the columns inside N."""
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    at = columns.to(tl.int64) * o_n
    value = acc.to(out.dtype.element_ty)
    if SWAP:
        tl.store(out + o_rows[None, :] + at[:, None], value,
                 mask=there[None, :] & (columns < N)[:, None])
    else:
        tl.store(out + o_rows[:, None] + at[None, :], value,
                 mask=there[:, None] & (columns < N)[None, :])


@triton.jit
def raster(pid, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Program -> (row tile, column tile): GROUP_M row tiles share the weights that L2 holds."""
    group = pid // (GROUP_M * tiles_n)
    size = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    inside = pid % (GROUP_M * tiles_n)
    return group * GROUP_M + inside % size, inside // size
