"""float32 to int8 codes in Triton kernels, bit for bit as ops/int8.py defines it."""

from __future__ import annotations

import triton
import triton.language as tl

from .casts import cast, largest, scale_from

INT8_MAX = tl.constexpr(127.0)
_LARGEST = tl.constexpr(3.4028234663852886e38)   # of float32: what is above is infinite or NaN
# 1.5 * 2^23: added to |x| < 2^22 it leaves the nearest integer, ties to even, in the last bits
_MAGIC, _MAGIC_BITS = tl.constexpr(12582912.0), tl.constexpr(0x4B400000)


@triton.jit
def int8_scale(amax, eps):
    """max(amax, eps) / 127, rounded once; NaN stays."""
    amax = tl.maximum(amax, tl.full((), eps, tl.float32), propagate_nan=tl.PropagateNan.ALL)
    return tl.div_rn(amax, tl.full(amax.shape, INT8_MAX, tl.float32))


@triton.jit
def int8_codes(v, scale):
    """The codes of v [groups, width] / scale [groups]; 0 where the scale is 0, infinite or NaN.

    IEEE division: the cheaper one of casts.py may be a float32 off, and so miss a tie.
    """
    ratio = tl.div_rn(v, tl.broadcast_to(scale[:, None], v.shape))
    ratio = tl.minimum(tl.maximum(ratio, -INT8_MAX), INT8_MAX)
    code = (ratio + _MAGIC).to(tl.int32, bitcast=True) - _MAGIC_BITS
    usable = (scale > 0.0) & (scale <= _LARGEST)
    return tl.where(usable[:, None], code, 0).to(tl.int8)


@triton.jit
def quantised(v, KIND: tl.constexpr, FP8: tl.constexpr):
    """Codes of kind "fp8" or "int8" of v [groups, width] and their scales, with eps 1e-10."""
    if KIND == "int8":
        scale = int8_scale(largest(v), 1e-10)
        return int8_codes(v, scale), scale
    else:
        scale = scale_from(largest(v), 1e-10, False, False)
        return cast(v, scale, False, False, FP8), scale
