"""2^x in vector lanes: LLVM turns `T.exp2` on a vector into one libm call per lane."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from .fp8 import bits, floats

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
# 2^f on [-0.5, 0.5], degree 6: our own fit (reweighted least squares on the relative error), which
# is 2e-9 off in exact arithmetic and 8e-8 in float32.
_POLYNOMIAL = (1.5345838618e-4, 1.3399943709e-3, 9.6184890717e-3, 5.5503286421e-2,
               2.4022646248e-1, 6.9314718246e-1, 1.0)
_LOWEST = -126.0                     # below, 2^x is not a normal float32


def exp2_nonpositive(value: Any) -> Any:
    """2^value for float32 value <= 0, to 1e-7 relative; 0 where the result would be subnormal."""
    x = T.max(value, T.float32(_LOWEST))
    whole = T.floor(x + T.float32(0.5))
    f = x - whole
    p = T.float32(_POLYNOMIAL[0])
    for c in _POLYNOMIAL[1:]:
        p = p * f + T.float32(c)
    power = floats(bits(p) + (T.Cast("int32", whole) << 23))
    return T.Select(value < T.float32(_LOWEST), T.float32(0), power)
