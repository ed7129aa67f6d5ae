"""Vector code that TVM has no words for, as LLVM IR: transposing panels, and bfloat16 dot products.

Shuffles are generic vector shuffles, from which LLVM picks a machine's own; only the functions for
bfloat16 pairs name instructions (AVX512-BF16; the table look-ups become AVX512-VBMI).
"""

from __future__ import annotations

from functools import cache

from . import stack
from .tiles import FP8, Tiles

_PAIR_BIAS = 127 - 7 - 8             # an e4m3 code as bfloat16 comes divided by 256, as in `widen`
_DOT = "llvm.x86.avx512bf16.dpbf16ps.512"
_LOOKUP = "llvm.x86.avx512.vpermi2var.qi.512"
_POWER = "0x4770000000000000"        # 2^120: float32's exponent bias less that of e4m3


def panel_name(dtype: str, pairs: bool) -> str:
    """The function that `panel_function` defines."""
    return f"expertile_panel_{dtype}_{'pairs' if pairs else 'float32'}"


def pair_name(dtype: str, half: int) -> str:
    """The function that makes bfloat16 of 32 codes of 64: of `pair_functions`."""
    return f"expertile_{dtype}_{half}"


def _vector(values: list[int], bits: int) -> str:
    return "<" + ", ".join(f"i{bits} {v}" for v in values) + ">"


def _splat(lanes: int, value: int, bits: int = 32) -> str:
    return _vector([value] * lanes, bits)


def _bfloat_of(code: int) -> int:
    """The bfloat16 bits of the magnitude of an e4m3 code / 256; the NaN code as 480 / 256."""
    exponent, mantissa = code >> 3, code & 7
    if exponent:
        return (exponent + _PAIR_BIAS) << 7 | mantissa << 4
    if not mantissa:
        return 0
    shift = 4 - mantissa.bit_length()            # subnormal: bfloat16 has the range to be normal
    return (1 - shift + _PAIR_BIAS) << 7 | (mantissa << shift & 7) << 4


def _lookup_lines(x: str) -> list[str]:
    """%{x}l and %{x}h: low and high bytes of the bfloat16 of 64 e4m3 codes %x."""
    words = [_bfloat_of(code) for code in range(128)]
    low, high = [w & 0xFF for w in words], [w >> 8 for w in words]

    def signed(values: list[int]) -> str:
        return "<64 x i8> " + _vector([v - 256 if v > 127 else v for v in values], 8)

    return [f"%{x}l = call <64 x i8> @{_LOOKUP}({signed(low[:64])}, <64 x i8> %{x}, "
            f"{signed(low[64:])})",
            f"%{x}m = call <64 x i8> @{_LOOKUP}({signed(high[:64])}, <64 x i8> %{x}, "
            f"{signed(high[64:])})",
            f"%{x}s = and <64 x i8> %{x}, {_splat(64, -128, 8)}",
            f"%{x}h = or <64 x i8> %{x}m, %{x}s"]


def _interleaved(x: str, to: str, codes: list[int]) -> str:
    """%to: the bfloat16 of the codes at those places, from %{x}l and %{x}h."""
    mask = _vector([v for c in codes for v in (c, 64 + c)], 32)
    return (f"%{to} = shufflevector <64 x i8> %{x}l, <64 x i8> %{x}h, <64 x i32> {mask}")


