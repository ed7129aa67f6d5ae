"""Few rows times weights of eight bits: a vector of codes becomes four vectors of float32.

Each dword holds four codes of one column; its bytes give four float32 vectors, of which lane i
holds element 4 i + j of K. An FP8 code moved to the top of a float32 and four places down again is
its value times 2^-120, exact for all finite codes (NaN reads as 480): 13 instructions for 32 codes
with their products, where sign extension and a conversion from float16 take 20. An int8 code moved
to the top of an int32 is its value times 2^24, and float32 holds it: 14 instructions.

The rows of X are put into the same order before, and brought to 2^60 (for int8 2^-40) by a power of
two each, so that no product is subnormal, or infinite under a scale, whatever the row's size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from .emit import Buffer, Expr, put, scope
from .fp8 import floats, magnitude_bits
from .gemm_stages import each_row
from .registers import local
from .tiles import FP8, QUANTISED, Tiles

CODES = 4                            # in a dword
# what is left of 2^120, or comes with 2^24, beside the row's own factor
UNIT = {FP8: 2.0**60, "int8": 2.0**16}
_MASK = 0x87F00000 - (1 << 32)       # sign, and exponent and mantissa of e4m3, in a float32
_TOP = 0xFF000000 - (1 << 32)        # an int8 code in an int32
_LEAST, _MOST, _SHIFT = 60, 254, 23  # exponents of a row
_BIAS = {FP8: 60 + 2 * 127, "int8": -40 + 2 * 127}


@dataclass(frozen=True)
class Few:
    """Rows in the order of the bytes, and what each was divided by, times 2^60."""

    rows: Buffer                     # [rows, K] float32
    factors: Buffer                  # [rows] float32


@dataclass(frozen=True)
class Folded(Few):
    """The same, and a copy under the scales of one block of columns."""

    scaled: Buffer                   # [rows of a tile, K] float32

    def fold(self, g: Tiles, first: Expr, m: int, scale: Callable[[Expr], Expr],
             unit_of: Buffer) -> None:
        """scaled[i] = rows[first + i] * scale(K block) / unit_of[0], for i below m.

        unit_of[0] is the power of two of the largest scale.
        """
        with scope("fold"):
            top, by, s = local(1, "int32"), local(1), local(1)
            put(top, 0, T.int32(1 << _SHIFT))
            with T.serial(g.k_blocks) as kb:
                put(top, 0, T.max(top[0], magnitude_bits(scale(kb))))
            put(top, 0, T.min(top[0] >> _SHIFT, T.int32(_MOST - 1)))
            put(unit_of, 0, floats(top[0] << _SHIFT))
            put(by, 0, floats((T.int32(_MOST) - top[0]) << _SHIFT))
            with T.serial(g.k_blocks) as kb:
                put(s, 0, scale(kb) * by[0])
                length = (g.step_k if g.k % g.step_k == 0
                          else T.min(g.step_k, g.k - kb * g.step_k))
                with T.serial(length // g.run) as v:
                    k = T.Ramp(kb * g.step_k + v * g.run, 1, g.run)
                    for i in range(m):
                        put(self.scaled, (i, k), self.rows[first + i, k] * T.Broadcast(
                            s[0], g.run))


def name(byte: int) -> str:
    """The function that makes float32 of one byte of every dword."""
    return f"expertile_byte{byte}"


def _body(lanes: int, byte: int, dtype: str) -> list[str]:
    """%f: float32 of one byte of every dword of %x, divided as said above."""
    codes, words = f"<{CODES * lanes} x i8>", f"<{2 * lanes} x i16>"
    dwords = f"<{lanes} x i32>"
    if dtype == "int8":
        return [f"%w = bitcast {codes} %x to {dwords}",
                f"%d = shl {dwords} %w, {_splat(lanes, 32, 8 * (3 - byte))}",
                f"%e = and {dwords} %d, {_splat(lanes, 32, _TOP)}",
                f"%f = sitofp {dwords} %e to <{lanes} x float>"]
    return [f"%w = bitcast {codes} %x to {words}",
            f"%a = shl {words} %w, {_splat(2 * lanes, 16, 8 * (1 - byte % 2))}",
            f"%b = ashr {words} %a, {_splat(2 * lanes, 16, 4)}",
            f"%c = bitcast {words} %b to {dwords}",
            f"%d = shl {dwords} %c, {_splat(lanes, 32, 16 * (1 - byte // 2))}",
            f"%e = and {dwords} %d, {_splat(lanes, 32, _MASK)}",
            f"%f = bitcast {dwords} %e to <{lanes} x float>"]


def functions(lanes: int, dtype: str) -> str:
    """The four functions, the fence, and the one that orders 4 * lanes elements of a row."""
    text, codes, many = [], f"<{CODES * lanes} x i8>", f"<{CODES * lanes} x float>"
    for byte in range(CODES):
        text += [f"define <{lanes} x float> @{name(byte)}({codes} %x) alwaysinline {{",
                 *_body(lanes, byte, dtype), f"ret <{lanes} x float> %f", "}"]
    order = ", ".join(f"i32 {CODES * i + j}" for j in range(CODES) for i in range(lanes))
    return "\n".join([*text, f"define {many} @expertile_byte_order({many} %x) alwaysinline {{",
                      f"%r = shufflevector {many} %x, {many} poison, "
                      f"<{CODES * lanes} x i32> <{order}>", f"ret {many} %r", "}"])


def byte_functions(*gemms: Tiles) -> tuple[str, ...]:
    """What those of some GEMMs call that take codes by the byte."""
    return next(((functions(g.lanes, g.dtype),) for g in gemms if g.quarters), ())


def _splat(lanes: int, bits: int, value: int) -> str:
    return "<" + ", ".join([f"i{bits} {value}"] * lanes) + ">"


def serves(dtype: str, lanes: int, k: int, block_k: int, pairs: bool) -> bool:
    """Whether weights [*, K] can be taken so."""
    run = CODES * lanes
    whole = k % run == 0 and min(block_k, k) % run == 0
    return dtype in QUANTISED and not pairs and lanes >= 8 and whole


def prepare(g: Tiles, items: Expr, span: Callable[[Expr], tuple[Expr, Expr]], X: Buffer,
            x_row: Callable[[Expr], Expr], few: Few) -> None:
    """Order the rows of all items that are streamed: X[x_row(position)] to few's position.

    span(item) is its first position and the number of its rows.
    """
    def item(i: Expr) -> None:
        first, count = span(i)
        with T.If(count <= g.panel_rows), T.Then(), T.serial(count) as r:
            _row(g, X, x_row(first + r), few, first + r)

    each_row(items, g.panel_rows * g.k, item)


def _row(g: Tiles, X: Buffer, row: Expr, few: Few, to: Expr) -> None:
    """few[to] = X[row], which may be the same place."""
    lanes, run = g.lanes, CODES * g.lanes
    with scope("row"):
        tops, exponent, ordered = local(lanes, "int32"), local(1, "int32"), local(run)
        with T.vectorized(lanes) as lane:
            put(tops, lane, T.int32(0))
        with T.serial(g.k // lanes) as v, T.vectorized(lanes) as lane:
            put(tops, lane, T.max(tops[lane], magnitude_bits(X[row, v * lanes + lane])))
        put(exponent, 0, tops[0])
        for i in range(1, lanes):
            put(exponent, 0, T.max(exponent[0], tops[i]))
        most = T.int32(min(_MOST, _BIAS[g.dtype] - 1))
        put(exponent, 0, T.min(T.max(exponent[0] >> _SHIFT, T.int32(_LEAST)), most))
        put(few.factors, to, floats(exponent[0] << _SHIFT))
        by = T.Broadcast(floats((T.int32(_BIAS[g.dtype]) - exponent[0]) << _SHIFT), run)
        with T.serial(g.k // run) as v:
            k = T.Ramp(v * run, 1, run)
            put(ordered, T.Ramp(0, 1, run), T.call_extern(
                f"float32x{run}", "expertile_byte_order", X[row, k] * by))
            put(few.rows, (to, k), ordered[T.Ramp(0, 1, run)])
