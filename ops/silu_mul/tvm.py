"""CPU lowering: rows in parallel, exp by our own polynomial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from tvm.script import tirx as T

from .._tvm.exp import exp, silu_of
from .._tvm.tasks import each_row, each_vector
from ..numerics import as_dtype
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import VectorTarget


def space(target: VectorTarget, shape: Shape) -> Space:
    """Vector width, rows per parallel task, elements below which one thread runs."""
    return Space({"lanes": (32, 16, 8, 64), "rows": (4, 1, 16, 64), "serial": (8192, 0, 32768)})


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main(x [M, 2H], y [M, H]); rows of x may be strided."""
    h, dtype = int(static["h"]), str(static["dtype"])
    lanes, rows = int(config["lanes"]), int(config["rows"])
    serial_rows, align = int(config["serial"]) // h, as_dtype(dtype).itemsize

    def wide(value: Any) -> Any:
        return T.Cast("float32", value)

    @T.inline
    def span(X, Y, r, gate, e, at, w):  # type: ignore[no-untyped-def]
        for l in T.vectorized(w):
            gate[l] = wide(X[r, at + l])
        for l in T.vectorized(w):
            e[l] = exp(T.float32(0.0) - T.fabs(gate[l]))
        for l in T.vectorized(w):
            gate[l] = silu_of(gate[l], e[l]) * wide(X[r, h + at + l])
        for l in T.vectorized(w):
            Y[r, at + l] = T.Cast(dtype, gate[l])

    @T.inline
    def row(X, Y, r):  # type: ignore[no-untyped-def]
        with T.sblock("row"):
            gate = T.sblock_alloc_buffer((lanes,), "float32", scope="global")
            e = T.sblock_alloc_buffer((lanes,), "float32", scope="global")
            each_vector(h, lanes, span, X, Y, r, gate, e)

    @T.prim_func(s_tir=True)
    def main(x: T.handle, y: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        M = T.int32()
        xs = T.int32()
        # `align`: TVM takes 64 bytes for granted and a slice of a tensor would fault
        X = T.match_buffer(x, (M, 2 * h), dtype, strides=[xs, 1], align=align)
        Y = T.match_buffer(y, (M, h), dtype, align=align)
        each_row(M, rows, serial_rows, target.lanes, "", row, X, Y)

    return {"main": main}


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """Flatten leading axes."""
    h, static = int(shape["h"]), {axis: shape[axis] for axis in ("h", "dtype")}
    main = target.compile("silu_mul", static, config)["main"] if h else None

    def run(x: Tensor, *, out: Outputs) -> None:
        if x.numel() and main is not None:
            rows = x.reshape(-1, 2 * h)
            main(rows if rows.stride(1) == 1 else rows.contiguous(), out[0].view(-1, h))

    return run
