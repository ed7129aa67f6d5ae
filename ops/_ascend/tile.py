"""Tile programs as TIR: every statement is a loop nest that stores one tile.

A program runs on one core for one block index. Tensors stand in global memory; tiles are on the
chip and are written whole, in part under a mask, or by reduction. The target's emitter turns each
nest into tile operations (targets/ascend/emit.py); as TIR the program has the same meaning.

    with kernel("double") as k:
        rows = k.scalar("rows")
        x, y = k.tensor("x", (rows, 128), "float32"), k.tensor("y", (rows, 128), "float32")
        first = k.block("x", T.ceildiv(rows, 32)) * 32
        t = k.tile((32, 128), "float32")
        k.put(t, lambda i, j: x[first + i, j], where=lambda i, j: first + i < rows)
        k.store(y, (32, 128), lambda i, j: (first + i, j), lambda i, j: t[i, j] * t.dtype(2),
                where=lambda i, j: first + i < rows)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

CONTROL = "control"                  # annotation of a loop that is no axis of a tile

Expr = Any                           # TVM has no types to speak of
Axes = Callable[..., Any]            # from a nest's loop variables to a value, mask or indices


class Kernel:
    """A tile program while it is written; `func` is the PrimFunc once `kernel` has ended."""

    def __init__(self, blocks: ExitStack):
        self._blocks = blocks
        self.func: Any = None

    def scalar(self, name: str) -> Expr:
        """An int32 argument."""
        return T.arg(name, T.int32())

    def float_scalar(self, name: str) -> Expr:
        """A float32 argument; the launcher passes its bits (`float_bits`)."""
        return T.reinterpret("float32", T.arg(name, T.int32()))

    def tensor(self, name: str, shape: Sequence[Any], dtype: str) -> Any:
        """A contiguous tensor argument in global memory; axes may be scalars."""
        return T.arg(name, T.buffer(tuple(shape), dtype))

    def block(self, axis: str, count: Expr) -> Expr:
        """This program's index on axis "x", "y" or "z" of the grid."""
        return self._blocks.enter_context(T.thread_binding(count, thread=f"blockIdx.{axis}"))

    def tile(self, shape: Sequence[int], dtype: str) -> Any:
        """A tile on the chip."""
        return T.sblock_alloc_buffer(tuple(shape), dtype)

    @contextmanager
    def loop(self, count: Expr) -> Iterator[Expr]:
        """Steps 0 .. count - 1, one after the other; tiles keep their values between them."""
        with T.serial(0, count, annotations={CONTROL: True}) as i:
            yield i

    def put(self, tile: Any, value: Axes, where: Axes | None = None, at: Axes | None = None) -> Any:
        """tile[i...] = value(i...); where the mask is false the tile keeps what it had."""
        self.store(tile, [int(n) for n in tile.shape], at or (lambda *i: i), value, where)
        return tile

    def new(self, shape: Sequence[int], dtype: str, value: Axes, where: Axes | None = None) -> Any:
        """A fresh tile with these values; undefined where the mask is false."""
        return self.put(self.tile(shape, dtype), value, where)

    def store(self, buffer: Any, shape: Sequence[int], at: Axes, value: Axes,
              where: Axes | None = None) -> None:
        """buffer[at(i...)] = value(i...) for all i below `shape` where the mask is true."""
        with T.grid(*shape) as axes:
            i = list(axes) if len(shape) > 1 else [axes if not isinstance(axes, list) else axes[0]]
            if where is None:
                T.buffer_store(buffer, value(*i), list(_tuple(at(*i))))
                return
            with T.If(where(*i)), T.Then():
                T.buffer_store(buffer, value(*i), list(_tuple(at(*i))))

    def fill(self, shape: Sequence[int], dtype: str, number: float) -> Any:
        """A fresh tile of one number."""
        return self.new(shape, dtype, lambda *i: constant(number, dtype))

    def reduce(self, kind: str, into: Any, shape: Sequence[int], value: Axes,
               keep: int | None = None) -> None:
        """into[i] = kind(into[i], value(i, j...)) over all but the first `keep` axes."""
        lead = len(into.shape) if keep is None else keep
        combine = {"max": T.max, "add": lambda a, b: a + b}[kind]
        self.store(into, shape, lambda *i: i[:lead],
                   lambda *i: combine(into[i[:lead] if lead > 1 else i[0]], value(*i)))

    def matmul(self, into: Any, a: Any, b: Any, transposed: bool = False) -> None:
        """into[m, n] += a[m, k] * b[k, n], or b[n, k] when transposed, in into's dtype."""
        (m, n), dtype = (int(s) for s in into.shape), str(into.dtype)
        self.store(into, (m, n, int(a.shape[1])), lambda i, j, _: (i, j),
                   lambda i, j, k: into[i, j] + T.Cast(dtype, a[i, k])
                   * T.Cast(dtype, b[j, k] if transposed else b[k, j]))


def _tuple(indices: Any) -> tuple[Any, ...]:
    return tuple(indices) if isinstance(indices, tuple | list) else (indices,)


def constant(number: float, dtype: str) -> Expr:
    """A literal of a dtype."""
    return T.FloatImm(dtype, float(number)) if "float" in dtype else T.IntImm(dtype, int(number))


@contextmanager
def kernel(name: str) -> Iterator[Kernel]:
    """Write a tile program; its PrimFunc is `.func` afterwards."""
    with IRBuilder() as builder:
        with ExitStack() as blocks:
            blocks.enter_context(T.prim_func(s_tir=True))
            T.func_name(name)
            made = Kernel(blocks)
            yield made
        made.func = builder.get()
