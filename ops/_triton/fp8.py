"""e4m3fn in Triton kernels: in hardware where it is, else as integer bits; bit for bit the same.

Kernels see FP8 tensors through `codes`: float8_e4m3fn where the device converts it ("native"), else
bytes. sm_80 and gfx90a have no e4m3 at all, so `encode` and `decode` work on bits there ("bits");
gfx942 has another kind (bias 8, one zero, NaN at 0x80) and lends its conversion ("fnuz").
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

E4M3_MAX = tl.constexpr(448.0)


def codes(x: Tensor, fp8: str) -> Tensor:
    """An e4m3fn tensor as a kernel of a device with that `fp8` takes it."""
    return x if fp8 == "native" else x.view(torch.uint8)


@triton.jit
def encode(x, FP8: tl.constexpr, CLAMP: tl.constexpr = True):
    """float32 -> e4m3fn codes, to nearest even, saturating; NaN stays NaN (0x7f).

    Without CLAMP, |x| must be below 464, the end of what rounds to 448, or NaN.
    """
    if FP8 == "native":
        if CLAMP:
            x = tl.where(x == x, tl.minimum(tl.maximum(x, -448.0), 448.0), x)
        return x.to(tl.float8e4nv)
    elif FP8 == "fnuz":
        # its codes stand for half the value, without -0 and with another NaN
        half = x * 0.5
        if CLAMP:
            half = tl.minimum(tl.maximum(half, -224.0), 224.0)
        code = half.to(tl.float8e4b8).to(tl.uint8, bitcast=True)
        sign = (x.to(tl.uint32, bitcast=True) >> 24) & 0x80
        return tl.where(x == x, code | sign.to(tl.uint8), 0x7F).to(tl.uint8)
    else:
        bits = x.to(tl.uint32, bitcast=True)
        sign = (bits >> 24) & 0x80
        size = bits & 0x7FFFFFFF
        # normal: keep 3 mantissa bits, rebias 127 -> 7; the carry may move into the exponent
        odd = (size >> 20) & 1
        normal = (size + odd + 0xC407FFFF) >> 20     # 0x7ffff - (120 << 23), modulo 2^32
        # below 2^-6: adding 2^14 to a float32 rounds it to a multiple of 2^-9, in the last bits
        tiny = size.to(tl.float32, bitcast=True) + 16384.0
        tiny = tiny.to(tl.uint32, bitcast=True) - 0x46800000
        code = tl.where(size < 0x3C800000, tiny, normal)
        if CLAMP:
            code = tl.where(size > 0x43E00000, 0x7E, code)
        code = tl.where(size > 0x7F800000, 0x7F, code)
        return (code | sign).to(tl.uint8)


@triton.jit
def decode(code, FP8: tl.constexpr, TO: tl.constexpr = tl.float32, NAN: tl.constexpr = True):
    """e4m3fn codes -> float32, bfloat16 or float16, exact in each; without NAN 0x7f reads as 480.

    Without the hardware's help float16 is the cheapest, at half the instructions of bfloat16.
    """
    if FP8 == "native":
        return code.to(TO)
    elif tl.float16 == TO:
        # sign, 0, exponent, mantissa: as float16 bits with bias 7 instead of 15, off by 2^8
        half = code.to(tl.int8, bitcast=True).to(tl.int16).to(tl.uint16, bitcast=True) << 7
        value = (half & 0xBFFF).to(tl.float16, bitcast=True) * 256.0
        if NAN:
            return tl.where((half & 0x3F80) == 0x3F80, float("nan"), value)
        else:
            return value
    else:
        bits = code.to(tl.uint32)
        # as float32 bits with bias 7 instead of 127: off by 2^120, subnormals included
        value = ((bits & 0x7F) << 20 | (bits & 0x80) << 24).to(tl.float32, bitcast=True)
        value = value * 1.329227995784916e36
        if NAN:
            value = tl.where((bits & 0x7F) == 0x7F, float("nan"), value)
        if tl.bfloat16 == TO:        # cut off: few GPUs round to bfloat16 in one instruction
            upper = (value.to(tl.uint32, bitcast=True) >> 16).to(tl.uint16)
            return upper.to(tl.bfloat16, bitcast=True)
        else:
            return value


@triton.jit
def to_fnuz(code):
    """e4m3fn codes (uint8) -> float8e4b8, what gfx942's matrix units take; half the value of each.

    The two formats share all codes but three: 0x80 is -0 here and NaN there, 0x7f and 0xff are NaN
    here and +-240 there. So a product of two such operands lacks a factor of 4.
    """
    other = tl.where(code == 0x80, 0, code)
    other = tl.where((code & 0x7F) == 0x7F, 0x80, other)
    return other.to(tl.uint8).to(tl.float8e4b8, bitcast=True)
