"""SwiGLU's activation of a group of columns as LLVM IR, for the cast that follows."""

from __future__ import annotations

import struct
from functools import cache

from .cast_llvm import fma, largest, loads, looped, magnitudes, mask, splat, widest
from .exp import LN2_HI, LN2_LO, LOG2_E, SERIES

LEAD = 64                            # columns that `activate` has e^-gate of before it begins
_STEP = 32                           # columns at once: more of them spill
_UNUSABLE = 0x7FFFFFFF               # a magnitude that no plain group has
_GATE_LIMIT = 0x42AE0000             # 87: beyond, e^gate is no normal float32
_MAGIC = 12582912.0                  # 1.5 * 2^23: added, it leaves the nearest integer in the bits
# e^r - 1 - r = r^2 (a + b r) on [-ln(2) / 16, ln(2) / 16], our own fit (reweighted
# least squares): 3e-8 off
_SHORT = (0.16666897, 0.50006449)
_LN2_8 = 0.08664339780807495         # float32 next to ln(2) / 8: 2.7e-9 off
_LOOKUP = {8: "llvm.x86.avx2.permps", 16: "llvm.x86.avx512.permvar.sf.512"}
_I, _F = "<16 x i32>", "<16 x float>"


def _eighths(lanes: int) -> str:
    """2^(j / 8) in lane j mod 8, less j in the bits where eighths of an exponent are added."""
    bits = [struct.unpack("I", struct.pack("f", 2.0**(j / 8)))[0] - (j << 20) for j in range(8)]
    return "<" + ", ".join(f"i32 {bits[j % 8]}" for j in range(lanes)) + ">"


def _columns(base: str, name: str, dtype: str, first: int) -> tuple[list[str], list[str]]:
    """Two vectors of 32 columns of %base, %i + first on: of bfloat16 the even and the odd ones."""
    lines, names = [], [f"{base}f{name}0", f"{base}f{name}1"]
    if dtype == "bfloat16":
        w = f"{base}w{name}"
        return [*loads(w, base, _I, 2, first), f"%{w}e = shl {_I} %{w}, {splat(16, 'i32')}",
                f"%{w}d = and {_I} %{w}, {splat(-65536, 'i32')}",
                f"%{names[0]} = bitcast {_I} %{w}e to {_F}",
                f"%{names[1]} = bitcast {_I} %{w}d to {_F}"], names
    for j, each in enumerate(names):
        if dtype == "float32":
            lines += loads(each, base, _F, 4, first + 16 * j)
        else:
            lines += [*loads(f"{each}h", base, "<16 x half>", 2, first + 16 * j),
                      f"%{each} = fpext <16 x half> %{each}h to {_F}"]
    return lines, names


def _looked_up(to: str, at: str, lanes: int) -> list[str]:
    """%to = the bits of 2^(j / 8) for the last three bits j of %at, as `_eighths` holds them."""
    parts, lines = 16 // lanes, []
    for h in range(parts):
        order = mask(list(range(lanes * h, lanes * (h + 1))))
        lines += [f"%{to}{h}i = shufflevector {_I} %{at}, {_I} poison, {order}",
                  f"%{to}{h}f = call <{lanes} x float> @{_LOOKUP[lanes]}("
                  f"<{lanes} x float> %eighths, <{lanes} x i32> %{to}{h}i)",
                  f"%{to}{h} = bitcast <{lanes} x float> %{to}{h}f to <{lanes} x i32>"]
    other = f"%{to}1" if parts > 1 else "poison"
    return [*lines, f"%{to} = shufflevector <{lanes} x i32> %{to}0, <{lanes} x i32> {other}, "
            f"{mask(list(range(16)))}"]


