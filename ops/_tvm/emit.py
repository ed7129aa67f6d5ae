"""Statements that the tiles emit into a TVMScript function: small words for what they repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm.script import tirx as T

from .tiles import FP8

_HALF_MASK = 0xBF80 - (1 << 16)      # sign and the seven magnitude bits of e4m3, moved into float16

Expr = Any                           # a TVM expression
Buffer = Any                         # a TVM buffer


def widen(value: Expr, dtype: str, lanes: int = 1) -> Expr:
    """The float32 value of a stored element (or vector); an fp8 element comes divided by 256.

    e4m3 bits moved by seven are a float16 of value / 256, exact for all finite codes, subnormals
    included; one hardware conversion follows. The NaN code reads as 480.
    "int16" stands for the bits of bfloat16.
    """
    if dtype == FP8:
        half = (T.Cast(vector("int16", lanes), value) << T.int16(7)) & T.int16(_HALF_MASK)
        return T.Cast(vector("float32", lanes), T.reinterpret(vector("float16", lanes), half))
    if dtype == "int16":
        upper = T.Cast(vector("int32", lanes), value) << T.int32(16)
        return T.reinterpret(vector("float32", lanes), upper)
    return T.Cast(vector("float32", lanes), value)


def vector(dtype: str, lanes: int) -> str:
    """TVM's name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def put(buffer: Buffer, index: Expr, value: Expr) -> None:
    """buffer[index] = value."""
    T.buffer_store(buffer, value, list(index) if isinstance(index, tuple) else [index])


def when(condition: Expr, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """if condition: then() else: otherwise()."""
    with T.If(condition):
        with T.Then():
            then()
        with T.Else():
            otherwise()


@contextmanager
def scope(name: str) -> Iterator[None]:
    """A block for scratch. Its regions are not derived: they would name buffers inside it."""
    with T.sblock(name):
        T.reads([])
        T.writes([])
        yield
