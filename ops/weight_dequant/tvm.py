"""CPU lowering: rows in parallel, one multiply by the block's scale per element."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm.dequant_llvm import PAST, SCALES, STEP, widen_function
from .._tvm.fp8 import bits, decode_e4m3_or_nan
from .._tvm.tasks import each_row, each_vector
from ..numerics import as_dtype
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import VectorTarget

_STATIC = ("k", "block_size", "dtype")


def _takes(target: VectorTarget, block: int) -> bool:
    """Whether whole blocks go through float16: x86-64 has its conversions from v3 on."""
    return target.lanes > 4 and block % STEP == 0


def space(target: VectorTarget, shape: Shape) -> Space:
    """Vector width of odd blocks, rows per parallel task, elements below which one thread runs."""
    lanes = (32,) if _takes(target, int(shape["block_size"])) else (32, 16, 8, 64)
    return Space({"lanes": lanes, "rows": (16, 4, 1, 64), "serial": (16384, 0, 65536)})


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main(q [N, K] uint8, s [NB, KB], w [N, K]); rows of q may be strided."""
    k, block, dtype = int(static["k"]), int(static["block_size"]), str(static["dtype"])
    lanes, rows = int(config["lanes"]), int(config["rows"])
    kblocks, last = -(-k // block), k - (-(-k // block) - 1) * block
    serial_rows, align = int(config["serial"]) // k, as_dtype(dtype).itemsize
    past_rows = PAST // (k * align)
    whole = k // block if _takes(target, block) else 0
    functions = widen_function(dtype, "bf16" in target.dots, target.lanes) if whole else ""

    @T.inline
    def widen_span(Q, S, W, r, kb, v, at, w):  # type: ignore[no-untyped-def]
        for l in T.vectorized(w):        # a store between: the cast repeats its argument
            v[l] = decode_e4m3_or_nan(Q[r, kb * block + at + l]) * S[r // block, kb]
        for l in T.vectorized(w):
            W[r, kb * block + at + l] = T.Cast(dtype, v[l])

    def widen_block(Q: Any, S: Any, W: Any, r: Any, kb: Any, width: int, v: Any) -> None:
        each_vector(width, lanes, widen_span, Q, S, W, r, kb, v)

    @T.inline
    def widen_whole(Q, S, W, r, kb, past, v):  # type: ignore[no-untyped-def]
        if T.And(bits(S[r // block, kb]) >= SCALES[0], bits(S[r // block, kb]) < SCALES[1]):
            T.evaluate(T.call_extern(
                "void", "expertile_widen", T.address_of(Q[r, kb * block]),
                T.address_of(W[r, kb * block]), T.int64(block), S[r // block, kb], past))
        else:
            widen_block(Q, S, W, r, kb, block, v)

    @T.inline
    def widen_row(Q, S, W, past, r):  # type: ignore[no-untyped-def]
        with T.sblock("row"):
            v = T.sblock_alloc_buffer((lanes,), "float32", scope="global")
            for kb in range(whole):
                widen_whole(Q, S, W, r, kb, past, v)
            for kb in range(whole, kblocks - 1):
                widen_block(Q, S, W, r, kb, block, v)
            if whole < kblocks:
                widen_block(Q, S, W, r, kblocks - 1, last, v)

    def written() -> None:
        if whole:
            T.evaluate(T.call_extern("void", "expertile_written"))

    @T.prim_func(s_tir=True)
    def main(q: T.handle, s: T.handle, w: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        N = T.int32()
        NB = T.int32()
        qs = T.int32()
        # `align`: TVM takes 64 bytes for granted and a slice of a tensor would fault
        Q = T.match_buffer(q, (N, k), "uint8", strides=[qs, 1], align=1)
        S = T.match_buffer(s, (NB, kblocks), "float32", align=4)
        W = T.match_buffer(w, (N, k), dtype, align=align)
        each_row(N, rows, serial_rows, target.lanes, functions, widen_row, Q, S, W,
                 T.Select(past_rows <= N, T.int32(1), T.int32(0)), after=written)

    return {"main": main}


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """Scales become float32, rows of q dense."""
    static = {axis: shape[axis] for axis in _STATIC}
    main = target.compile("weight_dequant", static, config)["main"] if shape["k"] else None

    def run(q: Tensor, s: Tensor, block_size: int, dtype: torch.dtype, *, out: Outputs) -> None:
        if q.numel() and main is not None:
            codes = q.view(torch.uint8)
            main(codes if q.stride(1) == 1 else codes.contiguous(), s.float().contiguous(), out[0])

    return run
