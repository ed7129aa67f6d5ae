"""FP8 on the NPU: the type itself where the device has it, else its bytes by bit arithmetic.

float16 holds e4m3 / 256 with the same bits, shifted by 7, subnormals included: a code becomes a
number, and a rounded number a code, in a few 16-bit operations of the vector core. An e5m2 code is
the upper byte of a float16, which float32 reaches already rounded: nothing is rounded twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from ..fp8 import E4M3_MAX
from ..fp8_format import E4M3, E5M2, Format
from .tile import Kernel

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget

NAN_CODE = 0x7F
_HALF_NAN = 0x7E00
_HALF_MANTISSA, _HALF_LEAST = 10, -14


def stored(target: AscendTarget, dtype: str) -> str:
    """How a tensor of a dtype is declared to a kernel: without the type, FP8 is int8."""
    return "int8" if dtype in (E4M3.dtype, E5M2.dtype) and target.fp8 == "bits" else dtype


def codes(target: AscendTarget, x: Tensor) -> Tensor:
    """A tensor as it is passed to a kernel."""
    held = x.dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
    return x.view(torch.int8) if held and target.fp8 == "bits" else x


def float_bits(value: Any) -> Any:
    """The bits of a float32."""
    return T.reinterpret("int32", value)


def decoded(k: Kernel, shape: tuple[int, int], load: Any, dtype: str, nan: bool = False) -> Any:
    """A tile of numbers in `dtype` ("float16" / 256 when not float32) of e4m3 codes load(i, j).

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


def encoded(k: Kernel, shape: tuple[int, int], x: Any, to: Format = E4M3) -> Any:
    """A tile of int8 codes of float32 x: nearest even, saturating, NaN stays NaN."""
    least, power = 2.0**to.least, 1.5 * 2.0**to.dropped
    top = k.new(shape, "float32", lambda i, j: T.min(T.fabs(x[i, j]), T.float32(to.most)))
    # a number with the codes' spacing for its last bit: adding it and taking it away rounds
    magic = k.new(shape, "float32", lambda i, j: T.max(T.reinterpret("float32", T.bitwise_and(
        float_bits(top[i, j]), T.int32(0x7F800000))), T.float32(least)) * T.float32(power))

    def rounded(i: Any, j: Any) -> Any:          # with the exponent's bits of the code
        value = (top[i, j] + magic[i, j]) - magic[i, j]
        off = _HALF_LEAST - to.least
        return value * T.float32(2.0**off) if off else value

    half = k.new(shape, "float16", lambda i, j: T.Cast("float16", rounded(i, j)))
    code = k.new(shape, "int16", lambda i, j: T.shift_right(
        T.reinterpret("int16", half[i, j]), T.int16(_HALF_MANTISSA - to.mantissa)))
    code = k.put(code, lambda i, j: T.Select(x[i, j] != x[i, j], T.int16(NAN_CODE), code[i, j]))
    sign = k.new(shape, "int16", lambda i, j: T.Cast("int16", T.shift_right(
        float_bits(x[i, j]), T.int32(31))))
    return k.new(shape, "int8", lambda i, j: T.Cast("int8", code[i, j] + T.shift_left(
        sign[i, j], T.int16(7))))


def power_of_two_above(scale: Any) -> Any:
    """The smallest power of two >= a float32 >= 0, at least 2^-126 (UE8M0); NaN stays."""
    up = T.reinterpret("float32", T.bitwise_and(float_bits(scale) + T.int32(0x007FFFFF),
                                                T.int32(0x7F800000)))
    return T.Select(scale == scale, T.max(up, T.float32(2.0**-126)), scale)
