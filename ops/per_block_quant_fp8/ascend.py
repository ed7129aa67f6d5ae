"""Ascend lowering: one kernel finds the scale of each block, another casts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from tvm.script.ir_builder import tirx as T

from .._ascend.casts import compiler_flags, row_space, widened, write_codes
from .._ascend.fp8 import codes, power_of_two_above, stored
from .._ascend.tile import constant, kernel
from ..fp8 import AMAX_FLOOR, E4M3_MAX, scale_count
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget

_ELEMENT_BYTES = 14


def space(target: AscendTarget, shape: Shape) -> Space:
    """Rows of a tile: parts of a block, so that its float32 copy fits the chip."""
    made = row_space(target, int(shape["n"]), int(shape["block_k"]) * _ELEMENT_BYTES)
    rows = [r for r in sorted(made.knobs["rows"], reverse=True)
            if int(r) < 2 * int(shape["block_n"])]
    return Space({**made.knobs, "rows": tuple(rows)})


def scale_program(shape: Shape, config: Config) -> Any:
    """block_scales(n, w [n, K], s [ceil(n / block_n), ceil(K / block_k)])."""
    columns, block_n, block_k = (int(shape[a]) for a in ("k", "block_n", "block_k"))
    dtype, tile = str(shape["dtype"]), (int(config["rows"]), block_k)
    with kernel("per_block_scales") as k:
        n = k.scalar("n")
        w = k.tensor("w", (n, columns), dtype)
        s = k.tensor("s", (T.ceildiv(n, block_n), scale_count(columns, block_k)), "float32")
        row, column = k.block("x", T.ceildiv(n, block_n)), k.block("y", scale_count(columns,
                                                                                    block_k))
        tops = k.fill(tile[:1], "float32", AMAX_FLOOR)
        with k.loop(-(-block_n // tile[0])) as step:
            first, end = row * block_n + step * tile[0], T.min(n, (row + 1) * block_n)

            def inside(i: Any, j: Any) -> Any:
                there = first + i < end
                return T.And(there, column * block_k + j < columns) if columns % block_k else there

            x = widened(k, k.new(tile, dtype, lambda i, j: T.if_then_else(
                inside(i, j), w[first + i, column * block_k + j], constant(0, dtype))))
            k.reduce("max", tops, tile, lambda i, j: T.fabs(x[i, j]))
        top = k.fill((1,), "float32", AMAX_FLOOR)
        k.reduce("max", top, (1, tile[0]), lambda o, i: tops[i])
        scale = k.new((1,), "float32", lambda o: top[o] / T.float32(E4M3_MAX))
        if shape["ue8m0"]:
            scale = k.new((1,), "float32", lambda o: power_of_two_above(scale[o]))
        k.store(s, (1,), lambda o: (row + o, column), lambda o: scale[o])
    return k.func


def cast_program(target: AscendTarget, shape: Shape, config: Config) -> Any:
    """block_cast(n, w [n, K], s, q [n, K]): a tile lies in one block of scales."""
    columns, block_n, block_k = (int(shape[a]) for a in ("k", "block_n", "block_k"))
    dtype, tile = str(shape["dtype"]), (int(config["rows"]), block_k)
    parts = -(-block_n // tile[0])
    with kernel("per_block_cast") as k:
        n = k.scalar("n")
        w = k.tensor("w", (n, columns), dtype)
        s = k.tensor("s", (T.ceildiv(n, block_n), scale_count(columns, block_k)), "float32")
        q = k.tensor("q", (n, columns), stored(target, "float8_e4m3fn"))
        row, column = k.block("x", T.ceildiv(n, block_n)), k.block("y", scale_count(columns,
                                                                                    block_k))
        part = k.block("z", parts)
        first, end = row * block_n + part * tile[0], T.min(n, (row + 1) * block_n)

        def inside(i: Any, j: Any) -> Any:
            there = first + i < end
            return T.And(there, column * block_k + j < columns) if columns % block_k else there

        x = widened(k, k.new(tile, dtype, lambda i, j: w[first + i, column * block_k + j], inside))
        ratio = k.new(tile, "float32", lambda i, j: x[i, j] / s[row, column])
        write_codes(k, target, ratio, lambda tile_, value: k.store(
            q, tile, lambda i, j: (first + i, column * block_k + j),
            lambda i, j: value(tile_, i, j), inside))
    return k.func


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """A weight whose rows are not dense is copied."""
    scales, cast = scale_program(shape, config), cast_program(target, shape, config)
    parts = -(-int(shape["block_n"]) // int(config["rows"]))

    def run(w: Tensor, block_n: int, block_k: int, use_ue8m0: bool, *, out: Outputs) -> None:
        q, s = out
        if not w.numel():
            return
        w, flags = w.contiguous(), compiler_flags(config)
        target.launch(scales, tuple(s.shape), w.shape[0], w, s, **flags)
        target.launch(cast, (*s.shape, parts), w.shape[0], w, s, codes(target, q), **flags)

    return run
