"""The position of the largest of many keys as LLVM IR, in one pass."""

from __future__ import annotations

from functools import cache

from .cast_llvm import splat

STEP = 16                            # keys that the function takes at once
_LEAST = -(1 << 31)
_NONE = (1 << 31) - 1
_I = "<16 x i32>"


def _spread(to: str, value: str) -> list[str]:
    """%to = a scalar in all lanes."""
    return [f"%{to}0 = insertelement {_I} poison, i32 {value}, i32 0",
            f"%{to} = shufflevector {_I} %{to}0, {_I} poison, {_I} zeroinitializer"]


@cache
def best_function() -> str:
    """i32 expertile_best(keys, n): where the largest int32 is, the first of equals.

    Each lane keeps its largest key and in which step it saw it first; the lanes compete at the end.
    The largest has to be above -2^31.
    """
    places = "<" + ", ".join(f"i32 {i}" for i in range(STEP)) + ">"
    return "\n".join((
        f"declare i32 @llvm.vector.reduce.smax.v16i32({_I})",
        f"declare i32 @llvm.vector.reduce.smin.v16i32({_I})",
        "define i32 @expertile_best(ptr %keys, i64 %n) alwaysinline {",
        "entry:", "br label %loop", "loop:", "%i = phi i64 [0, %entry], [%next, %loop]",
        f"%top = phi {_I} [{splat(_LEAST, 'i32')}, %entry], [%top_next, %loop]",
        f"%at = phi {_I} [zeroinitializer, %entry], [%at_next, %loop]",
        "%from = getelementptr i32, ptr %keys, i64 %i", f"%v = load {_I}, ptr %from, align 4",
        "%w = trunc i64 %i to i32", *_spread("step", "%w"), f"%above = icmp sgt {_I} %v, %top",
        f"%top_next = select <16 x i1> %above, {_I} %v, {_I} %top",
        f"%at_next = select <16 x i1> %above, {_I} %step, {_I} %at",
        f"%next = add i64 %i, {STEP}", "%more = icmp slt i64 %next, %n",
        "br i1 %more, label %loop, label %done", "done:",
        f"%most = call i32 @llvm.vector.reduce.smax.v16i32({_I} %top_next)",
        *_spread("all", "%most"), f"%is = icmp eq {_I} %top_next, %all",
        f"%place = add {_I} %at_next, {places}",
        f"%known = select <16 x i1> %is, {_I} %place, {_I} {splat(_NONE, 'i32')}",
        f"%r = call i32 @llvm.vector.reduce.smin.v16i32({_I} %known)", "ret i32 %r", "}"))
