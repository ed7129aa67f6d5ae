"""CPU lowering: one pass over some groups for their maxima, one (from L1) for the casts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm import group_cast, stack
from .._tvm.cast_llvm import GROUPS
from .._tvm.fp8 import bits, magnitude_bits, scaled
from .._tvm.group_cast import TO_E4M3, Cast
from ..numerics import as_dtype
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import VectorTarget


def space(target: VectorTarget, shape: Shape) -> Space:
    """Rows per parallel task, elements below which one thread runs; vector width of odd groups."""
    lanes = (16,) if group_cast.takes(int(shape["group_size"])) else (16, 32, 8, 64)
    return Space({"lanes": lanes, "rows": (4, 1, 16, 64), "serial": (16384, 0, 65536)})


def lower(target: VectorTarget, static: Shape, config: Config, cast: Cast = TO_E4M3
          ) -> dict[str, Any]:
    """main(x [M, K], eps, q [M, K] uint8, s [M, G]); rows of x and all of s may be strided."""
    k, group, dtype = int(static["k"]), int(static["group_size"]), str(static["dtype"])
    lanes, rows, ue8m0 = int(config["lanes"]), int(config["rows"]), bool(static["ue8m0"])
    groups, last = -(-k // group), k - (-(-k // group) - 1) * group
    serial_rows, align = int(config["serial"]) // k, as_dtype(dtype).itemsize
    whole = k // group if group_cast.takes(group) else 0
    functions = group_cast.functions(target, dtype, ue8m0, cast.to) if whole else ""
    functions += "\n" + stack.functions(target.lanes)
    encode, scale_of = cast.encode, cast.scale_of

    def wide(value: Any) -> Any:     # a helper, not `v = ...`: that would declare a buffer in TIR
        return T.Cast("float32", value)

    @T.inline
    def top_of_span(X, r, first, count, w, top):  # type: ignore[no-untyped-def]
        for i in range(count // w):
            for l in T.vectorized(w):
                top[l] = T.max(top[l], magnitude_bits(wide(X[r, first + i * w + l])))

    @T.inline
    def cast_span(X, Q, r, first, count, w, scale, v):  # type: ignore[no-untyped-def]
        for i in range(count // w):
            for l in T.vectorized(w):        # a store between: the encoder repeats its argument
                v[l] = scaled(wide(X[r, first + i * w + l]), scale[0], ue8m0)
            for l in T.vectorized(w):
                Q[r, first + i * w + l] = T.Cast("uint8", encode(v[l]))

    @T.inline
    def cast_group(X, EPS, Q, S, r, g, width, top, scale, v):  # type: ignore[no-untyped-def]
        for l in T.vectorized(lanes):
            top[l] = bits(EPS)
        # full vectors, then 8 lanes, then single columns: a partial group is not scalar code
        top_of_span(X, r, g * group, width, lanes, top)
        top_of_span(X, r, g * group + width // lanes * lanes, width % lanes, 8, top)
        top_of_span(X, r, g * group + width // 8 * 8, width % 8, 1, top)
        for l in range(1, lanes):
            top[0] = T.max(top[0], top[l])
        scale[0] = scale_of(top[0], ue8m0)
        S[r, g] = scale[0]
        cast_span(X, Q, r, g * group, width, lanes, scale, v)
        cast_span(X, Q, r, g * group + width // lanes * lanes, width % lanes, 8, scale, v)
        cast_span(X, Q, r, g * group + width // 8 * 8, width % 8, 1, scale, v)

    @T.inline
    def cast_groups(X, EPS, Q, S, r, first, count, tops, scales, a, b, plain,  # type: ignore[no-untyped-def]
                    top, scale, v):
        for g in range(count):
            tops[g] = group_cast.top_of(X[r, (first + g) * group], group)
        if count > 0:
            T.evaluate(group_cast.prepare(tops, bits(EPS), scales, a, b, plain))
        for g in range(count):
            if plain[g] != 0:
                S[r, first + g] = scales[g]
                T.evaluate(group_cast.cast(X[r, (first + g) * group], Q[r, (first + g) * group],
                                           group, a[g], b[g]))
            else:
                cast_group(X, EPS, Q, S, r, first + g, group, top, scale, v)

    @T.inline
    def cast_row(X, EPS, Q, S, r):  # type: ignore[no-untyped-def]
        with T.sblock("row"):
            top = T.sblock_alloc_buffer((lanes,), "int32", scope="global")
            scale = T.sblock_alloc_buffer((1,), "float32", scope="global")
            v = T.sblock_alloc_buffer((lanes,), "float32", scope="global")
            if whole > 0:
                tops = T.sblock_alloc_buffer((GROUPS,), "int32", scope="global")
                plain = T.sblock_alloc_buffer((GROUPS,), "int32", scope="global")
                scales = T.sblock_alloc_buffer((GROUPS,), "float32", scope="global")
                a = T.sblock_alloc_buffer((GROUPS,), "float32", scope="global")
                b = T.sblock_alloc_buffer((GROUPS,), "float32", scope="global")
                for g in range(whole // GROUPS):
                    cast_groups(X, EPS, Q, S, r, g * GROUPS, GROUPS, tops, scales, a, b, plain,
                                top, scale, v)
                cast_groups(X, EPS, Q, S, r, whole // GROUPS * GROUPS, whole % GROUPS, tops,
                            scales, a, b, plain, top, scale, v)
            for g in range(whole, groups - 1):
                cast_group(X, EPS, Q, S, r, g, group, top, scale, v)
            if whole < groups:
                cast_group(X, EPS, Q, S, r, groups - 1, last, top, scale, v)

    @T.prim_func(s_tir=True)
    def main(x: T.handle, eps: T.float32, q: T.handle, s: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        M = T.int32()
        xs = T.int32()
        sm = T.int32()
        sg = T.int32()
        # `align`: TVM takes 64 bytes for granted and a slice of a tensor would fault
        X = T.match_buffer(x, (M, k), dtype, strides=[xs, 1], align=align)
        Q = T.match_buffer(q, (M, k), "uint8", align=1)
        S = T.match_buffer(s, (M, groups), "float32", strides=[sm, sg], align=4)
        with T.attr(T.int32(0), "pragma_import_llvm", functions):
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


def build(target: VectorTarget, shape: Shape, config: Config, cast: Cast = TO_E4M3) -> Kernel:
    """Flatten leading axes; only scales that cannot be flattened go through a scratch."""
    k, static = int(shape["k"]), {a: shape[a] for a in ("k", "group_size", "dtype", "ue8m0")}
    main = target.compile(cast.operator, static, config)["main"] if k else None

    def run(x: Tensor, group_size: int, eps: float, column_major_scales: bool,
            tma_aligned_scales: bool, use_ue8m0: bool, *, out: Outputs) -> None:
        q, s = out
        if not x.numel() or main is None:
            return
        rows = x.reshape(-1, k)
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        flat = s if s.ndim == 2 else s.reshape(-1, s.shape[-1])
        main(rows, eps, q.view(-1, k).view(torch.uint8), flat)
        if flat.data_ptr() != s.data_ptr():
            s.copy_(flat.view(s.shape))

    return run