@cache
def pair_functions() -> str:
    """The dot products of bfloat16 pairs, and e4m3 codes as bfloat16 in order."""
    text = [f"declare <16 x float> @{_DOT}(<16 x float>, <32 x bfloat>, <32 x bfloat>)",
            f"declare <64 x i8> @{_LOOKUP}(<64 x i8>, <64 x i8>, <64 x i8>)",
            "define <16 x float> @expertile_dot(<16 x float> %c, <32 x i16> %a, <32 x i16> %b) "
            "alwaysinline {",
            "%x = bitcast <32 x i16> %a to <32 x bfloat>",
            "%y = bitcast <32 x i16> %b to <32 x bfloat>",
            f"%r = call <16 x float> @{_DOT}(<16 x float> %c, <32 x bfloat> %x, <32 x bfloat> %y)",
            "ret <16 x float> %r", "}",
            "define <16 x float> @expertile_dot_one(<16 x float> %c, i32 %a, <16 x i32> %b) "
            "alwaysinline {",
            "%i = insertelement <16 x i32> poison, i32 %a, i32 0",
            "%s = shufflevector <16 x i32> %i, <16 x i32> poison, <16 x i32> zeroinitializer",
            "%x = bitcast <16 x i32> %s to <32 x bfloat>",
            "%y = bitcast <16 x i32> %b to <32 x bfloat>",
            f"%r = call <16 x float> @{_DOT}(<16 x float> %c, <32 x bfloat> %x, <32 x bfloat> %y)",
            "ret <16 x float> %r", "}"]
    for half in range(2):
        codes = list(range(32 * half, 32 * half + 32))
        text += [f"define <32 x i16> @{pair_name(FP8, half)}(<64 x i8> %x) alwaysinline {{",
                 *_lookup_lines("x"), _interleaved("x", "v", codes),
                 "%r = bitcast <64 x i8> %v to <32 x i16>", "ret <32 x i16> %r", "}",
                 f"define <32 x i16> @{pair_name('int8', half)}(<64 x i8> %x) alwaysinline {{",
                 f"%h = shufflevector <64 x i8> %x, <64 x i8> poison, <32 x i32> "
                 f"{_vector(codes, 32)}",
                 "%f = sitofp <32 x i8> %h to <32 x float>",
                 "%i = bitcast <32 x float> %f to <32 x i32>",
                 f"%u = lshr <32 x i32> %i, {_splat(32, 16)}",
                 "%r = trunc <32 x i32> %u to <32 x i16>", "ret <32 x i16> %r", "}"]
    return "\n".join(text)


def functions(g: Tiles) -> tuple[str, ...]:
    """All that the tiles of a GEMM call."""
    panel = panel_function(g.dtype, g.pairs, g.lanes, g.tile_n)
    packs = (pack_function(g.lanes, rows, g.pm) for rows in {rows for _, rows in row_groups(g)})
    return (panel, stack.functions(g.lanes), *packs,
            *([pair_functions()] if g.pairs else []))


def row_groups(g: Tiles) -> list[tuple[int, int]]:
    """First row and rows of what is transposed at once of a panel's tile."""
    return [(first, min(g.lanes, g.pm - first)) for first in range(0, g.pm, g.lanes)]


def pack_name(rows: int) -> str:
    """The function that `pack_function` defines."""
    return f"expertile_pack_{rows}"


@cache
def pack_function(lanes: int, rows: int, step: int) -> str:
    """void(row 0, row 1, ..., dst, blocks): at most `lanes` rows of dwords become columns.

    A block is `lanes` dwords of each row; dst advances by `step` dwords with every one of them.
    Where the rows are all of a step, whole vectors are stored, the next on the end of the last.
    """
    pointers = ", ".join(f"ptr %q{j}" for j in range(rows))
    text = [f"define void @{pack_name(rows)}({pointers}, ptr %dst, i64 %blocks) alwaysinline {{",
            "entry:", "br label %head", "head:",
            "%i = phi i64 [0, %entry], [%next, %loop]", "%more = icmp slt i64 %i, %blocks",
            "br i1 %more, label %loop, label %done", "loop:", f"%at = mul i64 %i, {4 * lanes}"]
    text += [f"%g{j} = getelementptr i8, ptr %q{min(j, rows - 1)}, i64 %at" for j in range(lanes)]
    text += _loaded_lines(lanes, rows) + _transpose_lines(lanes)
    text += [f"%to = mul i64 %i, {4 * step * lanes}", "%base = getelementptr i8, ptr %dst, i64 %to"]
    whole = rows == step
    for d in range(lanes):
        text += [f"%t{d} = getelementptr i8, ptr %base, i64 {4 * step * d}",
                 f"%s{d} = shufflevector <{lanes} x i32> %o{d}, <{lanes} x i32> poison, "
                 f"<{lanes if whole else rows} x i32> "
                 f"{_vector(list(range(lanes if whole else rows)), 32)}",
                 f"store <{lanes if whole else rows} x i32> %s{d}, ptr %t{d}, align 4"]
    return "\n".join([*text, "%next = add i64 %i, 1", "br label %head", "done:", "ret void", "}"])


