"""FP8 (e4m3fn, and codes of e5m2) by bit arithmetic.

TVM's own cast is wrong on LLVM CPUs: 16 finite bytes decode wrongly, 0.0 becomes 2^-7
(docs/facts.md). Everything here works on integer lanes and is exact.
"""

from __future__ import annotations

import struct
from typing import Any

from tvm.script import tirx as T

from ..fp8_format import E4M3, Format

_ABS = 0x7FFFFFFF
_INF_BITS = 0x7F800000
_DECODE_MASK = 0x87F00000 - (1 << 32)
DECODE_SCALE = 2.0**120              # what `decode_shifted` leaves to the caller


def _bits(value: float) -> int:
    (raw,) = struct.unpack("i", struct.pack("f", value))
    return int(raw)


def bits(value: Any) -> Any:
    """The bits of a float32 as int32."""
    return T.reinterpret("int32", value)


def floats(value: Any) -> Any:
    """The float32 of int32 bits."""
    return T.reinterpret("float32", value)


def magnitude_bits(value: Any) -> Any:
    """|value| as int32: ordered like the magnitudes, with NaN above infinity."""
    return bits(value) & T.int32(_ABS)


def encode(value: Any, to: Format) -> Any:
    """The code (as int32) of a float32: nearest even, saturating, NaN stays NaN.

    Not by way of float16, of which e5m2 is the upper byte: rounding twice moves what lies just
    above a midpoint onto it, and then to the other side.
    """
    raw = bits(value)
    a = T.min(raw & T.int32(_ABS), T.int32(_bits(to.most)))
    # the power of two whose ulp is the spacing of subnormals: the addition rounds for us
    power = 2.0**(to.least - to.mantissa + 23)
    subnormal = bits(floats(a) + T.float32(power)) - T.int32(_bits(power))
    half = (1 << (to.dropped - 1)) - 1
    normal = (((a + T.int32(half) + ((a >> to.dropped) & T.int32(1))) >> to.dropped)
              - T.int32((126 + to.least) << to.mantissa))
    code = T.Select(a < T.int32(_bits(2.0**to.least)), subnormal, normal)
    code = T.Select((raw & T.int32(_ABS)) > T.int32(_INF_BITS), T.int32(0x7F), code)
    return code | ((raw >> 24) & T.int32(0x80))


def encode_e4m3(value: Any) -> Any:
    """The e4m3fn byte (as int32) of a float32."""
    return encode(value, E4M3)


def decode_shifted(byte: Any) -> Any:
    """The value of an e4m3fn byte (any int, sign in bit 7) times 2^-120; the NaN code reads 480."""
    shifted = T.Cast("int32", byte) << 24
    return floats((shifted >> 4) & T.int32(_DECODE_MASK))


def decode_e4m3(byte: Any) -> Any:
    """The float32 value of an e4m3fn byte; exact for all finite codes, NaN reads as +-480."""
    return decode_shifted(byte) * T.float32(DECODE_SCALE)


def decode_e4m3_or_nan(byte: Any) -> Any:
    """The float32 value of an e4m3fn byte, exact for all 256 codes: 0x7F and 0xFF are NaN."""
    code = T.Cast("int32", byte) & T.int32(0x7F)
    return T.Select(code == T.int32(0x7F), floats(T.int32(0x7FC00000)), decode_e4m3(byte))


def ceil_power_of_two(value: Any) -> Any:
    """The smallest power of two >= a float32 >= 0, at least 2^-126 (UE8M0); inf and NaN stay."""
    raw = bits(value)
    up = (raw + T.int32(0x007FFFFF)) & T.int32(_INF_BITS)
    return T.Select(raw < T.int32(_INF_BITS), floats(T.max(up, T.int32(0x00800000))), value)


def scale_of(amax_bits: Any, ue8m0: bool, to: Format = E4M3) -> Any:
    """The scale of a group from its largest magnitude's bits; rounded up for UE8M0."""
    scale = floats(amax_bits) / T.float32(to.most)
    return ceil_power_of_two(scale) if ue8m0 else scale


def scaled(value: Any, scale: Any, ue8m0: bool) -> Any:
    """value / scale as IEEE division gives it; a UE8M0 scale has an exact reciprocal."""
    if not ue8m0:
        return value / scale
    raw = bits(scale)
    inverse = T.Select(raw < T.int32(_INF_BITS), floats(T.int32(0x7F000000) - raw),
                       T.float32(1.0) / scale)
    return value * inverse
