"""e4m3 codes times a scale as LLVM IR: through float16, of which e4m3 is a shifted part."""

from __future__ import annotations

from functools import cache

from .cast_llvm import mask, splat

STEP = 32                            # columns that the function takes at once
# 2^-100 and 2^101: no product is subnormal, which bfloat16 conversions would take for 0
SCALES = (0x0D800000, 0x72000000)
_F, _I = "<16 x float>", "<16 x i32>"


def _rounded(v: str, dtype: str, bf16: bool) -> tuple[list[str], str]:
    """%{v}r = the products %v in `dtype`, and its type."""
    if dtype == "float32":
        return [f"%{v}r = bitcast {_F} %{v} to {_I}"], _I
    if dtype == "float16":
        return [f"%{v}r = fptrunc {_F} %{v} to <16 x half>"], "<16 x half>"
    if bf16:
        return [f"%{v}r = fptrunc {_F} %{v} to <16 x bfloat>"], "<16 x bfloat>"
    # to nearest even in integers; a NaN from float16 is quiet, with room for the carry
    return [f"%{v}i = bitcast {_F} %{v} to {_I}", f"%{v}h = lshr {_I} %{v}i, {splat(16, 'i32')}",
            f"%{v}o = and {_I} %{v}h, {splat(1, 'i32')}",
            f"%{v}p = add {_I} %{v}i, {splat(0x7FFF, 'i32')}", f"%{v}s = add {_I} %{v}p, %{v}o",
            f"%{v}u = lshr {_I} %{v}s, {splat(16, 'i32')}",
            f"%{v}r = trunc {_I} %{v}u to <16 x i16>"], "<16 x i16>"


@cache
def widen_function(dtype: str, bf16: bool) -> str:
    """void expertile_widen(q, w, n, scale): w = q * scale for n columns; NaN codes give NaN.

    e4m3 bits moved by seven are a float16 of value / 256; the code for NaN is replaced there.
    """
    words = "<32 x i16>"
    lines = ["%from = getelementptr i8, ptr %q, i64 %i", "%c = load <32 x i8>, ptr %from, align 1",
             f"%x = sext <32 x i8> %c to {words}", f"%m = shl {words} %x, {splat(7, 'i16', 32)}",
             f"%h = and {words} %m, {splat(0xBF80 - 65536, 'i16', 32)}",
             f"%t = and {words} %m, {splat(0x3F80, 'i16', 32)}",
             f"%k = icmp eq {words} %t, {splat(0x3F80, 'i16', 32)}",
             f"%s = select <32 x i1> %k, {words} {splat(0x7E00, 'i16', 32)}, {words} %h",
             f"%f = bitcast {words} %s to <32 x half>"]
    size = 4 if dtype == "float32" else 2
    for j in range(2):
        part, kind = _rounded(f"v{j}", dtype, bf16)
        lines += [f"%f{j} = shufflevector <32 x half> %f, <32 x half> poison, "
                  f"{mask(list(range(16 * j, 16 * j + 16)))}",
                  f"%g{j} = fpext <16 x half> %f{j} to {_F}",
                  f"%v{j} = fmul {_F} %g{j}, %factor", *part,
                  f"%a{j} = add i64 %i, {16 * j}", f"%b{j} = mul i64 %a{j}, {size}",
                  f"%to{j} = getelementptr i8, ptr %w, i64 %b{j}",
                  f"store {kind} %v{j}r, ptr %to{j}, align {size}"]
    return "\n".join([
        "define void @expertile_widen(ptr %q, ptr %w, i64 %n, float %scale) alwaysinline {",
        "entry:", "%by = fmul float %scale, 256.0",
        f"%one = insertelement {_F} poison, float %by, i32 0",
        f"%factor = shufflevector {_F} %one, {_F} poison, {_I} zeroinitializer", "br label %loop",
        "loop:", "%i = phi i64 [0, %entry], [%next, %loop]", *lines, f"%next = add i64 %i, {STEP}",
        "%more = icmp slt i64 %next, %n", "br i1 %more, label %loop, label %done", "done:",
        "ret void", "}"])
