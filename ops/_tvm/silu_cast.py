"""A row of SwiGLU's activation cast to FP8: what the two operators of that kind share."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from ..space import Config
from ..spec import Shape
from .exp import exp, silu_of
from .fp8 import bits, encode_e4m3, magnitude_bits, scale_of, scaled


def row_caster(static: Shape, config: Config) -> Any:
    """cast_row(X [rows, 2H], EPS, Q [rows, H], S [experts, M, G], r, expert, m) for TVMScript.

    Casts row r of X to row r of Q and its scales to S[expert, m].
    """
    h, group = int(static["h"]), int(static["group_size"])
    lanes, ue8m0 = int(config["lanes"]), bool(static["ue8m0"])
    groups, last = -(-h // group), h - (-(-h // group) - 1) * group

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
    def cast_row(X, EPS, Q, S, r, expert, m):  # type: ignore[no-untyped-def]
        with T.sblock("row"):
            y = T.sblock_alloc_buffer((group,), "float32", scope="local")
            top = T.sblock_alloc_buffer((lanes,), "int32", scope="local")
            scale = T.sblock_alloc_buffer((1,), "float32", scope="local")
            gate = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
            e = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
            for g in range(groups - 1):
                cast_group(X, EPS, Q, r, g, group, y, top, scale, gate, e)
                S[expert, m, g] = scale[0]
            cast_group(X, EPS, Q, r, groups - 1, last, y, top, scale, gate, e)
            S[expert, m, groups - 1] = scale[0]

    return cast_row
