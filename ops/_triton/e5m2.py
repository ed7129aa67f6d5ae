"""float8_e5m2 codes in Triton kernels: in hardware where it is, else as integer bits.

The ways of fp8.py: in hardware where a device converts e4m3fn too ("native"), else as integer bits
("bits"), never through float16 (that would round twice); gfx942 lends the conversion to its own
kind (bias 16, one zero, NaN at 0x80: "fnuz").
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def encode_e5m2(x, FP8: tl.constexpr, CLAMP: tl.constexpr = True):
    """float32 -> e5m2 codes, to nearest even, saturating; NaN stays NaN (0x7f).

    Without CLAMP, |x| must be below 61440, the end of what rounds to 57344, or NaN.
    """
    if FP8 == "native":
        if CLAMP:
            x = tl.where(x == x, tl.minimum(tl.maximum(x, -57344.0), 57344.0), x)
        return x.to(tl.float8e5)
    elif FP8 == "fnuz":
        # its codes stand for half the value, without -0 and with another NaN
        half = x * 0.5
        if CLAMP:
            half = tl.minimum(tl.maximum(half, -28672.0), 28672.0)
        code = half.to(tl.float8e5b16).to(tl.uint8, bitcast=True)
        sign = (x.to(tl.uint32, bitcast=True) >> 24) & 0x80
        return tl.where(x == x, code | sign.to(tl.uint8), 0x7F).to(tl.uint8)
    else:
        bits = x.to(tl.uint32, bitcast=True)
        sign = (bits >> 24) & 0x80
        size = bits & 0x7FFFFFFF
        # normal: keep 2 mantissa bits, rebias 127 -> 15; the carry may move into the exponent
        odd = (size >> 21) & 1
        normal = (size + odd + 0xC80FFFFF) >> 21     # 0xfffff - (112 << 23), modulo 2^32
        # below 2^-14: adding 2^7 to a float32 rounds it to a multiple of 2^-16, in the last bits
        tiny = size.to(tl.float32, bitcast=True) + 128.0
        tiny = tiny.to(tl.uint32, bitcast=True) - 0x43000000
        code = tl.where(size < 0x38800000, tiny, normal)
        if CLAMP:
            code = tl.where(size > 0x47600000, 0x7B, code)
        code = tl.where(size > 0x7F800000, 0x7F, code)
        return (code | sign).to(tl.uint8)
