"""Casts to FP8 as LLVM IR: what a group of columns costs, in a third of the plain form's time.

A magnitude is rounded by adding a power of two that puts the code's last bit into the last bit of
the sum (Dekker 1971); the sum's low byte and its exponent add up to the code. Generic vectors, from
which LLVM makes each level's own code, but for AVX512-VBMI, which packs bytes in fewer steps.

For plain groups only: finite, with a scale well inside float32's range. `prepare` tells which.
"""

from __future__ import annotations

import struct
from functools import cache

from ..fp8_format import E4M3, E5M2, Format

STEP = 64                            # columns that a function takes at once
GROUPS = 16                          # groups whose scales are computed together
# From 2^-93 and 2^-80 to 2^101 products and remainders are exact: the least quotient that does not
# become 0 is 2^-10 and 2^-17, so that a remainder is a multiple of 2^(-10 - 23 - 93 - 23) or more.
_SCALES = {E4M3: (0x11000000, 0x72000000), E5M2: (0x17800000, 0x72000000)}
_MULTISHIFT = "llvm.x86.avx512.pmultishift.qb.512"
_PACKS = ("llvm.x86.avx2.packuswb", "llvm.x86.avx2.packsswb")
_I, _F = "<16 x i32>", "<16 x float>"


def number(value: float) -> str:
    """A float32 constant as IR writes it: the bits of the double."""
    (single,) = struct.unpack("f", struct.pack("f", value))
    (bits,) = struct.unpack("Q", struct.pack("d", single))
    return f"0x{bits:016X}"


def splat(value: float | int, kind: str, count: int = 16) -> str:
    """A vector constant."""
    text = number(value) if kind == "float" else str(value)
    return "<" + ", ".join([f"{kind} {text}"] * count) + ">"


def mask(places: list[int]) -> str:
    """The mask of a shuffle."""
    return f"<{len(places)} x i32> <" + ", ".join(f"i32 {p}" for p in places) + ">"


DECLARED = "\n".join((
    "declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)",
    "declare <16 x i32> @llvm.umax.v16i32(<16 x i32>, <16 x i32>)",
    "declare <32 x i16> @llvm.umax.v32i16(<32 x i16>, <32 x i16>)",
    "declare i32 @llvm.vector.reduce.umax.v16i32(<16 x i32>)",
    "declare i16 @llvm.vector.reduce.umax.v32i16(<32 x i16>)"))


def fma(to: str, a: str, b: str, c: str) -> str:
    """%to = a * b + c, rounded once."""
    return f"%{to} = call {_F} @llvm.fma.v16f32({_F} {a}, {_F} {b}, {_F} {c})"


def umax(to: str, a: str, b: str, kind: str = "v16i32") -> str:
    """%to = the larger of each lane."""
    vector = _I if kind == "v16i32" else "<32 x i16>"
    return f"%{to} = call {vector} @llvm.umax.{kind}({vector} {a}, {vector} {b})"


def looped(body: list[str], step: int = STEP, **states: str) -> list[str]:
    """The lines of a loop over %n columns, `step` at a time, from column %i on.

    `states` are carried: each starts at 0, is %name in the body and %name_next after it.
    """
    carried = [f"%{name} = phi {kind} [zeroinitializer, %entry], [%{name}_next, %loop]"
               for name, kind in states.items()]
    return ["entry:", "br label %loop", "loop:", "%i = phi i64 [0, %entry], [%next, %loop]",
            *carried, *body, f"%next = add i64 %i, {step}", "%more = icmp slt i64 %next, %n",
            "br i1 %more, label %loop, label %done", "done:"]


def loads(to: str, base: str, kind: str, element_bytes: int, first: int) -> list[str]:
    """%to = a vector of `kind` from column %i + first of %base."""
    return [f"%{to}o = add i64 %i, {first}", f"%{to}b = mul i64 %{to}o, {element_bytes}",
            f"%{to}p = getelementptr i8, ptr %{base}, i64 %{to}b",
            f"%{to} = load {kind}, ptr %{to}p, align {min(element_bytes, 4)}"]


def largest(of: list[str], state: str, kind: str) -> list[str]:
    """%{state}_next = the largest of the vectors and %state."""
    lines = []
    while len(of) > 1:
        lines += [umax(f"{a[1:]}_", a, b, kind) for a, b in zip(of[::2], of[1::2], strict=True)]
        of = [f"{a}_" for a in of[::2]]
    return [*lines, umax(f"{state}_next", of[0], f"%{state}", kind)]


