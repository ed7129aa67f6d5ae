"""CPU lowering: a group's activation lives in registers or L1 between its maximum and its cast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm.exp import exp, silu_of
from .._tvm.fp8 import bits, encode_e4m3, magnitude_bits, scale_of, scaled
from ..numerics import as_dtype
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import Target

_STATIC = ("h", "group_size", "dtype", "ue8m0")


def space(target: Target, shape: Shape) -> Space:
    """Vector width inside a group, rows per parallel task, elements below which one thread runs."""
    return Space({"lanes": (32, 16, 8, 64), "rows": (4, 1, 16, 64), "serial": (8192, 0, 32768)})


def lower(target: Target, static: Shape, config: Config) -> dict[str, Any]:
    """main(x [M, 2H], eps, q [M, H] uint8, s [M, G]); rows of x and all of s may be strided."""
    h, group, dtype = int(static["h"]), int(static["group_size"]), str(static["dtype"])
    lanes, rows, ue8m0 = int(config["lanes"]), int(config["rows"]), bool(static["ue8m0"])
    groups, last = -(-h // group), h - (-(-h // group) - 1) * group
    serial_rows, align = int(config["serial"]) // h, as_dtype(dtype).itemsize

    def wide(value: Any) -> Any:
        return T.Cast("float32", value)

    @T.inline
    def activate_span(X, y, r, base, first, count, w, top, gate, e):  # type: ignore[no-untyped-def]
        for i in range(count // w):
            for l in T.vectorized(w):
                gate[l] = wide(X[r, base + first + i * w + l])
            for l in T.vectorized(w):
                e[l] = exp(T.float32(0.0) - T.fabs(gate[l]))
            for l in T.vectorized(w):
                y[first + i * w + l] = (silu_of(gate[l], e[l])
                                        * wide(X[r, h + base + first + i * w + l]))
            for l in T.vectorized(w):
                top[l] = T.max(top[l], magnitude_bits(y[first + i * w + l]))

    @T.inline
    def cast_span(y, Q, r, base, first, count, w, scale, e):  # type: ignore[no-untyped-def]
        for i in range(count // w):
            for l in T.vectorized(w):
                e[l] = scaled(y[first + i * w + l], scale[0], ue8m0)
            for l in T.vectorized(w):
                Q[r, base + first + i * w + l] = T.Cast("uint8", encode_e4m3(e[l]))

    @T.inline
    def cast_group(X, EPS, Q, S, r, g, width, y, top, scale, gate, e):  # type: ignore[no-untyped-def]
        for l in T.vectorized(lanes):
            top[l] = bits(EPS)
        # full vectors, then 8 lanes, then single columns: a partial group is not scalar code
        activate_span(X, y, r, g * group, 0, width, lanes, top, gate, e)
        activate_span(X, y, r, g * group, width // lanes * lanes, width % lanes, 8, top, gate, e)
        activate_span(X, y, r, g * group, width // 8 * 8, width % 8, 1, top, gate, e)
        for l in range(1, lanes):
            top[0] = T.max(top[0], top[l])
        scale[0] = scale_of(top[0], ue8m0)
        S[r, g] = scale[0]
        cast_span(y, Q, r, g * group, 0, width, lanes, scale, e)
        cast_span(y, Q, r, g * group, width // lanes * lanes, width % lanes, 8, scale, e)
        cast_span(y, Q, r, g * group, width // 8 * 8, width % 8, 1, scale, e)

    @T.inline
    def cast_row(X, EPS, Q, S, r):  # type: ignore[no-untyped-def]
        with T.sblock("row"):
            y = T.sblock_alloc_buffer((group,), "float32", scope="local")
            top = T.sblock_alloc_buffer((lanes,), "int32", scope="local")
            scale = T.sblock_alloc_buffer((1,), "float32", scope="local")
            gate = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
            e = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
            for g in range(groups - 1):
                cast_group(X, EPS, Q, S, r, g, group, y, top, scale, gate, e)
            cast_group(X, EPS, Q, S, r, groups - 1, last, y, top, scale, gate, e)

    @T.prim_func(s_tir=True)
    def main(x: T.handle, eps: T.float32, q: T.handle, s: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        M = T.int32()
        xs = T.int32()
        sm = T.int32()
        sg = T.int32()
        # `align`: TVM takes 64 bytes for granted and a slice of a tensor would fault
        X = T.match_buffer(x, (M, 2 * h), dtype, strides=[xs, 1], align=align)
        Q = T.match_buffer(q, (M, h), "uint8", align=1)
        S = T.match_buffer(s, (M, groups), "float32", strides=[sm, sg], align=4)
        if serial_rows >= M:
            for r in range(M):
                cast_row(X, eps, Q, S, r)
        else:
            for task in T.parallel((M + (rows - 1)) // rows):
                for r in range(T.min(rows, M - task * rows)):
                    cast_row(X, eps, Q, S, task * rows + r)

    return {"main": main}


def build(target: Target, shape: Shape, config: Config) -> Kernel:
    """Rows of x must be dense; anything else is copied first."""
    static = {axis: shape[axis] for axis in _STATIC}
    main = target.compile("silu_mul_quant_fp8", static, config)["main"] if shape["h"] else None

    def run(x: Tensor, group_size: int, eps: float, column_major_scales: bool,
            tma_aligned_scales: bool, use_ue8m0: bool, *, out: Outputs) -> None:
        if x.numel() and main is not None:
            main(x if x.stride(1) == 1 else x.contiguous(), eps, out[0].view(torch.uint8), out[1])

    return run
