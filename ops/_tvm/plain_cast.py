"""Casts of a group column by column, as TVM statements: of any width and any values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm.script import tirx as T

from ..fp8_format import E4M3, E5M2, Format
from ..int8 import INT8_MAX
from . import fp8
from .fp8 import bits, floats, magnitude_bits
from .int8_cast import int8_code
from .tasks import each_vector

Load = Callable[[Any], Any]          # column -> its float32 value


@dataclass(frozen=True)
class Codes:
    """How values become codes; `ue8m0` asks for scales that are powers of two."""

    dtype: str                       # of a code in memory
    scale_of: Callable[[Any, bool], Any]         # (largest magnitude's bits, ue8m0) -> scale
    ratio: Callable[[Any, Any, bool], Any]       # (value, scale, ue8m0) -> what `encode` takes
    encode: Callable[[Any, Any], Any]            # (ratio, scale) -> the code


def _fp8(to: Format) -> Codes:
    return Codes("uint8", partial(fp8.scale_of, to=to), fp8.scaled,
                 lambda ratio, scale: T.Cast("uint8", fp8.encode(ratio, to)))


FP8 = {to: _fp8(to) for to in (E4M3, E5M2)}
INT8 = Codes("int8", lambda top, ue8m0: floats(top) / T.float32(INT8_MAX),
             lambda value, scale, ue8m0: value, int8_code)


def columns_of(x: Any, row: Any, first: Any = 0) -> Load:
    """Columns of a row, from the first on."""
    return lambda column: T.Cast("float32", x[row, first + column])


def start_top(top: Any, lanes: int, eps: Any) -> None:
    """top[l] = the bits of eps."""
    with T.vectorized(lanes) as l:
        T.buffer_store(top, bits(eps), [l])


def raise_top(top: Any, load: Load, width: int, lanes: int) -> None:
    """top[l] = the largest of it and the magnitudes of columns."""
    def raised(column: Any, w: int) -> None:
        with T.vectorized(w) as l:
            T.buffer_store(top, T.max(top[l], magnitude_bits(load(column + l))), [l])

    each_vector(width, lanes, raised)


def scale_from(codes: Codes, top: Any, lanes: int, scale: Any, ue8m0: bool) -> None:
    """scale[0] from the largest of top, which becomes top[0]."""
    with T.serial(1, lanes) as l:
        T.buffer_store(top, T.max(top[0], top[l]), [0])
    T.buffer_store(scale, codes.scale_of(top[0], ue8m0), [0])


def cast_columns(codes: Codes, load: Load, q: Any, row: Any, first: Any, width: int,
                 lanes: int, scale: Any, ratio: Any, ue8m0: bool) -> None:
    """q[row, first + column] = the code of each column; `ratio` is scratch of `lanes`."""
    def cast(column: Any, w: int) -> None:
        with T.vectorized(w) as l:       # a store between: encoders repeat their argument
            T.buffer_store(ratio, codes.ratio(load(column + l), scale[0], ue8m0), [l])
        with T.vectorized(w) as l:
            T.buffer_store(q, codes.encode(ratio[l], scale[0]), [row, first + column + l])

    each_vector(width, lanes, cast)


def cast_group(codes: Codes, load: Load, eps: Any, q: Any, row: Any, first: Any, width: int,
               lanes: int, top: Any, scale: Any, ratio: Any, ue8m0: bool) -> None:
    """Cast `width` columns to q[row, first] on, their scale to scale[0]."""
    start_top(top, lanes, eps)
    raise_top(top, load, width, lanes)
    scale_from(codes, top, lanes, scale, ue8m0)
    cast_columns(codes, load, q, row, first, width, lanes, scale, ratio, ue8m0)