def widest(to: str, state: str, dtype: str) -> list[str]:
    """%to = the float32 bits of the largest magnitude in %{state}_next, raw bits of `dtype`."""
    words = dtype != "float32"
    lines = [f"%{to}m = call {'i16' if words else 'i32'} @llvm.vector.reduce.umax."
             + (f"v32i16(<32 x i16> %{state}_next)" if words else f"v16i32({_I} %{state}_next)")]
    if dtype == "bfloat16":
        return [*lines, f"%{to}w = zext i16 %{to}m to i32", f"%{to} = shl i32 %{to}w, 16"]
    if dtype == "float16":
        return [*lines, f"%{to}h = bitcast i16 %{to}m to half",
                f"%{to}w = fpext half %{to}h to float", f"%{to} = bitcast float %{to}w to i32"]
    return [*lines, f"%{to} = or i32 %{to}m, 0"]


def magnitudes(base: str, dtype: str, step: int = STEP) -> tuple[list[str], list[str], str]:
    """Lines that load `step` raw magnitudes from %base, their names, and what kind of vector."""
    words = dtype != "float32"
    kind, count, size = ("<32 x i16>", step // 32, 2) if words else (_I, step // 16, 4)
    most = splat(0x7FFF, "i16", 32) if words else splat(0x7FFFFFFF, "i32")
    lines = []
    for j in range(count):
        lines += [*loads(f"{base}k{j}", base, kind, size, step // count * j),
                  f"%{base}m{j} = and {kind} %{base}k{j}, {most}"]
    return lines, [f"%{base}m{j}" for j in range(count)], kind


@cache
def top_function(dtype: str) -> str:
    """i32 expertile_top(x, n): the largest magnitude's bits as float32; NaN is above infinity."""
    lines, names, kind = magnitudes("x", dtype)
    suffix = "v16i32" if kind == _I else "v32i16"
    return "\n".join(["define i32 @expertile_top(ptr %x, i64 %n) alwaysinline {",
                      *looped(lines + largest(names, "top", suffix), top=kind),
                      *widest("r", "top", dtype), "ret i32 %r", "}"])


def _shift(to: Format) -> int:
    """Values come times 2 to this: the exponent's share of a subnormal's code is 0, modulo 256."""
    return 1 - to.dropped - to.least


@cache
def prepare_function(how: str, ue8m0: bool, to: Format) -> str:
    """void expertile_prepare(top, eps, scale, a, b, plain): the scales of GROUPS groups.

    `how` says what the cast takes as a and b; see `_quotient_lines`.
    """
    low, high = _SCALES[to]
    lines = [f"%t = load {_I}, ptr %top, align 4",
             f"%e0 = insertelement {_I} poison, i32 %eps, i32 0",
             f"%e = shufflevector {_I} %e0, {_I} poison, {_I} zeroinitializer",
             umax("m", "%t", "%e"), f"%mf = bitcast {_I} %m to {_F}",
             f"%s = fdiv {_F} %mf, {splat(to.most, 'float')}", f"%sb = bitcast {_F} %s to {_I}"]
    if ue8m0:                        # see `ceil_power_of_two`
        lines += [f"%up = add {_I} %sb, {splat(0x7FFFFF, 'i32')}",
                  f"%rb = and {_I} %up, {splat(0x7F800000, 'i32')}"]
    else:
        lines.append(f"%rb = or {_I} %sb, zeroinitializer")
    lines += [f"%r = bitcast {_I} %rb to {_F}", f"store {_F} %r, ptr %scale, align 4",
              f"%over = icmp ugt {_I} %t, %e", f"%zero = icmp eq {_I} %t, zeroinitializer",
              "%known = or <16 x i1> %over, %zero",
              f"%off = sub {_I} %rb, {splat(low, 'i32')}",
              f"%in = icmp ult {_I} %off, {splat(high - low, 'i32')}",
              "%good = and <16 x i1> %known, %in", f"%g = zext <16 x i1> %good to {_I}",
              f"store {_I} %g, ptr %plain, align 4"]
    scaled = splat(2.0**-_shift(to), "float")
    if how == "divide":
        lines += [f"%a1 = fmul {_F} %r, {scaled}", f"store {_F} %a1, ptr %a, align 4"]
    else:
        lines += [f"%inv = fdiv {_F} {splat(1.0, 'float')}, %r",
                  f"%ai = fmul {_F} %inv, {splat(2.0**_shift(to), 'float')}",
                  f"store {_F} %ai, ptr %a, align 4"]
    if how == "remainder":
        lines += [f"%bs = fmul {_F} %r, {scaled}", f"store {_F} %bs, ptr %b, align 4"]
    if how == "two":
        lines += [f"%neg = fneg {_F} %inv", fma("rem", "%neg", "%r", splat(1.0, "float")),
                  f"%lo = fmul {_F} %rem, %ai", f"store {_F} %lo, ptr %b, align 4"]
    return "\n".join(["define void @expertile_prepare(ptr %top, i32 %eps, ptr %scale, ptr %a, "
                      "ptr %b, ptr %plain) alwaysinline {", *lines, "ret void", "}"])


def _quotient_lines(x: str, how: str) -> list[str]:
    """%{x}y = the value %x divided by the scale, as IEEE division rounds it, times 2^_shift.

    "once": times the reciprocal %a; exact where scales are powers of two. "remainder": corrected
    by the remainder of the scale %b (Markstein 1990). "two": the reciprocal as the sum of %a and
    %b; enough for bfloat16, whose quotients by 448ths of each other are ties or 2^-13 off them, and
    by 57344ths as well: these are 2^7 times those, and there are fewer ties.
    """
    if how == "divide":
        return [f"%{x}y = fdiv {_F} %{x}, %va"]
    if how == "once":
        return [f"%{x}y = fmul {_F} %{x}, %va"]
    if how == "two":
        return [f"%{x}q = fmul {_F} %{x}, %vb", fma(f"{x}y", f"%{x}", "%va", f"%{x}q")]
    return [f"%{x}q = fmul {_F} %{x}, %va", f"%{x}n = fneg {_F} %{x}q",
            fma(f"{x}r", f"%{x}n", "%vb", f"%{x}"), fma(f"{x}y", f"%{x}r", "%va", f"%{x}q")]


def _sum_lines(x: str, raw: str, to: Format) -> list[str]:
    """%{x}t: bits of %{x}y plus its power of two; low byte + eight bits from `dropped` on: code.

    The sign of the float32 bits %raw, if there are such, goes to bit 7, which is free.
    """
    least = (127 + to.least + _shift(to)) << 23
    lines = [f"%{x}i = bitcast {_F} %{x}y to {_I}",
             f"%{x}e = and {_I} %{x}i, {splat(0x7F800000, 'i32')}",
             umax(f"{x}m", f"%{x}e", splat(least, "i32")), f"%{x}f = bitcast {_I} %{x}m to {_F}",
             f"%{x}s = fmul {_F} %{x}f, {splat(2.0**to.dropped, 'float')}",
             f"%{x}z = fadd {_F} %{x}s, %{x}y"]
    if not raw:
        return [*lines, f"%{x}t = bitcast {_F} %{x}z to {_I}"]
    return [*lines, f"%{x}u = bitcast {_F} %{x}z to {_I}",
            f"%{x}g = lshr {_I} %{raw}, {splat(24, 'i32')}",
            f"%{x}b = and {_I} %{x}g, {splat(0x80, 'i32')}", f"%{x}t = or {_I} %{x}u, %{x}b"]


def _code_lines(x: str, to: Format) -> list[str]:
    """%{x}c: the code's seven bits in the low byte, garbage above."""
    return [f"%{x}h = lshr {_I} %{x}t, {splat(to.dropped, 'i32')}",
            f"%{x}c = add {_I} %{x}h, %{x}t"]


def _words(pair: int, dtype: str) -> list[str]:
    """%v{pair}0 and %v{pair}1, magnitudes of 32 columns: of bfloat16 the even and the odd ones."""
    a, b, raw = f"v{pair}0", f"v{pair}1", f"w{pair}"
    if dtype == "bfloat16":
        return [*loads(raw, "x", _I, 2, 32 * pair),
                f"%{raw}u = shl {_I} %{raw}, {splat(16, 'i32')}",
                f"%{raw}e = and {_I} %{raw}u, {splat(0x7FFFFFFF, 'i32')}",
                f"%{raw}d = and {_I} %{raw}, {splat(0x7FFF0000, 'i32')}",
                f"%{a} = bitcast {_I} %{raw}e to {_F}", f"%{b} = bitcast {_I} %{raw}d to {_F}"]
    lines = []
    for j, name in enumerate((a, b)):
        if dtype == "float16":
            lines += [*loads(f"{name}k", "x", "<16 x i16>", 2, 32 * pair + 16 * j),
                      f"%{name}l = and <16 x i16> %{name}k, {splat(0x7FFF, 'i16')}",
                      f"%{name}j = bitcast <16 x i16> %{name}l to <16 x half>",
                      f"%{name} = fpext <16 x half> %{name}j to {_F}"]
        else:
            lines += [*loads(f"{name}k", "x", _I, 4, 32 * pair + 16 * j),
                      f"%{name}l = and {_I} %{name}k, {splat(0x7FFFFFFF, 'i32')}",
                      f"%{name} = bitcast {_I} %{name}l to {_F}"]
    return lines


def _sign_lines(pair: int, dtype: str) -> list[str]:
    """%z{pair}: the codes %c{pair} of 32 columns with the signs of two-byte values."""
    g = f"g{pair}"
    if dtype == "bfloat16":
        lines = [f"%{g}w = bitcast {_I} %w{pair} to <32 x i16>"]
    else:
        lines = [f"%{g}w = shufflevector <16 x i16> %v{pair}0k, <16 x i16> %v{pair}1k, "
                 f"{mask(list(range(32)))}"]
    return [*lines, f"%{g}h = lshr <32 x i16> %{g}w, {splat(8, 'i16', 32)}",
            f"%{g}b = trunc <32 x i16> %{g}h to <32 x i8>",
            f"%{g} = and <32 x i8> %{g}b, {splat(-128, 'i8', 32)}",
            f"%z{pair} = or <32 x i8> %c{pair}, %{g}"]


def _packed_lines(pair: int, paired: bool, to: Format) -> list[str]:
    """%c{pair}: the codes of 32 columns as bytes, without the signs of two-byte values."""
    a, b, c = f"v{pair}0", f"v{pair}1", f"c{pair}"
    lines = [*_code_lines(a, to), *_code_lines(b, to)]
    if paired:
        return [*lines, f"%{c}o = shl {_I} %{b}c, {splat(8, 'i32')}",
                f"%{c}e = and {_I} %{a}c, {splat(0xFF, 'i32')}", f"%{c}x = or {_I} %{c}o, %{c}e",
                f"%{c}w = trunc {_I} %{c}x to <16 x i16>",
                f"%{c} = bitcast <16 x i16> %{c}w to <32 x i8>"]
    return [*lines, f"%{c}j = shufflevector {_I} %{a}c, {_I} %{b}c, {mask(list(range(32)))}",
            f"%{c} = trunc <32 x i32> %{c}j to <32 x i8>"]


def _merged(to: str, even: str, odd: str) -> list[str]:
    """%to = the lower words of %even and, between them, the upper ones of %odd."""
    order = [j + 32 * (j % 2) for j in range(32)]
    return [f"%{to}e = bitcast {_I} %{even} to <32 x i16>",
            f"%{to}o = bitcast {_I} %{odd} to <32 x i16>",
            f"%{to} = shufflevector <32 x i16> %{to}e, <32 x i16> %{to}o, {mask(order)}"]


def _avx2_lines(pair: int, dtype: str, to: Format) -> list[str]:
    """%c{pair}: the signed codes of 32 paired columns, in the order of columns.

    Packing words with signed saturation keeps their signs: four columns at a time, not one.
    """
    a, b, c = f"v{pair}0", f"v{pair}1", f"c{pair}"
    lines = [*_code_lines(a, to), *_code_lines(b, to),
             f"%{c}up = shl {_I} %{b}c, {splat(16, 'i32')}", *_merged(f"{c}w", f"{a}c", f"{c}up")]
    if dtype == "bfloat16":
        lines.append(f"%{c}s = bitcast {_I} %w{pair} to <32 x i16>")
    else:
        lines += [f"%{c}down = lshr {_I} %{a}k, {splat(16, 'i32')}",
                  *_merged(f"{c}s", f"{c}down", f"{b}k")]
    for words in (f"{c}w", f"{c}s"):
        lines += [f"%{words}{h} = shufflevector <32 x i16> %{words}, <32 x i16> poison, "
                  f"{mask(list(range(16 * h, 16 * h + 16)))}" for h in range(2)]
    lines += [f"%{c}m{h} = and <16 x i16> %{c}w{h}, {splat(0x7F, 'i16')}" for h in range(2)]
    order = [*range(8), *range(16, 24), *range(8, 16), *range(24, 32)]
    return [*lines, f"%{c}l = call <32 x i8> @{_PACKS[0]}(<16 x i16> %{c}m0, <16 x i16> %{c}m1)",
            f"%{c}n = call <32 x i8> @{_PACKS[1]}(<16 x i16> %{c}s0, <16 x i16> %{c}s1)",
            f"%{c}g = and <32 x i8> %{c}n, {splat(-128, 'i8', 32)}",
            f"%{c}b = or <32 x i8> %{c}l, %{c}g",
            f"%{c} = shufflevector <32 x i8> %{c}b, <32 x i8> poison, {mask(order)}"]


def _bytes_lines(paired: bool, to: Format) -> list[str]:
    """%codes: the codes of 64 columns with AVX512-VBMI.

    Each multishift takes the two bytes of two sums; merged, a quadword holds those of four columns,
    first the four from the exponents and then the four last ones.
    """
    lines = []
    for pair in range(2):
        places = [[odd + 2 * lane if paired else 2 * odd + lane for lane in range(2)]
                  for odd in range(2)]
        for odd in range(2):
            v, at = f"v{pair}{odd}", [0] * 8
            for lane, place in enumerate(places[odd]):
                at[place], at[4 + place] = 32 * lane + to.dropped, 32 * lane
            control = "<" + ", ".join(f"i8 {s}" for s in at * 8) + ">"
            lines += [f"%{v}x = bitcast {_I} %{v}t to <64 x i8>",
                      f"%{v}c = call <64 x i8> @{_MULTISHIFT}(<64 x i8> {control}, "
                      f"<64 x i8> %{v}x)"]
        merged = [j + 64 * (j % 4 in places[1]) for j in range(64)]
        lines += [f"%q{pair} = shufflevector <64 x i8> %v{pair}0c, <64 x i8> %v{pair}1c, "
                  f"{mask(merged)}", f"%q{pair}w = bitcast <64 x i8> %q{pair} to <32 x i16>"]
    for name, first in (("high", 0), ("low", 2)):
        order = ([4 * j + w for j in range(16) for w in (0, 1)] if paired else
                 [32 * pair + 4 * j + w for pair in range(2) for w in (0, 1) for j in range(8)])
        lines += [f"%{name}w = shufflevector <32 x i16> %q0w, <32 x i16> %q1w, "
                  f"{mask([first + o for o in order])}",
                  f"%{name} = bitcast <32 x i16> %{name}w to <64 x i8>"]
    return [*lines, "%codes = add <64 x i8> %high, %low"]


def _signed_bytes_lines() -> list[str]:
    """%out: %codes with the signs of bfloat16 columns."""
    return [*(f"%w{pair}y = bitcast {_I} %w{pair} to <64 x i8>" for pair in range(2)),
            f"%raw = shufflevector <64 x i8> %w0y, <64 x i8> %w1y, {mask(list(range(1, 128, 2)))}",
            f"%signs = and <64 x i8> %raw, {splat(-128, 'i8', 64)}",
            "%out = or <64 x i8> %codes, %signs"]


@cache
def cast_function(dtype: str, how: str, packs: str, to: Format, paired: bool = False) -> str:
    """void expertile_cast(x, q, n, a, b): the codes of n columns of a plain group.

    `packs`: whose instructions make bytes, "vbmi", "avx2" or "" for LLVM's choice.
    `paired`: of each 32 float32 columns x holds the even ones before the odd ones.
    """
    paired = paired or dtype == "bfloat16"
    vbmi, avx2 = packs == "vbmi" and dtype != "float16", packs == "avx2" and paired
    body = []
    for pair in range(2):
        body += _words(pair, dtype)
        for v in (f"v{pair}0", f"v{pair}1"):
            body += _quotient_lines(v, how)
            body += _sum_lines(v, f"{v}k" if dtype == "float32" and not avx2 else "", to)
        if vbmi:
            continue
        signed = dtype != "float32" and not avx2
        body += _avx2_lines(pair, dtype, to) if avx2 else _packed_lines(pair, paired, to)
        if signed:
            body += _sign_lines(pair, dtype)
        body += [f"%p{pair}o = add i64 %i, {32 * pair}",
                 f"%p{pair} = getelementptr i8, ptr %q, i64 %p{pair}o",
                 f"store <32 x i8> %{'z' if signed else 'c'}{pair}, ptr %p{pair}, align 1"]
    if vbmi:
        body += _bytes_lines(paired, to)
        if dtype != "float32":
            body += _signed_bytes_lines()
        body += ["%to = getelementptr i8, ptr %q, i64 %i",
                 f"store <64 x i8> %{'codes' if dtype == 'float32' else 'out'}, ptr %to, align 1"]
    splats = []
    for v in "ab":
        splats += [f"%{v}0 = insertelement {_F} poison, float %{v}, i32 0",
                   f"%v{v} = shufflevector {_F} %{v}0, {_F} poison, {_I} zeroinitializer"]
    lines = looped(body)
    declared = f"declare <64 x i8> @{_MULTISHIFT}(<64 x i8>, <64 x i8>)\n" if vbmi else "".join(
        f"declare <32 x i8> @{name}(<16 x i16>, <16 x i16>)\n" for name in _PACKS * avx2)
    return declared + "\n".join([
        "define void @expertile_cast(ptr %x, ptr %q, i64 %n, float %a, float %b) alwaysinline {",
        lines[0], *splats, *lines[1:], "ret void", "}"])
