"""CPU lowering: one pass over some groups for their maxima, one (from L1) for the casts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm import group_cast, plain_cast
from .._tvm.cast_llvm import GROUPS
from .._tvm.fp8 import bits
from .._tvm.group_cast import TO_E4M3, Cast
from .._tvm.tasks import each_row
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
    """main(x [M, K], eps, q [M, K], s [M, G]); rows of x and all of s may be strided."""
    k, group, dtype = int(static["k"]), int(static["group_size"]), str(static["dtype"])
    lanes, rows = int(config["lanes"]), int(config["rows"])
    ue8m0 = bool(static.get("ue8m0", False))
    groups, last = -(-k // group), k - (-(-k // group) - 1) * group
    serial_rows, align = int(config["serial"]) // k, as_dtype(dtype).itemsize
    whole = k // group if cast.to and group_cast.takes(group) else 0
    functions = group_cast.functions(target, dtype, ue8m0, cast.to) if cast.to and whole else ""

    def cast_group(X: Any, EPS: Any, Q: Any, S: Any, r: Any, g: Any, width: int, top: Any,
                   scale: Any, ratio: Any) -> None:
        plain_cast.cast_group(cast.codes, plain_cast.columns_of(X, r, g * group), EPS, Q, r,
                              g * group, width, lanes, top, scale, ratio, ue8m0)
        T.buffer_store(S, scale[0], [r, g])

    @T.inline
    def cast_groups(X, EPS, Q, S, r, first, count, tops, scales, a, b, plain,  # type: ignore[no-untyped-def]
                    top, scale, ratio):
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
                cast_group(X, EPS, Q, S, r, first + g, group, top, scale, ratio)

    @T.inline
    def cast_row(X, EPS, Q, S, r):  # type: ignore[no-untyped-def]
        with T.sblock("row"):
            top = T.sblock_alloc_buffer((lanes,), "int32", scope="global")
            scale = T.sblock_alloc_buffer((1,), "float32", scope="global")
            ratio = T.sblock_alloc_buffer((lanes,), "float32", scope="global")
            if whole > 0:
                tops = T.sblock_alloc_buffer((GROUPS,), "int32", scope="global")
                plain = T.sblock_alloc_buffer((GROUPS,), "int32", scope="global")
                scales = T.sblock_alloc_buffer((GROUPS,), "float32", scope="global")
                a = T.sblock_alloc_buffer((GROUPS,), "float32", scope="global")
                b = T.sblock_alloc_buffer((GROUPS,), "float32", scope="global")
                for g in range(whole // GROUPS):
                    cast_groups(X, EPS, Q, S, r, g * GROUPS, GROUPS, tops, scales, a, b, plain,
                                top, scale, ratio)
                cast_groups(X, EPS, Q, S, r, whole // GROUPS * GROUPS, whole % GROUPS, tops,
                            scales, a, b, plain, top, scale, ratio)
            for g in range(whole, groups - 1):
                cast_group(X, EPS, Q, S, r, g, group, top, scale, ratio)
            if whole < groups:
                cast_group(X, EPS, Q, S, r, groups - 1, last, top, scale, ratio)

    @T.prim_func(s_tir=True)
    def main(x: T.handle, eps: T.float32, q: T.handle, s: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        M = T.int32()
        xs = T.int32()
        sm = T.int32()
        sg = T.int32()
        # `align`: TVM takes 64 bytes for granted and a slice of a tensor would fault
        X = T.match_buffer(x, (M, k), dtype, strides=[xs, 1], align=align)
        Q = T.match_buffer(q, (M, k), cast.codes.dtype, align=1)
        S = T.match_buffer(s, (M, groups), "float32", strides=[sm, sg], align=4)
        each_row(M, rows, serial_rows, target.lanes, functions, cast_row, X, eps, Q, S)

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
