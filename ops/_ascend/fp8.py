"""e4m3fn on the NPU: the type itself where the device has it, else its bytes by bit arithmetic.

float16 holds e4m3 / 256 with the same bits, shifted by 7, subnormals included: a code becomes a
number, and a rounded number a code, in a few 16-bit operations of the vector core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from ..fp8 import E4M3_MAX
from .tile import Kernel

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget

NAN_CODE = 0x7F
_HALF_NAN = 0x7E00


def stored(target: AscendTarget, dtype: str) -> str:
    """How a tensor of a dtype is declared to a kernel: without the type, e4m3 is int8."""
    return "int8" if dtype == "float8_e4m3fn" and target.fp8 == "bits" else dtype


def codes(target: AscendTarget, x: Tensor) -> Tensor:
    """A tensor as it is passed to a kernel."""
    return x.view(torch.int8) if x.dtype == torch.float8_e4m3fn and target.fp8 == "bits" else x


def float_bits(value: Any) -> Any:
    """The bits of a float32."""
    return T.reinterpret("int32", value)


def decoded(k: Kernel, shape: tuple[int, int], load: Any, dtype: str, nan: bool = False) -> Any:
    """A tile of numbers in `dtype` ("float16" / 256 when not float32) of int8 codes load(i, j).

    In float16 the number is divided by 256, exactly; in float32 it is itself. Only with `nan` do
    0x7F and 0xFF become NaN; they read as +-480 otherwise.
    """
    wide = k.new(shape, "int16", lambda i, j: T.Cast("int16", load(i, j)))
    bits = k.new(shape, "int16", lambda i, j: T.bitwise_and(
        T.shift_left(wide[i, j], T.int16(7)), T.int16(0xBF80 - 0x10000)))
    half = k.new(shape, "float16", lambda i, j: T.reinterpret("float16", bits[i, j]))
    if nan:                          # compared as float16: the 910B compares int16 one by one
        k.put(bits, lambda i, j: T.Select(T.fabs(half[i, j]) > T.float16(E4M3_MAX / 256),
                                          T.int16(_HALF_NAN), bits[i, j]))
        half = k.new(shape, "float16", lambda i, j: T.reinterpret("float16", bits[i, j]))
    if dtype == "float16":
        return half
    return k.new(shape, "float32", lambda i, j: T.Cast("float32", half[i, j]) * T.float32(256.0))


def encoded(k: Kernel, shape: tuple[int, int], x: Any) -> Any:
    """A tile of int8 codes of float32 x: nearest even, saturating, NaN stays NaN."""
    top = k.new(shape, "float32", lambda i, j: T.min(T.fabs(x[i, j]), T.float32(E4M3_MAX)))
    # a number with e4m3's spacing for its last bit: adding it and taking it away rounds
    magic = k.new(shape, "float32", lambda i, j: T.max(T.reinterpret("float32", T.bitwise_and(
        float_bits(top[i, j]), T.int32(0x7F800000))), T.float32(2.0**-6)) * T.float32(1.5 * 2**20))
    half = k.new(shape, "float16", lambda i, j: T.Cast("float16", (
        (top[i, j] + magic[i, j]) - magic[i, j]) * T.float32(2.0**-8)))
    code = k.new(shape, "int16", lambda i, j: T.shift_right(
        T.reinterpret("int16", half[i, j]), T.int16(7)))
    code = k.put(code, lambda i, j: T.Select(x[i, j] != x[i, j], T.int16(NAN_CODE), code[i, j]))
    sign = k.new(shape, "int16", lambda i, j: T.Cast("int16", T.shift_right(
        float_bits(x[i, j]), T.int32(31))))
    return k.new(shape, "int8", lambda i, j: T.Cast("int8", code[i, j] + T.shift_left(
        sign[i, j], T.int16(7))))


def power_of_two_above(scale: Any) -> Any:
    """The smallest power of two >= a float32 > 0, at least 2^-126 (UE8M0); NaN stays."""
    up = T.reinterpret("float32", T.bitwise_and(float_bits(scale) + T.int32(0x007FFFFF),
                                                T.int32(0x7F800000)))
    return T.Select(scale == scale, up, scale)
