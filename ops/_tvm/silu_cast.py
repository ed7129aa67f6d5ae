"""A row of SwiGLU's activation cast to FP8: what the two operators of that kind share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm.script import tirx as T

from ..numerics import as_dtype
from ..space import Config
from ..spec import Shape
from . import group_cast, stack
from .cast_llvm import GROUPS
from .exp import exp, silu_of
from .fp8 import bits, encode_e4m3, magnitude_bits, scale_of, scaled

if TYPE_CHECKING:
    from ...targets.base import VectorTarget


def functions(target: VectorTarget, static: Shape) -> str:
    """The IR that `row_caster` and `stack.align` call."""
    aligned = stack.functions(target.lanes)
    if not group_cast.takes(int(static["group_size"])):
        return aligned
    casts = group_cast.silu_functions(target, str(static["dtype"]), bool(static["ue8m0"]))
    return f"{casts}\n{aligned}"


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
    def cast_group(X, EPS, Q, r, g, width, y, top, scale, gate, e):  # type: ignore[no-untyped-def]
        for l in T.vectorized(lanes):
            top[l] = bits(EPS)
        # full vectors, then 8 lanes, then single columns: a partial group is not scalar code
        activate_span(X, y, r, g * group, 0, width, lanes, top, gate, e)
        activate_span(X, y, r, g * group, width // lanes * lanes, width % lanes, 8, top, gate, e)
        activate_span(X, y, r, g * group, width // 8 * 8, width % 8, 1, top, gate, e)
        for l in range(1, lanes):
            top[0] = T.max(top[0], top[l])
        scale[0] = scale_of(top[0], ue8m0)
        cast_span(y, Q, r, g * group, 0, width, lanes, scale, e)
        cast_span(y, Q, r, g * group, width // lanes * lanes, width % lanes, 8, scale, e)
        cast_span(y, Q, r, g * group, width // 8 * 8, width % 8, 1, scale, e)

    @T.inline
    def cast_groups(X, EPS, Q, S, r, expert, m, first, count, ys, tops,  # type: ignore[no-untyped-def]
                    scales, a, b, plain, y, top, scale, gate, e):
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
                ys = T.sblock_alloc_buffer((GROUPS * group,), "float32", scope="global")
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
