"""float32 to int8 codes, as ops/int8.py defines them."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from ..int8 import INT8_MAX
from .fp8 import bits

_INF_BITS = 0x7F800000
# 1.5 * 2^23: added to |x| < 2^22 it leaves the nearest integer, ties to even, in the last bits
_MAGIC, _MAGIC_BITS = 12582912.0, 0x4B400000


def int8_code(value: Any, scale: Any) -> Any:
    """The int8 code of value / scale; 0 where the scale is 0, infinite or NaN."""
    ratio = T.max(T.min(value / scale, T.float32(INT8_MAX)), T.float32(-INT8_MAX))
    code = bits(ratio + T.float32(_MAGIC)) - T.int32(_MAGIC_BITS)
    usable = T.And(bits(scale) > T.int32(0), bits(scale) < T.int32(_INF_BITS))
    return T.Cast("int8", T.Select(usable, code, T.int32(0)))