def _shuffle(lanes: int, to: str, a: str, b: str, mask: list[int]) -> str:
    return (f"%{to} = shufflevector <{lanes} x i32> %{a}, <{lanes} x i32> %{b}, "
            f"<{len(mask)} x i32> {_vector(mask, 32)}")


def _loaded_lines(lanes: int, valid: int = 0) -> list[str]:
    """%r{q}_{j}: parts of 128 bits, the q-th of rows j, 4 + j, 8 + j ... from pointers %g{row}.

    Such loads do the half of a transposition that would move 128-bit parts between registers.
    Rows from `valid` on, if there are, stay undefined.
    """
    lines = []
    for q in range(lanes // 4):
        for j in range(4):
            rows = range(j, lanes, 4)
            for row in rows:
                lines += [f"%h{q}_{row} = getelementptr i8, ptr %g{row}, i64 {16 * q}",
                          f"%l4_{q}_{row} = load <4 x i32>, ptr %h{q}_{row}, align 1"
                          if row < (valid or lanes) else
                          f"%l4_{q}_{row} = bitcast <4 x i32> poison to <4 x i32>"]
            width, have = 4, [f"l4_{q}_{row}" for row in rows]
            while len(have) > 1:
                name = [f"l{2 * width}_{q}_{j}_{i}" for i in range(len(have) // 2)]
                lines += [_shuffle(width, n, a, b, list(range(2 * width)))
                          for n, a, b in zip(name, have[::2], have[1::2], strict=True)]
                width, have = 2 * width, name
            lines.append(f"%r{q}_{j} = bitcast <{lanes} x i32> %{have[0]} to <{lanes} x i32>")
    return lines


def _transpose_lines(lanes: int) -> list[str]:
    """%o{c}: lane j holds element c of row j; unpacks 32 bits, then 64, within 128-bit parts."""
    lines, parts = [], range(0, lanes, 4)
    for q in range(lanes // 4):
        for j in (0, 2):
            for name, at in (("a", 0), ("b", 2)):
                lines.append(_shuffle(lanes, f"{name}{q}_{j}", f"r{q}_{j}", f"r{q}_{j + 1}", [
                    v for p in parts for v in (p + at, lanes + p + at, p + at + 1,
                                               lanes + p + at + 1)]))
        for c in range(4):
            src, at = "ab"[c // 2], 2 * (c % 2)
            lines.append(_shuffle(lanes, f"o{4 * q + c}", f"{src}{q}_0", f"{src}{q}_2", [
                v for p in parts for v in (p + at, p + at + 1, lanes + p + at,
                                           lanes + p + at + 1)]))
    return lines


def _float_lines(lanes: int, dtype: str, d: int) -> tuple[list[str], list[str]]:
    """Lines that make float32 of dword %o{d}, and the names of the results in order of K."""
    v = f"<{lanes} x i32>"
    if dtype == "float32":
        return [], [f"o{d}"]
    if dtype == "bfloat16":
        return [f"%x{d}_0 = shl {v} %o{d}, {_splat(lanes, 16)}",
                f"%x{d}_1 = and {v} %o{d}, {_splat(lanes, -65536)}"], [f"x{d}_0", f"x{d}_1"]
    if dtype == "float16":
        return _half_lines(lanes, d), [f"x{d}_0", f"x{d}_1"]
    return _code_lines(lanes, d) if dtype == FP8 else _int8_lines(lanes, d)


def _int8_lines(lanes: int, d: int) -> tuple[list[str], list[str]]:
    v, f, lines, names = f"<{lanes} x i32>", f"<{lanes} x float>", [], []
    for i in range(4):
        n = f"x{d}_{i}"
        lines += [f"%{n}a = shl {v} %o{d}, {_splat(lanes, 24 - 8 * i)}",
                  f"%{n}b = ashr {v} %{n}a, {_splat(lanes, 24)}",
                  f"%{n}e = sitofp {v} %{n}b to {f}",
                  f"%{n}f = fmul {f} %{n}e, %scale", f"%{n} = bitcast {f} %{n}f to {v}"]
        names.append(n)
    return lines, names


def _code_lines(lanes: int, d: int) -> tuple[list[str], list[str]]:
    """e4m3 bits moved to float32's places, which divides by 2^120 exactly: see `_factor_lines`.

    The sign and what follows it part by an arithmetic shift of words, of two codes at once.
    """
    v, f, w = f"<{lanes} x i32>", f"<{lanes} x float>", f"<{2 * lanes} x i16>"
    x, by = f"x{d}", _splat(2 * lanes, 4, 16)
    lines = [f"%{x}w = bitcast {v} %o{d} to {w}",
             f"%{x}u = shl {w} %{x}w, {_splat(2 * lanes, 8, 16)}",
             f"%{x}p = ashr {w} %{x}u, {by}", f"%{x}q = ashr {w} %{x}w, {by}",
             f"%{x}p2 = bitcast {w} %{x}p to {v}", f"%{x}q2 = bitcast {w} %{x}q to {v}",
             f"%{x}p0 = shl {v} %{x}p2, {_splat(lanes, 16)}",
             f"%{x}q0 = shl {v} %{x}q2, {_splat(lanes, 16)}"]
    names = []
    for i, of in enumerate(("p0", "q0", "p2", "q2")):
        n = f"{x}_{i}"
        lines += [f"%{n}c = and {v} %{x}{of}, {_splat(lanes, 0x87F00000 - (1 << 32))}",
                  f"%{n}e = bitcast {v} %{n}c to {f}",
                  f"%{n}f = fmul {f} %{n}e, %factor", f"%{n} = bitcast {f} %{n}f to {v}"]
        names.append(n)
    return lines, names


def _factor_lines(lanes: int) -> list[str]:
    """%factor: the scale times 2^120, or, where that overflows, the scale; %late: what is missing.

    Either product with a code is exact until its one rounding.
    """
    f = f"<{lanes} x float>"

    def splat(value: str) -> str:
        return "<" + ", ".join([f"float {value}"] * lanes) + ">"

    return [f"%size = call {f} @llvm.fabs.v{lanes}f32({f} %scale)",
            f"%small = fcmp olt {f} %size, {splat('256.0')}",
            f"%most = fmul {f} %scale, {splat(_POWER)}",
            f"%factor = select <{lanes} x i1> %small, {f} %most, {f} %scale",
            f"%late = select <{lanes} x i1> %small, {f} {splat('1.0')}, {f} {splat(_POWER)}",
            f"%all = call i1 @llvm.vector.reduce.and.v{lanes}i1(<{lanes} x i1> %small)"]


def _late_lines(lanes: int, step: int) -> list[str]:
    """What %late asks for, on all that was stored; hardly ever run."""
    f = f"<{lanes} x float>"
    return ["br i1 %all, label %end, label %rest", "rest:",
            f"%count = mul i64 %blocks, {4 * lanes}", "br label %again", "again:",
            "%z = phi i64 [0, %rest], [%znext, %fix]",
            "%zmore = icmp slt i64 %z, %count", "br i1 %zmore, label %fix, label %end", "fix:",
            f"%zat = mul i64 %z, {4 * step}", "%zto = getelementptr i8, ptr %dst, i64 %zat",
            f"%zwas = load {f}, ptr %zto, align 4", f"%zis = fmul {f} %zwas, %late",
            f"store {f} %zis, ptr %zto, align 4", "%znext = add i64 %z, 1", "br label %again",
            "end:"]


def _half_lines(lanes: int, d: int) -> list[str]:
    """%x{d}_0 and %x{d}_1: float32 of the lower and upper float16 of dword %o{d}."""
    v, lines = f"<{lanes} x i32>", [f"%x{d}_1d = lshr <{lanes} x i32> %o{d}, {_splat(lanes, 16)}"]
    for name, of in ((f"x{d}_0", f"o{d}"), (f"x{d}_1", f"x{d}_1d")):
        lines += [f"%{name}s = trunc {v} %{of} to <{lanes} x i16>",
                  f"%{name}h = bitcast <{lanes} x i16> %{name}s to <{lanes} x half>",
                  f"%{name}f = fpext <{lanes} x half> %{name}h to <{lanes} x float>",
                  f"%{name} = bitcast <{lanes} x float> %{name}f to {v}"]
    return lines


def _pair_lines(dtype: str, d: int) -> tuple[list[str], list[str]]:
    """Lines that make bfloat16 pairs of dword %o{d}, and the names of the results in order of K."""
    if dtype == "bfloat16":
        return [], [f"o{d}"]
    x, lines, names = f"y{d}", [], []
    if dtype == FP8:
        lines = [f"%{x} = bitcast <16 x i32> %o{d} to <64 x i8>", *_lookup_lines(x)]
    else:                            # codes of eight bits are exact in bfloat16: the upper halves
        for i in range(4):
            lines += [f"%{x}a{i} = shl <16 x i32> %o{d}, {_splat(16, 24 - 8 * i)}",
                      f"%{x}b{i} = ashr <16 x i32> %{x}a{i}, {_splat(16, 24)}",
                      f"%{x}c{i} = sitofp <16 x i32> %{x}b{i} to <16 x float>",
                      f"%{x}d{i} = bitcast <16 x float> %{x}c{i} to <16 x i32>"]
    for i in range(2):
        n = f"{x}_{i}"
        if dtype == FP8:
            codes = [4 * j + 2 * i + at for j in range(16) for at in range(2)]
            lines += [_interleaved(x, f"{n}v", codes),
                      f"%{n} = bitcast <64 x i8> %{n}v to <16 x i32>"]
        else:
            lines += [f"%{n}l = lshr <16 x i32> %{x}d{2 * i}, {_splat(16, 16)}",
                      f"%{n} = or <16 x i32> %{n}l, %{x}d{2 * i + 1}"]
        names.append(n)
    return lines, names


@cache
def panel_function(dtype: str, pairs: bool, lanes: int, step: int) -> str:
    """void(src, stride, last, dst, blocks, scale): `lanes` rows of a matrix become columns.

    A block is `lanes` dwords of each row; row min(j, last) becomes lane j. `stride` counts bytes;
    dst advances by `step` dwords with every element (or pair) of K. float32 results are scaled.
    """
    v = f"<{lanes} x i32>"
    shifted = dtype == FP8 and not pairs
    text = [f"declare <{lanes} x float> @llvm.fabs.v{lanes}f32(<{lanes} x float>)",
            f"declare i1 @llvm.vector.reduce.and.v{lanes}i1(<{lanes} x i1>)"] if shifted else []
    text += [f"define void @{panel_name(dtype, pairs)}(ptr %src, i64 %stride, i64 %last, ptr %dst, "
            f"i64 %blocks, <{lanes} x float> %scale) alwaysinline {{", "entry:"]
    for j in range(lanes):
        text += [f"%c{j} = icmp slt i64 {j}, %last", f"%m{j} = select i1 %c{j}, i64 {j}, i64 %last",
                 f"%f{j} = mul i64 %m{j}, %stride",
                 f"%q{j} = getelementptr i8, ptr %src, i64 %f{j}"]
    text += _factor_lines(lanes) if shifted else []
    text += ["br label %head", "head:",
             "%i = phi i64 [0, %entry], [%next, %loop]", "%more = icmp slt i64 %i, %blocks",
             "br i1 %more, label %loop, label %done", "loop:", f"%at = mul i64 %i, {4 * lanes}"]
    for j in range(lanes):
        text.append(f"%g{j} = getelementptr i8, ptr %q{j}, i64 %at")
    text += _loaded_lines(lanes) + _transpose_lines(lanes)
    made = [_pair_lines(dtype, d) if pairs else _float_lines(lanes, dtype, d) for d in range(lanes)]
    each = len(made[0][1])
    text.append(f"%to = mul i64 %i, {4 * step * lanes * each}")
    text.append("%base = getelementptr i8, ptr %dst, i64 %to")
    for d, (lines, names) in enumerate(made):
        text += lines
        for i, name in enumerate(names):
            text += [f"%t{d}_{i} = getelementptr i8, ptr %base, i64 {4 * step * (d * each + i)}",
                     f"store {v} %{name}, ptr %t{d}_{i}, align 4"]
    text += ["%next = add i64 %i, 1", "br label %head", "done:"]
    text += _late_lines(lanes, step) if shifted else []
    return "\n".join([*text, "ret void", "}"])
