"""Groups cast to int8 in tile programs, bit for bit as ops/int8.py defines it."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from ..int8 import INT8_MAX
from .fp8 import float_bits
from .tile import Kernel

_INF_BITS = 0x7F800000


def int8_scale(k: Kernel, top: Any, eps: Any) -> Any:
    """max(top, eps) / 127 of the largest magnitudes [rows]."""
    rows = (int(top.shape[0]),)
    amax = k.new(rows, "float32", lambda i: T.max(top[i], eps))
    return k.new(rows, "float32", lambda i: amax[i] / T.float32(INT8_MAX))


def int8_codes(k: Kernel, x: Any, scale: Any) -> Any:
    """int8 tile of float32 x [rows, width] / scale [rows]; 0 where a scale is 0, infinite or NaN.

    Rounded as int32, for bishengir-compile 1.2.0 cuts float32 to int8 off whatever it is told; and
    to int8 by way of float16, which holds these integers: its int32 to int8 takes 400 bytes of the
    unified buffer for each column, 832 KiB of 192 for 2048 (docs/facts.md).
    """
    shape = tuple(int(n) for n in x.shape)
    usable = k.new(shape[:1], "float32", lambda i: T.Select(
        T.And(float_bits(scale[i]) > T.int32(0), float_bits(scale[i]) < T.int32(_INF_BITS)),
        T.float32(1), T.float32(0)))
    ratio = k.new(shape, "float32", lambda i, j: x[i, j] / scale[i])
    k.put(ratio, lambda i, j: T.Select(usable[i] > T.float32(0), T.max(
        T.min(ratio[i, j], T.float32(INT8_MAX)), T.float32(-INT8_MAX)), T.float32(0)))
    whole = k.new(shape, "int32", lambda i, j: T.Cast("int32", T.nearbyint(ratio[i, j])))
    wide = k.new(shape, "float32", lambda i, j: T.Cast("float32", whole[i, j]))
    half = k.new(shape, "float16", lambda i, j: T.Cast("float16", wide[i, j]))
    return k.new(shape, "int8", lambda i, j: T.Cast("int8", half[i, j]))
