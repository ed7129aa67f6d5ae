"""CPU lowering: a run of blocks per parallel task; each block is read twice, then hot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm import group_cast, plain_cast
from .._tvm.cast_llvm import GROUPS
from .._tvm.fetch import PREFETCH
from .._tvm.fp8 import bits
from .._tvm.plain_cast import FP8
from .._tvm.tasks import each_task
from ..fp8 import AMAX_FLOOR
from ..fp8_format import E4M3
from ..numerics import as_dtype
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import VectorTarget

_STATIC = ("k", "block_n", "block_k", "dtype", "ue8m0")


def space(target: VectorTarget, shape: Shape) -> Space:
    """Neighbouring blocks per parallel task, and the vector width of blocks of odd widths."""
    lanes = (32,) if group_cast.takes(int(shape["block_k"])) else (32, 16, 8, 64)
    return Space({"lanes": lanes, "blocks": (4, 1, 2, 8, 16)})


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main(w [N, K], q [N, K] uint8, s [NB, KB]); rows of w may be strided."""
    k, bn, bk = int(static["k"]), int(static["block_n"]), int(static["block_k"])
    dtype, ue8m0 = str(static["dtype"]), bool(static["ue8m0"])
    lanes, run = int(config["lanes"]), int(config["blocks"])
    kblocks, last = -(-k // bk), k - (-(-k // bk) - 1) * bk
    strips, align = -(-kblocks // run), as_dtype(dtype).itemsize
    whole = k // bk if group_cast.takes(bk) else 0
    functions = f"{group_cast.functions(target, dtype, ue8m0)}\n{PREFETCH}" if whole else ""
    codes = FP8[E4M3]

    def top_of_row(W: Any, r: Any, kb: Any, width: int, top: Any) -> None:
        plain_cast.raise_top(top, plain_cast.columns_of(W, r, kb * bk), width, lanes)

    def scale_from(top: Any, scale: Any) -> None:
        plain_cast.scale_from(codes, top, lanes, scale, ue8m0)

    def cast_row(W: Any, Q: Any, r: Any, kb: Any, width: int, scale: Any, ratio: Any) -> None:
        plain_cast.cast_columns(codes, plain_cast.columns_of(W, r, kb * bk), Q, r, kb * bk, width,
                                lanes, scale, ratio, ue8m0)

    @T.inline
    def cast_block(W, Q, S, N, nb, kb, width):  # type: ignore[no-untyped-def]
        with T.sblock("block"):
            top = T.sblock_alloc_buffer((lanes,), "int32", scope="global")
            scale = T.sblock_alloc_buffer((1,), "float32", scope="global")
            ratio = T.sblock_alloc_buffer((lanes,), "float32", scope="global")
            plain_cast.start_top(top, lanes, T.float32(AMAX_FLOOR))
            for r in range(T.min(bn, N - nb * bn)):
                top_of_row(W, nb * bn + r, kb, width, top)
            scale_from(top, scale)
            S[nb, kb] = scale[0]
            for r in range(T.min(bn, N - nb * bn)):
                cast_row(W, Q, nb * bn + r, kb, width, scale, ratio)

    @T.inline
    def cast_whole(W, Q, S, N, nb, first, count):  # type: ignore[no-untyped-def]
        # neighbouring blocks together: a block's rows alone are too short for prefetchers
        with T.sblock("whole"):
            top = T.sblock_alloc_buffer((GROUPS,), "int32", scope="global")
            plain = T.sblock_alloc_buffer((GROUPS,), "int32", scope="global")
            scale = T.sblock_alloc_buffer((GROUPS,), "float32", scope="global")
            a = T.sblock_alloc_buffer((GROUPS,), "float32", scope="global")
            b = T.sblock_alloc_buffer((GROUPS,), "float32", scope="global")
            for i in range(count):
                top[i] = 0
            for r in range(T.min(bn, N - nb * bn)):
                for i in range(count):
                    top[i] = T.max(top[i], group_cast.top_of(W[nb * bn + r, (first + i) * bk], bk))
            T.evaluate(group_cast.prepare(top, bits(T.float32(AMAX_FLOOR)), scale, a, b, plain))
            for r in range(T.min(bn, N - nb * bn)):
                for i in range(count):
                    # the next task's block, for maxima wait for memory and casts do not
                    group_cast.fetch(W[nb * bn + r, (first + i) * bk], bk * align,
                                     run * bk * align)
                    if plain[i] != 0:
                        T.evaluate(group_cast.cast(
                            W[nb * bn + r, (first + i) * bk], Q[nb * bn + r, (first + i) * bk], bk,
                            a[i], b[i]))
            for i in range(count):
                if plain[i] != 0:
                    S[nb, first + i] = scale[i]
                else:
                    cast_block(W, Q, S, N, nb, first + i, bk)

    @T.inline
    def cast_strip(W, Q, S, N, task):  # type: ignore[no-untyped-def]
        if whole > 0:
            cast_whole(W, Q, S, N, task // strips, task % strips * run,
                       T.max(T.min(run, whole - task % strips * run), 0))
        for kb in range(T.max(task % strips * run, whole),
                        T.min(task % strips * run + run, kblocks)):
            if kb < kblocks - 1:
                cast_block(W, Q, S, N, task // strips, kb, bk)
            else:
                cast_block(W, Q, S, N, task // strips, kblocks - 1, last)

    @T.prim_func(s_tir=True)
    def main(w: T.handle, q: T.handle, s: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        N = T.int32()
        NB = T.int32()
        ws = T.int32()
        # `align`: TVM takes 64 bytes for granted and a slice of a tensor would fault
        W = T.match_buffer(w, (N, k), dtype, strides=[ws, 1], align=align)
        Q = T.match_buffer(q, (N, k), "uint8", align=1)
        S = T.match_buffer(s, (NB, kblocks), "float32", align=4)
        each_task(NB * strips, target.lanes, functions, cast_strip, W, Q, S, N)

    return {"main": main}


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """Rows of w must be dense; anything else is copied first."""
    static = {axis: shape[axis] for axis in _STATIC}
    main = target.compile("per_block_quant_fp8", static, config)["main"] if shape["k"] else None

    def run(w: Tensor, block_n: int, block_k: int, use_ue8m0: bool, *, out: Outputs) -> None:
        if w.numel() and main is not None:
            main(w if w.stride(1) == 1 else w.contiguous(), out[0].view(torch.uint8), out[1])

    return run
