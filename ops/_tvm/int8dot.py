"""Dot products of signed bytes: AVX-512 VNNI, Armv8.2 sdot, AMX tiles, and x86's of int16 pairs.

Everything is an LLVM intrinsic of its own. LLVM finds none of these instructions in plain vector
code, and TVM's own tensor intrinsic for VNNI does not pass this LLVM (docs/facts.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

Expr = Any                           # a TVM expression
SIGNS = 0x80808080 - (1 << 32)       # the sign bit of four bytes
TILE = 16                            # rows of an AMX tile of 64 bytes a row
_MADD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd",
         16: "llvm.x86.avx512.pmaddw.d.512"}
_KEEP = "expertile_keep"
# palette 1; eight tiles of 64 bytes a row and 16 rows (Intel SDM, LDTILECFG)
_TILE_CONFIG = (1, 0, 0, 0, *[0x00400040] * 4, 0, 0, 0, 0, 0x10101010, 0x10101010, 0, 0)


def kind_of(dots: Sequence[str]) -> str | None:
    """Which of a CPU's dot products takes int8 codes: "amx", "vnni", "sdot", "madd" or None.

    "madd" takes codes widened to int16, two a lane: exact for all of them, -128 included.
    """
    return next((kind for kind in ("amx", "vnni", "sdot", "madd") if kind in dots), None)


def is_offset(kind: str) -> bool:
    """Whether `dot` takes its first factor plus 128.

    VNNI multiplies unsigned by signed bytes: (x + 128) . y = x . y + 128 * sum(y), in int32 that
    wraps around, so the difference is exact whatever the length.
    """
    return kind not in ("sdot", "madd")


def dot(kind: str, total: Expr, x: Expr, y: Expr, lanes: int) -> Expr:
    """total + the sum of four products in every lane of int8 vectors, of two of int16 ("madd")."""
    if kind == "madd":
        return total + T.call_llvm_pure_intrin(f"int32x{lanes}", _MADD[lanes], x, y)
    if kind == "sdot":
        return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", total, x, y)
    return T.call_llvm_pure_intrin(f"int32x{lanes}", f"llvm.x86.avx512.vpdpbusd.{32 * lanes}",
                                   total, x, y)


def kept(kind: str, total: Expr, lanes: int) -> Expr:
    """`total`, and LLVM may not add up in another order ("madd").

    It would sum all products of a block at its end, and spill them until then.
    """
    return T.call_extern(f"int32x{lanes}", _KEEP, total) if kind == "madd" else total


def functions(lanes: int) -> str:
    """The IR that `kept` calls."""
    v = f"<{lanes} x i32>"
    return "\n".join((f"define {v} @{_KEEP}({v} %x) alwaysinline {{",
                      f'%r = call {v} asm "", "=x,0"({v} %x)', f"ret {v} %r", "}"))


def as_codes(kind: str, words: Expr, lanes: int) -> Expr:
    """A vector of int32 as what `dot` takes."""
    return T.reinterpret(f"int16x{2 * lanes}" if kind == "madd" else f"int8x{4 * lanes}", words)


def word_at(buffer: Any, *index: Expr) -> Expr:
    """Four bytes from an index on, as int32."""
    *front, last = index
    return T.reinterpret("int32", buffer[(*front, T.Ramp(last, 1, 4))])


def tail_word(buffer: Any, end: Expr, offset: bool, *index: Expr) -> Expr:
    """As `word_at` (plus 128 a byte, if offset), but bytes from column `end` on are 0, unread."""
    *front, last = index
    total: Expr = T.int32(0)
    for i in range(4):
        byte = T.Cast("int32", buffer[(*front, T.min(last + i, end - 1))]) & T.int32(255)
        byte = byte ^ T.int32(128) if offset else byte
        total = total | (T.Select(last + i < end, byte, T.int32(0)) << (8 * i))
    return total


def _do(name: str, *args: Expr) -> None:
    T.evaluate(T.call_llvm_intrin("void", name, *args))


def amx_start(config: Any) -> None:
    """Set this thread's tiles up; `config` is a buffer of 16 int32."""
    for i, word in enumerate(_TILE_CONFIG):
        T.buffer_store(config, T.int32(word), [i])
    _do("llvm.x86.ldtilecfg", T.address_of(config[0]))


def amx_end() -> None:
    """Give the tiles back."""
    _do("llvm.x86.tilerelease")


def amx_zero(tile: int) -> None:
    """tile = 0."""
    _do("llvm.x86.tilezero", T.int8(tile))


def amx_load(tile: int, address: Expr, stride: Expr) -> None:
    """tile = 16 rows of 64 bytes."""
    _do("llvm.x86.tileloadd64", T.int8(tile), address, T.Cast("int64", stride))


def amx_dot(total: int, weights: int, a: int) -> None:
    """total[n, m] += sum over k of weights[n, k] * a[k, m], with four k in each int32 of a."""
    _do("llvm.x86.tdpbssd", T.int8(total), T.int8(weights), T.int8(a))


def amx_store(tile: int, address: Expr, stride: int) -> None:
    """16 rows of 64 bytes = tile."""
    _do("llvm.x86.tilestored64", T.int8(tile), address, T.int64(stride))