def _by_table(y: str, gate: str, lanes: int) -> list[str]:
    """%{y}d = 1 + e^-gate: 2^(n / 8) from a table in a register, times e^r."""
    second, first = (splat(c, "float") for c in _SHORT)
    one, magic = splat(1.0, "float"), splat(_MAGIC, "float")
    return [fma(f"{y}z", f"%{gate}", splat(-8.0 * LOG2_E, "float"), magic),
            f"%{y}n = fsub {_F} %{y}z, {magic}", f"%{y}m = fneg {_F} %{gate}",
            fma(f"{y}f", f"%{y}n", splat(-_LN2_8, "float"), f"%{y}m"),
            f"%{y}zi = bitcast {_F} %{y}z to {_I}", *_looked_up(f"{y}j", f"{y}zi", lanes),
            f"%{y}k = shl {_I} %{y}zi, {splat(20, 'i32')}", f"%{y}b = add {_I} %{y}j, %{y}k",
            f"%{y}e = bitcast {_I} %{y}b to {_F}", fma(f"{y}s0", second, f"%{y}f", first),
            fma(f"{y}s1", f"%{y}s0", f"%{y}f", one), fma(f"{y}s2", f"%{y}s1", f"%{y}f", one),
            fma(f"{y}d", f"%{y}e", f"%{y}s2", one)]


def _by_polynomial(y: str, gate: str) -> list[str]:
    """%{y}d = 1 + e^-gate: as `exp.exp`, which needs no FMA (calls of libm where there is none)."""
    def muladd(to: str, a: str, b: str, c: str) -> str:
        return f"%{y}{to} = call {_F} @llvm.fmuladd.v16f32({_F} {a}, {_F} {b}, {_F} {c})"

    c = [splat(value, "float") for value in SERIES]
    magic, one, f = splat(_MAGIC, "float"), splat(1.0, "float"), f"%{y}f"
    return [muladd("z", f"%{gate}", splat(-LOG2_E, "float"), magic),
            f"%{y}n = fsub {_F} %{y}z, {magic}", f"%{y}m = fneg {_F} %{gate}",
            muladd("u", f"%{y}n", splat(-LN2_HI, "float"), f"%{y}m"),
            muladd("f", f"%{y}n", splat(-LN2_LO, "float"), f"%{y}u"),
            f"%{y}ff = fmul {_F} {f}, {f}", f"%{y}f1 = fadd {_F} {f}, {one}",
            muladd("s0", c[0], f, c[1]), muladd("s1", c[2], f, c[3]),
            muladd("s2", f"%{y}s0", f"%{y}ff", f"%{y}s1"), muladd("s3", f"%{y}s2", f, c[4]),
            muladd("s4", f"%{y}s3", f"%{y}ff", f"%{y}f1"),
            f"%{y}zi = bitcast {_F} %{y}z to {_I}",
            f"%{y}k = shl {_I} %{y}zi, {splat(23, 'i32')}", f"%{y}b = bitcast {_F} %{y}s4 to {_I}",
            f"%{y}c = add {_I} %{y}b, %{y}k", f"%{y}e = bitcast {_I} %{y}c to {_F}",
            f"%{y}d = fadd {_F} %{y}e, {one}"]


