"""e4m3 codes times a scale as LLVM IR: through float16, of which e4m3 is a shifted part.

To bfloat16 where no instruction rounds to it, through tables of a block: a code's last four bits
choose a rounded product, which the other exponent bits, two binades each, only move.
"""

from __future__ import annotations

from functools import cache

from .cast_llvm import mask, number, splat

STEP = 32                            # columns that the function takes at once
# 2^-100 and 2^101: no product is subnormal, which bfloat16 conversions would take for 0
SCALES = (0x0D800000, 0x72000000)
PAST = 32 << 20                      # bytes of output that caches do not keep anyway
_F, _I, _B, _W = "<16 x float>", "<16 x i32>", "<32 x i8>", "<32 x i16>"
_LOOKUP = "llvm.x86.avx2.pshuf.b"


def _rounded(v: str, dtype: str, bf16: bool) -> tuple[list[str], str]:
    """%{v}r = the products %v in `dtype`, and its type."""
    if dtype == "float32":
        return [f"%{v}r = bitcast {_F} %{v} to {_I}"], _I
    if dtype == "float16":
        return [f"%{v}r = fptrunc {_F} %{v} to <16 x half>"], "<16 x half>"
    if bf16:
        return [f"%{v}r = fptrunc {_F} %{v} to <16 x bfloat>"], "<16 x bfloat>"
    # to nearest even in integers; there is no NaN among a table's products
    return [f"%{v}i = bitcast {_F} %{v} to {_I}", f"%{v}h = lshr {_I} %{v}i, {splat(16, 'i32')}",
            f"%{v}o = and {_I} %{v}h, {splat(1, 'i32')}",
            f"%{v}p = add {_I} %{v}i, {splat(0x7FFF, 'i32')}", f"%{v}s = add {_I} %{v}p, %{v}o",
            f"%{v}u = lshr {_I} %{v}s, {splat(16, 'i32')}",
            f"%{v}r = trunc {_I} %{v}u to <16 x i16>"], "<16 x i16>"


def _store(p: str, j: int, kind: str, value: str, size: int, align: int) -> list[str]:
    """The j-th 16 columns from %{p}i on; past the caches if `align` is more than an element."""
    past = align > size
    return [f"%{p}a{j} = add i64 %{p}i, {16 * j}", f"%{p}b{j} = mul i64 %{p}a{j}, {size}",
            f"%{p}to{j} = getelementptr i8, ptr %w, i64 %{p}b{j}",
            f"store {kind} {value}, ptr %{p}to{j}, align {align}" + ", !nontemporal !0" * past]


def _product_lines(dtype: str, bf16: bool, p: str, align: int) -> list[str]:
    """The body of a loop: bits moved by seven are a float16 of value / 256; NaN is put in there."""
    lines = [f"%{p}from = getelementptr i8, ptr %q, i64 %{p}i",
             f"%{p}c = load {_B}, ptr %{p}from, align 1", f"%{p}x = sext {_B} %{p}c to {_W}",
             f"%{p}m = shl {_W} %{p}x, {splat(7, 'i16', 32)}",
             f"%{p}h = and {_W} %{p}m, {splat(0xBF80 - 65536, 'i16', 32)}",
             f"%{p}t = and {_W} %{p}m, {splat(0x3F80, 'i16', 32)}",
             f"%{p}k = icmp eq {_W} %{p}t, {splat(0x3F80, 'i16', 32)}",
             f"%{p}s = select <32 x i1> %{p}k, {_W} {splat(0x7E00, 'i16', 32)}, {_W} %{p}h",
             f"%{p}f = bitcast {_W} %{p}s to <32 x half>"]
    for j in range(2):
        v = f"{p}v{j}"
        part, kind = _rounded(v, dtype, bf16)
        lines += [f"%{v}f = shufflevector <32 x half> %{p}f, <32 x half> poison, "
                  f"{mask(list(range(16 * j, 16 * j + 16)))}",
                  f"%{v}g = fpext <16 x half> %{v}f to {_F}", f"%{v} = fmul {_F} %{v}g, %factor",
                  *part, *_store(p, j, kind, f"%{v}r", 4 if dtype == "float32" else 2,
                                 align)]
    return lines


