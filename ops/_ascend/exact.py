"""float32 as if computed in float64, which the vector cores lack: with exact remainders."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from .fp8 import float_bits
from .tile import Kernel

_EXPONENT = 0x7F800000
_POWER_SUM = 0x7F000000              # bits of 2^n plus bits of 2^-n
_SMALLEST, _LARGEST = 2.0**-40, 2.0**100         # of the powers that rows are scaled by
_SPLITTER = 4097.0                   # 2^12 + 1: cuts 24 bits into two halves (Dekker 1971)


def halves(number: float) -> tuple[float, float]:
    """A float64 as a float32 and what that leaves."""
    high: float = struct.unpack("f", struct.pack("f", number))[0]
    return high, number - high


def _like(k: Kernel, x: Any, value: Callable[..., Any]) -> Any:
    return k.new([int(n) for n in x.shape], "float32", value)


def total(k: Kernel, a: Any, b: Any) -> tuple[Any, Any]:
    """a + b rounded, and what rounding took (Knuth, TAOCP 2, 4.2.2)."""
    s = _like(k, a, lambda *i: a[i] + b[i])
    of_b = _like(k, a, lambda *i: s[i] - a[i])
    return s, _like(k, a, lambda *i: (a[i] - (s[i] - of_b[i])) + (b[i] - of_b[i]))


def _split(k: Kernel, a: Any) -> tuple[Any, Any]:
    wide = _like(k, a, lambda *i: a[i] * T.float32(_SPLITTER))
    high = _like(k, a, lambda *i: wide[i] - (wide[i] - a[i]))
    return high, _like(k, a, lambda *i: a[i] - high[i])


def product(k: Kernel, a: Any, b: Any, short: bool = False) -> tuple[Any, Any]:
    """a * b rounded, and what rounding took (Dekker 1971); `short`: a has 12 bits or fewer."""
    p = _like(k, a, lambda *i: a[i] * b[i])
    bh, bl = _split(k, b)
    if short:
        return p, _like(k, a, lambda *i: (a[i] * bh[i] - p[i]) + a[i] * bl[i])
    ah, al = _split(k, a)
    return p, _like(k, a, lambda *i: ((ah[i] * bh[i] - p[i]) + ah[i] * bl[i] + al[i] * bh[i])
                    + al[i] * bl[i])


def rotated(k: Kernel, a: Any, b: Any, c: Any, d: Any, plus: bool, short: bool) -> Any:
    """a * b - c * d, or their sum, rounded once; `short`: a and c have 12 bits or fewer."""
    first, first_rest = product(k, a, b, short)
    second, second_rest = product(k, c, d, short)
    if not plus:
        second, second_rest = (_like(k, x, lambda *i, x=x: x[i] * T.float32(-1))
                               for x in (second, second_rest))
    s, rest = total(k, first, second)
    small = _like(k, a, lambda *i: rest[i] + (first_rest[i] + second_rest[i]))
    # -0 plus 0 would be 0
    return _like(k, a, lambda *i: T.Select(small[i] == T.float32(0), s[i], s[i] + small[i]))


def inverse_root_mean_square(k: Kernel, parts: Sequence[Any], eps: tuple[Any, Any], short: bool
                             ) -> Any:
    """1 / sqrt(mean of x^2 + eps) of the rows of x = parts side by side [rows, width of the part].

    Rows are scaled by powers of two; then squares are cut into slices whose sums are exact in any
    order (Rump, Ogita and Oishi, Accurate floating-point summation, 2008), and one Newton step
    with an exact remainder rounds the root: right but where float64 all but ties. `eps` and what
    float32 leaves of it are scalars; `short`: x has 12 bits or fewer.
    """
    rows, width = int(parts[0].shape[0]), sum(int(x.shape[1]) for x in parts)

    def vector(value: Callable[..., Any]) -> Any:
        return k.new((rows,), "float32", value)

    top = k.fill((rows,), "float32", 0)
    for x in parts:
        one = k.fill((rows,), "float32", 0)
        k.reduce("max", one, tuple(int(n) for n in x.shape), lambda i, j, x=x: T.fabs(x[i, j]))
        top = vector(lambda i, top=top, one=one: T.max(top[i], one[i]))
    held = vector(lambda i: T.min(T.max(top[i], T.float32(_SMALLEST)), T.float32(_LARGEST)))
    down = vector(lambda i: T.reinterpret("float32", T.int32(_POWER_SUM) - T.bitwise_and(
        float_bits(held[i]), T.int32(_EXPONENT))))
    sums = _sums_of_squares(k, parts, down, width, short)
    high, low = total(k, sums[0], sums[1])
    low = vector(lambda i, low=low: low[i] + sums[2][i])
    share, share_rest = halves(1.0 / width)
    if share_rest:
        wide, rest = product(k, high, k.fill((rows,), "float32", share))
        low = vector(lambda i, low=low, high=high: low[i] * T.float32(share)
                     + (high[i] * T.float32(share_rest) + rest[i]))
        high = wide
    else:
        high, low = (vector(lambda i, x=x: x[i] * T.float32(share)) for x in (high, low))
    eps_high, eps_low = (vector(lambda i, e=e: down[i] * down[i] * e) for e in eps)
    high, rest = total(k, high, eps_high)
    low = vector(lambda i, low=low: low[i] + (rest[i] + eps_low[i]))
    high, low = total(k, high, low)
    root = vector(lambda i: T.sqrt(high[i]))
    guess = vector(lambda i: T.float32(1) / root[i])
    square, square_rest = product(k, guess, guess)
    one, one_rest = product(k, high, square)
    gap = vector(lambda i: ((T.float32(1) - one[i]) - one_rest[i])
                 - (high[i] * square_rest[i] + low[i] * square[i]))
    found = vector(lambda i: guess[i] + guess[i] * gap[i] * T.float32(0.5))
    return vector(lambda i: found[i] * down[i])


def _sums_of_squares(k: Kernel, parts: Sequence[Any], down: Any, width: int, short: bool
                     ) -> tuple[Any, Any, Any]:
    """Sums of (x * down)^2 by slices: two that are exact, and the small rest."""
    rows = int(parts[0].shape[0])
    bits = 24 - (width - 1).bit_length()         # so many of each square sum up exactly
    sums = [k.fill((rows,), "float32", 0) for _ in range(3)]
    for x in parts:
        shape = tuple(int(n) for n in x.shape)
        scaled = _like(k, x, lambda i, j, x=x: x[i, j] * down[i])            # below 2
        if short:
            left, rest = _like(k, x, lambda i, j, s=scaled: s[i, j] * s[i, j]), None
        else:
            left, rest = product(k, scaled, scaled)
        for s in range(2):
            # next to this number float32 steps by a slice's unit: adding it rounds for us
            magic = T.float32(1.5 * 2.0**23 * 4.0 * 2.0**(-bits * (s + 1)))
            piece = _like(k, x, lambda i, j, left=left, magic=magic: (left[i, j] + magic) - magic)
            _add_sum(k, sums, s, piece, shape)
            left = _like(k, x, lambda i, j, left=left, piece=piece: left[i, j] - piece[i, j])
        if rest is not None:
            left = _like(k, x, lambda i, j, left=left, rest=rest: left[i, j] + rest[i, j])
        _add_sum(k, sums, 2, left, shape)
    return sums[0], sums[1], sums[2]


def _add_sum(k: Kernel, sums: list[Any], which: int, x: Any, shape: tuple[int, ...]) -> None:
    one, old = k.fill(shape[:1], "float32", 0), sums[which]
    k.reduce("add", one, shape, lambda i, j: x[i, j])
    sums[which] = k.new(shape[:1], "float32", lambda i: old[i] + one[i])
