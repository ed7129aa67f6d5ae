"""CPU lowering: silu_mul_quant_fp8 of the rows that each expert has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm.silu_cast import functions, lane_choices, row_caster
from .._tvm.tasks import each_task
from ..fp8 import scale_count
from ..numerics import as_dtype
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import VectorTarget

_STATIC = ("h", "group_size", "dtype", "ue8m0")


def space(target: VectorTarget, shape: Shape) -> Space:
    """Vector width of odd groups, and rows of one expert per parallel task."""
    return Space({"lanes": lane_choices(shape), "rows": (4, 1, 16, 64)})


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main(x [E * M, 2H], masked_m [E], eps, q [E * M, H] uint8, s [E, M, G]); s may be strided."""
    h, dtype, rows = int(static["h"]), str(static["dtype"]), int(config["rows"])
    groups, align = scale_count(h, int(static["group_size"])), as_dtype(dtype).itemsize
    cast_row = row_caster(static, config)
    code = functions(target, static)

    def runs(m: Any) -> Any:         # parallel tasks of one expert
        return (m + (rows - 1)) // rows

    def count(present: Any, m: Any, first: Any) -> Any:
        return T.max(T.min(T.max(T.min(present, m), 0) - first, rows), 0)

    @T.inline
    def cast_run(X, COUNT, EPS, Q, S, M, task):  # type: ignore[no-untyped-def]
        for r in range(count(COUNT[task // runs(M)], M, task % runs(M) * rows)):
            cast_row(X, EPS, Q, S, task // runs(M) * M + task % runs(M) * rows + r,
                     task // runs(M), task % runs(M) * rows + r)

    @T.prim_func(s_tir=True)
    def main(x: T.handle, masked_m: T.handle, eps: T.float32,  # type: ignore[no-untyped-def]
             q: T.handle, s: T.handle):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        E = T.int32()
        M = T.int32()
        EM = T.int32()
        xs = T.int32()
        se = T.int32()
        sm = T.int32()
        sg = T.int32()
        # `align`: TVM takes 64 bytes for granted and a slice of a tensor would fault
        X = T.match_buffer(x, (EM, 2 * h), dtype, strides=[xs, 1], align=align)
        COUNT = T.match_buffer(masked_m, (E,), "int32", align=4)
        Q = T.match_buffer(q, (EM, h), "uint8", align=1)
        S = T.match_buffer(s, (E, M, groups), "float32", strides=[se, sm, sg], align=4)
        each_task(E * runs(M), target.lanes, code, cast_run, X, COUNT, eps, Q, S, M)

    return {"main": main}


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """x is copied unless its experts and rows have one common stride and its rows are dense."""
    h, static = int(shape["h"]), {axis: shape[axis] for axis in _STATIC}
    main = target.compile("silu_mul_quant_fp8_masked", static, config)["main"] if h else None

    def run(x: Tensor, masked_m: Tensor, group_size: int, eps: float, column_major_scales: bool,
            tma_aligned_scales: bool, use_ue8m0: bool, *, out: Outputs) -> None:
        if x.numel() and main is not None:
            rows = x.reshape(-1, 2 * h)
            main(rows if rows.stride(1) == 1 else rows.contiguous(), masked_m.contiguous(), eps,
                 out[0].view(-1, h).view(torch.uint8), out[1])

    return run