def _table_lines() -> list[str]:
    """%low0, %high0: the bytes of 16 products of codes below 16; %low1, %high1: of the next 16.

    The latter's high bytes less 1, for a code's bits from 4 to 6 are added.
    """
    values = [[i * 2.0**-9 for i in range(16)],
              [(8 + i % 8) * 2.0**(i // 8 - 8) for i in range(16)]]
    lines = []
    for t, codes in enumerate(values):
        part, _ = _rounded(f"t{t}", "bfloat16", False)
        vector = "<" + ", ".join(f"float {number(v)}" for v in codes) + ">"
        lines += [f"%t{t} = fmul {_F} {vector}, %factor", *part,
                  f"%l{t} = trunc <16 x i16> %t{t}r to <16 x i8>",
                  f"%g{t} = lshr <16 x i16> %t{t}r, {splat(8, 'i16')}",
                  f"%e{t} = sub <16 x i16> %g{t}, {splat(t, 'i16')}",
                  f"%h{t} = trunc <16 x i16> %e{t} to <16 x i8>"]
        lines += [f"%{name}{t} = shufflevector <16 x i8> %{name[0]}{t}, <16 x i8> poison, "
                  f"{mask(2 * list(range(16)))}" for name in ("low", "high")]
    return lines


def _lookup_lines(p: str, align: int) -> list[str]:
    """The body of a loop: two look-ups for each byte, one of them for codes below 16."""
    def look(to: str, table: str, at: str) -> str:
        return f"%{p}{to} = call {_B} @{_LOOKUP}({_B} {table}, {_B} %{p}{at})"

    high = "<" + ", ".join(f"i8 {(h & 7) - (h & 8) * 16}" for h in 2 * list(range(16))) + ">"
    order = [*range(8), *range(16, 24), *range(8, 16), *range(24, 32)]
    lines = [f"%{p}from = getelementptr i8, ptr %q, i64 %{p}i",
             f"%{p}codes = load {_B}, ptr %{p}from, align 1",
             # the order that unpacking halves below puts right again
             f"%{p}c = shufflevector {_B} %{p}codes, {_B} poison, {mask(order)}",
             f"%{p}n = and {_B} %{p}c, {splat(15, 'i8', 32)}",
             f"%{p}cw = bitcast {_B} %{p}c to <16 x i16>",
             f"%{p}cs = lshr <16 x i16> %{p}cw, {splat(4, 'i16')}",
             f"%{p}cb = bitcast <16 x i16> %{p}cs to {_B}",
             f"%{p}u = and {_B} %{p}cb, {splat(15, 'i8', 32)}", look("moved", high, "u"),
             f"%{p}z = and {_B} %{p}c, {splat(0x70, 'i8', 32)}",
             f"%{p}few = icmp eq {_B} %{p}z, zeroinitializer",
             f"%{p}m = and {_B} %{p}c, {splat(0x7F, 'i8', 32)}",
             f"%{p}k = icmp eq {_B} %{p}m, {splat(0x7F, 'i8', 32)}",
             f"%{p}nan = sext <32 x i1> %{p}k to {_B}"]
    for name in ("low", "high"):
        lines += [look(f"{name}0", f"%{name}0", "n"), look(f"{name}1", f"%{name}1", "n"),
                  f"%{p}{name} = select <32 x i1> %{p}few, {_B} %{p}{name}0, {_B} %{p}{name}1"]
    lines += [f"%{p}sum = add {_B} %{p}high, %{p}moved", f"%{p}hn = or {_B} %{p}sum, %{p}nan",
              f"%{p}ln = or {_B} %{p}low, %{p}nan"]
    for j in range(2):
        places = [16 * half + 8 * j + k + 32 * byte
                  for half in range(2) for k in range(8) for byte in range(2)]
        lines += [f"%{p}w{j} = shufflevector {_B} %{p}ln, {_B} %{p}hn, {mask(places)}",
                  *_store(p, j, _B, f"%{p}w{j}", 2, align)]
    return lines


@cache
def widen_function(dtype: str, bf16: bool, lanes: int) -> str:
    """void expertile_widen(q, w, n, scale, past): w = q * scale for n columns; NaN gives NaN.

    Where `past` is not 0 and w is aligned to vectors, it is written past the caches.
    """
    tables = dtype == "bfloat16" and not bf16
    size, vector = 4 if dtype == "float32" else 2, 4 * lanes
    loops = []
    for p, align in (("c", size), ("p", vector)):
        body = _lookup_lines(p, align) if tables else _product_lines(dtype, bf16, p, align)
        loops += [f"{p}loop:", f"%{p}i = phi i64 [0, %entry], [%{p}next, %{p}loop]",
                  *body,
                  f"%{p}next = add i64 %{p}i, {STEP}", f"%{p}more = icmp slt i64 %{p}next, %n",
                  f"br i1 %{p}more, label %{p}loop, label %done"]
    by = "fmul float %scale, 1.0" if tables else "fmul float %scale, 256.0"
    declared = [f"declare {_B} @{_LOOKUP}({_B}, {_B})"] if tables else []
    return "\n".join([
        *declared,
        "define void @expertile_widen(ptr %q, ptr %w, i64 %n, float %scale, i32 %past) "
        "alwaysinline {", "entry:", f"%by = {by}",
        f"%one = insertelement {_F} poison, float %by, i32 0",
        f"%factor = shufflevector {_F} %one, {_F} poison, {_I} zeroinitializer",
        *(_table_lines() if tables else []), "%place = ptrtoint ptr %w to i64",
        f"%off = and i64 %place, {vector - 1}", "%even = icmp eq i64 %off, 0",
        "%asked = icmp ne i32 %past, 0", "%both = and i1 %even, %asked",
        "br i1 %both, label %ploop, label %cloop", *loops, "done:", "ret void", "}",
        # what went past the caches is not ordered with what follows
        "declare void @llvm.x86.sse.sfence()", "define void @expertile_written() alwaysinline {",
        "call void @llvm.x86.sse.sfence()", "ret void", "}",
        "!0 = !{i32 1}"])
