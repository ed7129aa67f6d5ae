"""CPU lowering: one pass per group for the maximum, one (from L1 or L2) for the cast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from tvm.script import tirx as T

from .._tvm import stack
from .._tvm.fp8 import bits, floats, magnitude_bits
from .._tvm.int8_cast import int8_code
from ..int8 import INT8_MAX
from ..numerics import as_dtype
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import VectorTarget


def space(target: VectorTarget, shape: Shape) -> Space:
    """Vector width inside a group, rows per parallel task, elements below which one thread runs."""
    return Space({"lanes": (16, 32, 8, 64), "rows": (4, 1, 16, 64), "serial": (16384, 0, 65536)})


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main(x [M, K], eps, q [M, K], s [M, G]); rows of x may be strided."""
    k, group, dtype = int(static["k"]), int(static["group_size"]), str(static["dtype"])
    lanes, rows = int(config["lanes"]), int(config["rows"])
    groups, last = -(-k // group), k - (-(-k // group) - 1) * group
    serial_rows, align = int(config["serial"]) // k, as_dtype(dtype).itemsize

    def wide(value: Any) -> Any:     # a helper, not `v = ...`: that would declare a buffer in TIR
        return T.Cast("float32", value)

    @T.inline
    def top_of_span(X, r, first, count, w, top):  # type: ignore[no-untyped-def]
        for i in range(count // w):
            for l in T.vectorized(w):
                top[l] = T.max(top[l], magnitude_bits(wide(X[r, first + i * w + l])))

    @T.inline
    def cast_span(X, Q, r, first, count, w, scale):  # type: ignore[no-untyped-def]
        for i in range(count // w):
            for l in T.vectorized(w):
                Q[r, first + i * w + l] = int8_code(wide(X[r, first + i * w + l]), scale[0])

    @T.inline
    def cast_group(X, Q, S, r, g, width, top, scale):  # type: ignore[no-untyped-def]
        # full vectors, then 8 lanes, then single columns: a partial group is not scalar code
        top_of_span(X, r, g * group, width, lanes, top)
        top_of_span(X, r, g * group + width // lanes * lanes, width % lanes, 8, top)
        top_of_span(X, r, g * group + width // 8 * 8, width % 8, 1, top)
        for l in range(1, lanes):
            top[0] = T.max(top[0], top[l])
        scale[0] = floats(top[0]) / T.float32(INT8_MAX)
        S[r, g] = scale[0]
        cast_span(X, Q, r, g * group, width, lanes, scale)
        cast_span(X, Q, r, g * group + width // lanes * lanes, width % lanes, 8, scale)
        cast_span(X, Q, r, g * group + width // 8 * 8, width % 8, 1, scale)

    @T.inline
    def cast_row(X, EPS, Q, S, r):  # type: ignore[no-untyped-def]
        with T.sblock("row"):
            top = T.sblock_alloc_buffer((lanes,), "int32", scope="global")
            scale = T.sblock_alloc_buffer((1,), "float32", scope="global")
            for g in range(groups - 1):
                for l in T.vectorized(lanes):
                    top[l] = bits(EPS)
                cast_group(X, Q, S, r, g, group, top, scale)
            for l in T.vectorized(lanes):
                top[l] = bits(EPS)
            cast_group(X, Q, S, r, groups - 1, last, top, scale)

    @T.prim_func(s_tir=True)
    def main(x: T.handle, eps: T.float32, q: T.handle, s: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        M = T.int32()
        xs = T.int32()
        # `align`: TVM takes 64 bytes for granted and a slice of a tensor would fault
        X = T.match_buffer(x, (M, k), dtype, strides=[xs, 1], align=align)
        Q = T.match_buffer(q, (M, k), "int8", align=1)
        S = T.match_buffer(s, (M, groups), "float32", align=4)
        with T.attr(T.int32(0), "pragma_import_llvm", stack.functions(target.lanes)):
            if serial_rows >= M:
                stack.align()
                for r in range(M):
                    cast_row(X, eps, Q, S, r)
            else:
                for task in T.parallel((M + (rows - 1)) // rows):
                    stack.align()
                    for r in range(T.min(rows, M - task * rows)):
                        cast_row(X, eps, Q, S, task * rows + r)

    return {"main": main}


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """Flatten leading axes."""
    k, static = int(shape["k"]), {a: shape[a] for a in ("k", "group_size", "dtype")}
    main = target.compile("per_token_group_quant_int8", static, config)["main"] if k else None

    def run(x: Tensor, group_size: int, eps: float, *, out: Outputs) -> None:
        q, s = out
        if not x.numel() or main is None:
            return
        rows = x.reshape(-1, k)
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        main(rows, eps, q.view(-1, k), s.view(-1, s.shape[-1]))

    return run
