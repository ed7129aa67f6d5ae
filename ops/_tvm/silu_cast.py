"""A row of SwiGLU's activation cast to FP8: what the two operators of that kind share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm.script import tirx as T

from ..fp8_format import E4M3
from ..numerics import as_dtype
from ..space import Config
from ..spec import Shape
from . import group_cast, plain_cast
from .cast_llvm import GROUPS
from .exp import exp, silu_of
from .fp8 import bits, magnitude_bits
from .plain_cast import FP8
from .silu_llvm import LEAD
from .tasks import each_vector

if TYPE_CHECKING:
    from ...targets.base import VectorTarget


def functions(target: VectorTarget, static: Shape) -> str:
    """The IR that `row_caster` calls."""
    if not group_cast.takes(int(static["group_size"])):
        return ""
    return group_cast.silu_functions(target, str(static["dtype"]), bool(static["ue8m0"]))


def lane_choices(shape: Shape) -> tuple[int, ...]:
    """Vector widths to tune: it matters for odd groups only."""
    return (32,) if group_cast.takes(int(shape["group_size"])) else (32, 16, 8, 64)


def row_caster(static: Shape, config: Config) -> Any:
    """cast_row(X [rows, 2H], EPS, Q [rows, H], S [experts, M, G], r, expert, m) for TVMScript.

    Casts row r of X to row r of Q and its scales to S[expert, m].
    """
    h, group = int(static["h"]), int(static["group_size"])
    lanes, ue8m0 = int(config["lanes"]), bool(static["ue8m0"])
    groups, last = -(-h // group), h - (-(-h // group) - 1) * group
    whole = h // group if group_cast.takes(group) else 0
    row_bytes = 2 * h * as_dtype(str(static["dtype"])).itemsize
    codes = FP8[E4M3]

    def wide(value: Any) -> Any:
        return T.Cast("float32", value)

    @T.inline
    def activate_span(X, y, r, base, top, gate, e, at, w):  # type: ignore[no-untyped-def]
        for l in T.vectorized(w):
            gate[l] = wide(X[r, base + at + l])
        for l in T.vectorized(w):
            e[l] = exp(T.float32(0.0) - T.fabs(gate[l]))
        for l in T.vectorized(w):
            y[at + l] = silu_of(gate[l], e[l]) * wide(X[r, h + base + at + l])
        for l in T.vectorized(w):
            top[l] = T.max(top[l], magnitude_bits(y[at + l]))

    def cast_group(X: Any, EPS: Any, Q: Any, r: Any, g: Any, width: int, y: Any, top: Any,
                   scale: Any, gate: Any, e: Any) -> None:
        plain_cast.start_top(top, lanes, EPS)
        each_vector(width, lanes, activate_span, X, y, r, g * group, top, gate, e)
        plain_cast.scale_from(codes, top, lanes, scale, ue8m0)
        plain_cast.cast_columns(codes, lambda column: y[column], Q, r, g * group, width, lanes,
                                scale, e, ue8m0)

    @T.inline
    def cast_groups(X, EPS, Q, S, r, expert, m, first, count, ys, tops,  # type: ignore[no-untyped-def]
                    scales, a, b, plain, y, top, scale, gate, e):
        if count > 0:
            T.evaluate(group_cast.lead(X[r, first * group], ys[0]))
        for g in range(count):
            tops[g] = group_cast.activate(X[r, (first + g) * group], X[r, h + (first + g) * group],
                                          ys[g * group], group, row_bytes)
        if count > 0:
            T.evaluate(group_cast.prepare(tops, bits(EPS), scales, a, b, plain))
        for g in range(count):
            if plain[g] != 0:
                S[expert, m, first + g] = scales[g]
                T.evaluate(group_cast.cast(ys[g * group], Q[r, (first + g) * group], group, a[g],
                                           b[g]))
            else:
                cast_group(X, EPS, Q, r, first + g, group, y, top, scale, gate, e)
                S[expert, m, first + g] = scale[0]

    @T.inline
    def cast_row(X, EPS, Q, S, r, expert, m):  # type: ignore[no-untyped-def]
        with T.sblock("row"):
            y = T.sblock_alloc_buffer((group,), "float32", scope="local")
            top = T.sblock_alloc_buffer((lanes,), "int32", scope="global")
            scale = T.sblock_alloc_buffer((1,), "float32", scope="global")
            gate = T.sblock_alloc_buffer((lanes,), "float32", scope="global")
            e = T.sblock_alloc_buffer((lanes,), "float32", scope="global")
            if whole > 0:
                ys = T.sblock_alloc_buffer((GROUPS * group + LEAD,), "float32", scope="global")
                tops = T.sblock_alloc_buffer((GROUPS,), "int32", scope="global")
                plain = T.sblock_alloc_buffer((GROUPS,), "int32", scope="global")
                scales = T.sblock_alloc_buffer((GROUPS,), "float32", scope="global")
                a = T.sblock_alloc_buffer((GROUPS,), "float32", scope="global")
                b = T.sblock_alloc_buffer((GROUPS,), "float32", scope="global")
                for g in range(whole // GROUPS):
                    cast_groups(X, EPS, Q, S, r, expert, m, g * GROUPS, GROUPS, ys, tops, scales,
                                a, b, plain, y, top, scale, gate, e)
                cast_groups(X, EPS, Q, S, r, expert, m, whole // GROUPS * GROUPS, whole % GROUPS,
                            ys, tops, scales, a, b, plain, y, top, scale, gate, e)
            for g in range(whole, groups - 1):
                cast_group(X, EPS, Q, r, g, group, y, top, scale, gate, e)
                S[expert, m, g] = scale[0]
            if whole < groups:
                cast_group(X, EPS, Q, r, groups - 1, last, y, top, scale, gate, e)
                S[expert, m, groups - 1] = scale[0]

    return cast_row
