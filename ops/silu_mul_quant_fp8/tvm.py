"""CPU lowering: a group's activation lives in registers or L1 between its maximum and its cast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm.silu_cast import functions, lane_choices, row_caster
from .._tvm.tasks import each_row
from ..fp8 import scale_count
from ..numerics import as_dtype
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import VectorTarget

_STATIC = ("h", "group_size", "dtype", "ue8m0")


def space(target: VectorTarget, shape: Shape) -> Space:
    """Vector width of odd groups, rows per parallel task, elements below which one thread runs."""
    return Space({"lanes": lane_choices(shape), "rows": (4, 1, 16, 64), "serial": (8192, 0, 32768)})


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main(x [M, 2H], eps, q [M, H] uint8, s [1, M, G]); rows of x and all of s may be strided."""
    h, dtype, rows = int(static["h"]), str(static["dtype"]), int(config["rows"])
    groups = scale_count(h, int(static["group_size"]))
    serial_rows, align = int(config["serial"]) // h, as_dtype(dtype).itemsize
    cast_row = row_caster(static, config)
    code = functions(target, static)

    def cast(X: Any, EPS: Any, Q: Any, S: Any, r: Any) -> None:
        cast_row(X, EPS, Q, S, r, 0, r)

    @T.prim_func(s_tir=True)
    def main(x: T.handle, eps: T.float32, q: T.handle, s: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        M = T.int32()
        xs = T.int32()
        sm = T.int32()
        sg = T.int32()
        se = T.int32()
        # `align`: TVM takes 64 bytes for granted and a slice of a tensor would fault
        X = T.match_buffer(x, (M, 2 * h), dtype, strides=[xs, 1], align=align)
        Q = T.match_buffer(q, (M, h), "uint8", align=1)
        S = T.match_buffer(s, (1, M, groups), "float32", strides=[se, sm, sg], align=4)
        each_row(M, rows, serial_rows, target.lanes, code, cast, X, eps, Q, S)

    return {"main": main}


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """Rows of x must be dense; anything else is copied first."""
    static = {axis: shape[axis] for axis in _STATIC}
    main = target.compile("silu_mul_quant_fp8", static, config)["main"] if shape["h"] else None

    def run(x: Tensor, group_size: int, eps: float, column_major_scales: bool,
            tma_aligned_scales: bool, use_ue8m0: bool, *, out: Outputs) -> None:
        if x.numel() and main is not None:
            main(x if x.stride(1) == 1 else x.contiguous(), eps, out[0].view(torch.uint8),
                 out[1][None])

    return run
