"""SwiGLU's activation of a group of columns as LLVM IR, for the cast that follows."""

from __future__ import annotations

from functools import cache

from .cast_llvm import fma, largest, loads, looped, magnitudes, splat, widest

_STEP = 32                           # columns at once: more of them spill
_UNUSABLE = 0x7FFFFFFF               # a magnitude that no plain group has
_GATE_LIMIT = 0x42AE0000             # 87: beyond, e^gate is no normal float32
_LOG2_E = 1.4426950216293335         # the float32 next to it, and what is missing
_LOG2_E_LOW = 1.9259629911266175e-8
_MAGIC = 12582912.0                  # 1.5 * 2^23: added, it leaves the nearest integer in the bits
# 2^f on [-0.5, 0.5], our own fit (reweighted least squares): 9e-8 off in exact arithmetic
_EXP2 = (0.0013264722247514947, 0.00967151299832758, 0.05550733759689864, 0.24022242077555664,
         0.6931469775877539, 1.0)
_I, _F = "<16 x i32>", "<16 x float>"


def _columns(base: str, pair: int, dtype: str) -> tuple[list[str], list[str]]:
    """Two vectors of 32 columns of %base: of bfloat16 the even and the odd ones."""
    lines, names = [], [f"{base}f{pair}0", f"{base}f{pair}1"]
    if dtype == "bfloat16":
        w = f"{base}w{pair}"
        return [*loads(w, base, _I, 2, 32 * pair), f"%{w}e = shl {_I} %{w}, {splat(16, 'i32')}",
                f"%{w}d = and {_I} %{w}, {splat(-65536, 'i32')}",
                f"%{names[0]} = bitcast {_I} %{w}e to {_F}",
                f"%{names[1]} = bitcast {_I} %{w}d to {_F}"], names
    for j, name in enumerate(names):
        if dtype == "float32":
            lines += loads(name, base, _F, 4, 32 * pair + 16 * j)
        else:
            lines += [*loads(f"{name}h", base, "<16 x half>", 2, 32 * pair + 16 * j),
                      f"%{name} = fpext <16 x half> %{name}h to {_F}"]
    return lines, names


def _silu_lines(y: str, gate: str, up: str) -> list[str]:
    """%y = gate * up / (1 + e^-gate): accurate in both tails while e^-gate is finite."""
    minus = splat(-_LOG2_E, "float")
    lines = [fma(f"{y}z", f"%{gate}", minus, splat(_MAGIC, "float")),
             f"%{y}n = fsub {_F} {splat(_MAGIC, 'float')}, %{y}z",
             fma(f"{y}f", f"%{gate}", minus, f"%{y}n"),
             fma(f"{y}p0", f"%{gate}", splat(-_LOG2_E_LOW, "float"), f"%{y}f")]
    p, c = f"%{y}p0", [splat(c, "float") for c in _EXP2]
    lines += [f"%{y}p2 = fmul {_F} {p}, {p}", fma(f"{y}s0", c[0], p, c[1]),
              fma(f"{y}s1", c[2], p, c[3]), fma(f"{y}s2", c[4], p, c[5]),
              fma(f"{y}s3", f"%{y}s0", f"%{y}p2", f"%{y}s1"),
              fma(f"{y}s4", f"%{y}s3", f"%{y}p2", f"%{y}s2")]
    have = f"%{y}s4"
    return [*lines, f"%{y}zi = bitcast {_F} %{y}z to {_I}",
            f"%{y}k = shl {_I} %{y}zi, {splat(23, 'i32')}", f"%{y}b = bitcast {_F} {have} to {_I}",
            f"%{y}c = add {_I} %{y}b, %{y}k", f"%{y}e = bitcast {_I} %{y}c to {_F}",
            f"%{y}d = fadd {_F} %{y}e, {splat(1.0, 'float')}",
            f"%{y}g = fmul {_F} %{gate}, %{up}", f"%{y} = fdiv {_F} %{y}g, %{y}d"]


def _fetch_lines(base: str, size: int) -> list[str]:
    """Fetch what lies %ahead bytes behind %base: rows end before a CPU's prefetchers learn."""
    lines = [f"%{base}at = mul i64 %i, {size}", f"%{base}far = add i64 %{base}at, %ahead"]
    for line in range(_STEP * size // 64):
        lines += [f"%{base}l{line} = add i64 %{base}far, {64 * line}",
                  f"%{base}a{line} = getelementptr i8, ptr %{base}, i64 %{base}l{line}",
                  f"call void @llvm.prefetch.p0(ptr %{base}a{line}, i32 0, i32 2, i32 1)"]
    return lines


@cache
def activate_function(dtype: str) -> str:
    """i32 expertile_activate(gate, up, y, n, ahead): y = silu(gate) * up in float32, and its top.

    Of bfloat16 y gets the even columns of each 32 before the odd ones. The result is the largest
    magnitude's bits, and above infinity's where a gate is beyond the limit.
    """
    body, names, kind = magnitudes("gate", dtype, _STEP)
    body += largest(names, "most", "v16i32" if kind == _I else "v32i16")
    for base in ("gate", "up"):
        body += _fetch_lines(base, 4 if dtype == "float32" else 2)
    tops = []
    for pair in range(_STEP // 32):
        gate_lines, gates = _columns("gate", pair, dtype)
        up_lines, ups = _columns("up", pair, dtype)
        body += gate_lines + up_lines
        for j, (gate, up) in enumerate(zip(gates, ups, strict=True)):
            y = f"y{pair}{j}"
            body += [*_silu_lines(y, gate, up), f"%{y}o = add i64 %i, {32 * pair + 16 * j}",
                     f"%{y}q = getelementptr float, ptr %y, i64 %{y}o",
                     f"store {_F} %{y}, ptr %{y}q, align 4", f"%{y}r = bitcast {_F} %{y} to {_I}",
                     f"%{y}t = and {_I} %{y}r, {splat(0x7FFFFFFF, 'i32')}"]
            tops.append(f"%{y}t")
    body += largest(tops, "top", "v16i32")
    return "\n".join([
        "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
        "define i32 @expertile_activate(ptr %gate, ptr %up, ptr %y, i64 %n, i64 %ahead) "
        "alwaysinline {",
        *looped(body, _STEP, most=kind, top=_I), *widest("g", "most", dtype),
        *widest("t", "top", "float32"), f"%far = icmp ugt i32 %g, {_GATE_LIMIT}",
        f"%r = select i1 %far, i32 {_UNUSABLE}, i32 %t", "ret i32 %r", "}"])