def _divisor_lines(dtype: str, lanes: int, first: int) -> list[str]:
    """y = 1 + e^-gate of the columns of a step, from %i + first on."""
    lines = []
    for pair in range(_STEP // 32):
        loaded, gates = _columns("gate", f"d{pair}", dtype, 32 * pair + first)
        lines += loaded
        for j, gate in enumerate(gates):
            y = f"z{pair}{j}"
            lines += [*(_by_table(y, gate, lanes) if lanes in _LOOKUP else _by_polynomial(y, gate)),
                      f"%{y}at = add i64 %i, {32 * pair + 16 * j + first}",
                      f"%{y}to = getelementptr float, ptr %y, i64 %{y}at",
                      f"store {_F} %{y}d, ptr %{y}to, align 4"]
    return lines


def _fetch_lines(base: str, size: int) -> list[str]:
    """Fetch what lies %ahead bytes behind %base: rows end before a CPU's prefetchers learn."""
    lines = [f"%{base}at = mul i64 %i, {size}", f"%{base}far = add i64 %{base}at, %ahead"]
    for line in range(_STEP * size // 64):
        lines += [f"%{base}l{line} = add i64 %{base}far, {64 * line}",
                  f"%{base}a{line} = getelementptr i8, ptr %{base}, i64 %{base}l{line}",
                  f"call void @llvm.prefetch.p0(ptr %{base}a{line}, i32 0, i32 2, i32 1)"]
    return lines


@cache
def activate_function(dtype: str, lanes: int) -> str:
    """The functions of a group's activation, silu(gate) * up in float32.

    void expertile_lead(gate, y): y = 1 + e^-gate of the first LEAD columns.
    i32 expertile_activate(gate, up, y, n, ahead): y = silu(gate) * up, and its top; behind them
    1 + e^-gate of LEAD columns, for the next group. One loop does both, because the chain of
    either alone is too long for a CPU to hold enough of it. The result is the largest magnitude's
    bits, and above infinity's where a gate is beyond the limit.
    Of bfloat16 y gets the even columns of each 32 before the odd ones.
    """
    body, names, kind = magnitudes("gate", dtype, _STEP)
    body += largest(names, "most", "v16i32" if kind == _I else "v32i16")
    for base in ("gate", "up"):
        body += _fetch_lines(base, 4 if dtype == "float32" else 2)
    tops = []
    for pair in range(_STEP // 32):
        gate_lines, gates = _columns("gate", str(pair), dtype, 32 * pair)
        up_lines, ups = _columns("up", str(pair), dtype, 32 * pair)
        body += gate_lines + up_lines
        for j, (gate, up) in enumerate(zip(gates, ups, strict=True)):
            y = f"y{pair}{j}"
            body += [f"%{y}o = add i64 %i, {32 * pair + 16 * j}",
                     f"%{y}q = getelementptr float, ptr %y, i64 %{y}o",
                     f"%{y}d = load {_F}, ptr %{y}q, align 4",
                     f"%{y}g = fmul {_F} %{gate}, %{up}", f"%{y} = fdiv {_F} %{y}g, %{y}d",
                     f"store {_F} %{y}, ptr %{y}q, align 4", f"%{y}r = bitcast {_F} %{y} to {_I}",
                     f"%{y}t = and {_I} %{y}r, {splat(0x7FFFFFFF, 'i32')}"]
            tops.append(f"%{y}t")
    body += largest(tops, "top", "v16i32")
    body += _divisor_lines(dtype, lanes, LEAD)
    table = ([f"%eighths = bitcast <{lanes} x i32> {_eighths(lanes)} to <{lanes} x float>"]
             if lanes in _LOOKUP else [])
    declared = [f"declare <{lanes} x float> @{_LOOKUP[lanes]}(<{lanes} x float>, <{lanes} x i32>)"
                ] if lanes in _LOOKUP else []
    lead = looped(_divisor_lines(dtype, lanes, 0), _STEP)
    loop = looped(body, _STEP, most=kind, top=_I)
    return "\n".join([
        *declared, f"declare {_F} @llvm.fmuladd.v16f32({_F}, {_F}, {_F})",
        "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
        "define void @expertile_lead(ptr %gate, ptr %y, i64 %n) alwaysinline {",
        lead[0], *table, *lead[1:], "ret void", "}",
        "define i32 @expertile_activate(ptr %gate, ptr %up, ptr %y, i64 %n, i64 %ahead) "
        "alwaysinline {",
        loop[0], *table, *loop[1:], *widest("g", "most", dtype), *widest("t", "top", "float32"),
        f"%far = icmp ugt i32 %g, {_GATE_LIMIT}",
        f"%r = select i1 %far, i32 {_UNUSABLE}, i32 %t", "ret i32 %r", "}"])
