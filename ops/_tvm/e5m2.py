"""float8_e5m2 by bit arithmetic on integer lanes.

Not through float16, whose upper byte it is: rounding float32 twice moves what lies just above a
midpoint onto it, and then to the other side.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from ..fp8_format import E5M2
from .fp8 import bits, ceil_power_of_two, floats

_ABS = 0x7FFFFFFF
_MAX_BITS = 0x47600000               # 57344.0
_MIN_NORMAL_BITS = 0x38800000        # 2^-14
_INF_BITS = 0x7F800000


def encode_e5m2(value: Any) -> Any:
    """The e5m2 byte (as int32) of a float32: nearest even, saturating, NaN stays NaN."""
    raw = bits(value)
    a = T.min(raw & T.int32(_ABS), T.int32(_MAX_BITS))
    # 2^7 has an ulp of 2^-16, the spacing of e5m2 subnormals: the addition rounds for us
    subnormal = bits(floats(a) + T.float32(128.0)) - T.int32(0x43000000)
    normal = ((a + T.int32(0xFFFFF) + ((a >> 21) & T.int32(1))) >> 21) - T.int32(448)
    code = T.Select(a < T.int32(_MIN_NORMAL_BITS), subnormal, normal)
    code = T.Select((raw & T.int32(_ABS)) > T.int32(_INF_BITS), T.int32(0x7F), code)
    return code | ((raw >> 24) & T.int32(0x80))


def scale_of(amax_bits: Any, ue8m0: bool) -> Any:
    """The scale of a group from its largest magnitude bits: amax / 57344, rounded up for UE8M0."""
    scale = floats(amax_bits) / T.float32(E5M2.most)
    return ceil_power_of_two(scale) if ue8m0 else scale
