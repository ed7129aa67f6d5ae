"""FP8 as bytes, for the CPU text: x86 has no such types, and bishengir-opt no lowering of them.

float16 holds e4m3 / 256 with the same bits, shifted by 7, and e5m2 shifted by 8; subnormals
included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .emit_text import E4M3, E5M2, Text, Value

_NAN = 0x7F
_HALF_NAN = 0x7E00


@dataclass(frozen=True)
class _Format:
    """A kind of FP8: its range, and where its bits stand in a float16."""

    most: float
    least: float                     # the least normal number
    mantissa: int                    # bits
    half: float                      # what float16 holds of a number


_FORMATS = {E4M3: _Format(448.0, 2.0**-6, 3, 2.0**-8), E5M2: _Format(57344.0, 2.0**-14, 2, 1.0)}


def decode(text: Text, value: Value, shape: Sequence[int]) -> Value:
    """float32 of FP8 codes; all 256 of them are exact, infinities and NaNs too."""
    def of(kind: str) -> str:
        return text.tensor(shape, kind)

    if value.type == E5M2:
        upper = text.op(f"arith.extsi {value.ssa} : {of('i8')} to {of('i16')}")
        moved = text.op(f"arith.shli {upper}, {text.splat(8, shape, 'i16')} : {of('i16')}")
        half = text.op(f"arith.bitcast {moved} : {of('i16')} to {of('f16')}")
        return Value(text.op(f"arith.extf {half} : {of('f16')} to {of('f32')}"), value.dims, "f32")
    wide = text.op(f"arith.extsi {value.ssa} : {of('i8')} to {of('i16')}")
    moved = text.op(f"arith.shli {wide}, {text.splat(7, shape, 'i16')} : {of('i16')}")
    bits = text.op(f"arith.andi {moved}, {text.splat(0xBF80 - 0x10000, shape, 'i16')} : "
                   f"{of('i16')}")
    code = text.op(f"arith.andi {wide}, {text.splat(_NAN, shape, 'i16')} : {of('i16')}")
    bad = text.op(f"arith.cmpi eq, {code}, {text.splat(_NAN, shape, 'i16')} : {of('i16')}")
    bits = text.op(f"arith.select {bad}, {text.splat(_HALF_NAN, shape, 'i16')}, {bits} : "
                   f"{of('i1')}, {of('i16')}")
    half = text.op(f"arith.bitcast {bits} : {of('i16')} to {of('f16')}")
    single = text.op(f"arith.extf {half} : {of('f16')} to {of('f32')}")
    number = text.op(f"arith.mulf {single}, {text.splat(256.0, shape, 'f32')} : {of('f32')}")
    return Value(number, value.dims, "f32")


def encode(text: Text, value: Value, shape: Sequence[int], kind: str) -> Value:
    """FP8 codes of float32: nearest even, NaN stays NaN, beyond the largest number as that."""
    to = _FORMATS[kind]

    def of(kind: str) -> str:
        return text.tensor(shape, kind)

    def floats(name: str, a: str, b: float | str) -> str:
        other = b if isinstance(b, str) else text.splat(b, shape, "f32")
        return text.op(f"arith.{name} {a}, {other} : {of('f32')}")

    def ints(name: str, a: str, b: int | str, kind: str) -> str:
        other = b if isinstance(b, str) else text.splat(b, shape, kind)
        return text.op(f"arith.{name} {a}, {other} : {of(kind)}")

    raw = text.op(f"arith.bitcast {value.ssa} : {of('f32')} to {of('i32')}")
    magnitude = floats("minimumf", text.op(f"math.absf {value.ssa} : {of('f32')}"), to.most)
    exponent = ints("andi", text.op(f"arith.bitcast {magnitude} : {of('f32')} to {of('i32')}"),
                    0x7F800000, "i32")
    power = floats("maximumf", text.op(f"arith.bitcast {exponent} : {of('i32')} to {of('f32')}"),
                   to.least)
    # next to this number a float32 has the format's spacing: adding it rounds for us
    magic = floats("mulf", power, 1.5 * 2.0**(23 - to.mantissa))
    rounded = floats("subf", floats("addf", magnitude, magic), magic)
    held = floats("mulf", rounded, to.half) if to.half != 1.0 else rounded
    half = text.op(f"arith.truncf {held} : {of('f32')} to {of('f16')}")
    bits = text.op(f"arith.bitcast {half} : {of('f16')} to {of('i16')}")
    code = text.op(f"arith.extsi {ints('shrui', bits, 10 - to.mantissa, 'i16')} : {of('i16')} to "
                   f"{of('i32')}")
    bad = text.op(f"arith.cmpf une, {value.ssa}, {value.ssa} : {of('f32')}")
    code = text.op(f"arith.select {bad}, {text.splat(_NAN, shape, 'i32')}, {code} : {of('i1')}, "
                   f"{of('i32')}")
    sign = ints("andi", ints("shrui", raw, 24, "i32"), 0x80, "i32")
    byte = text.op(f"arith.trunci {ints('ori', code, sign, 'i32')} : {of('i32')} to {of('i8')}")
    return Value(byte, value.dims, kind)
