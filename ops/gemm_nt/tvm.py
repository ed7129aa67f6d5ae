"""CPU lowering: tiles of dot products on the weights as they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm import quarters
from .._tvm.emit import put, scope
from .._tvm.fetch import importing
from .._tvm.gemm import Task
from .._tvm.gemm_stages import (
    code_row,
    each_row,
    each_task,
    operand,
    scratch,
    tensor,
    widen_row,
    write_tile,
)
from .._tvm.gemm_stages import space as gemm_space
from .._tvm.int8_lower import bind_gemm, lower_gemm, serves
from .._tvm.int8_lower import space as int8_space
from .._tvm.llvm import functions
from .._tvm.quarters import Few, byte_functions, prepare
from .._tvm.registers import local
from .._tvm.tiles import FP8, takes_pairs, tiles
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape
from . import OP, regime

if TYPE_CHECKING:
    from ...targets.base import VectorTarget


def space(target: VectorTarget, shape: Shape) -> Space:
    """Tiles and blocking."""
    if serves(target, shape):
        return int8_space(target, regime(shape) == "decode")
    return gemm_space(target, regime(shape) == "decode", str(shape["w_dtype"]),
                      uses_pairs(target, shape), takes_bytes(target, shape), int(shape["k"]))


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """main(a, a_scale, b, b_scale, x: scratch [M, K] or `a` itself, few rows, factors, out)."""
    if serves(target, static):
        return lower_gemm(target, static, config)
    n, k = int(static["n"]), int(static["k"])
    block_n, block_k = int(static["block_n"]), int(static["block_k"])
    a_dtype, out_dtype = str(static["a_dtype"]), str(static["out_dtype"])
    w_dtype, pairs = str(static["w_dtype"]), uses_pairs(target, static)
    x_dtype = "bfloat16" if pairs else "float32"
    g = tiles(n, k, w_dtype, (block_n, block_k), target.lanes, config, pairs=pairs,
              quarters=takes_bytes(target, static))
    order = str(config["order"])

    def gemm(X: Any, few: Few, AS: Any, B: Any, BS: Any, OUT: Any, rows: Any) -> None:
        items = (rows + (g.rows - 1)) // g.rows

        def span(item: Any) -> tuple[Any, Any]:
            # items about equal; TVM's simplifier divides by a bare `items` where it may be zero
            first, end = (rows * at // T.max(items, 1) for at in (item, item + 1))
            return first, end - first

        def task(item: Any, chunk: Any) -> None:
            with scope("task"):
                C, at = scratch(g), local(2, "int64")
                for i, value in enumerate(span(item)):    # once: TVM would simplify each use
                    put(at, i, value)
                first, count = at[0], at[1]
                Task(g, X, lambda r: r, B, BS, C, T.int64(0), first, count, g.column(chunk),
                     AS if pairs and a_dtype == FP8 else None, few if g.quarters else None).emit()
                write_tile(g, C, OUT, count, g.column(chunk), out_dtype, lambda r: (first + r,))

        with importing(*functions(g), *byte_functions(g)):
            if g.quarters:
                prepare(g, items, span, X, lambda r: r, few)
            each_task(items, g.chunks, order, task)

    @T.prim_func(s_tir=True)
    def main(  # type: ignore[no-untyped-def]
            a: T.handle, a_s: T.handle, b: T.handle, b_s: T.handle, x: T.handle, q: T.handle,
            f: T.handle, o: T.handle):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        M = T.int64()
        MS = T.int64()
        NS = T.int64()
        KS = T.int64()
        FM = T.int64()
        A = tensor(a, (M, k), a_dtype)
        AS = tensor(a_s, (MS, -(-k // block_k)), "float32")
        B = operand(b, (1, n, k), g.dtype)
        BS = tensor(b_s, (1, NS, KS), "float32")
        X = operand(x, (M, k), x_dtype)
        ROWS = tensor(q, (FM, k), "float32")
        F = tensor(f, (FM,), "float32")
        OUT = tensor(o, (M, n), out_dtype)
        if a_dtype != "float32" and a_dtype != x_dtype:
            each_row(M, k, lambda r: code_row(g.lanes, X, A, r, k) if pairs else widen_row(
                g.lanes, X, A, AS, r, k, a_dtype, block_k))
        gemm(X, Few(ROWS, F), AS, B, BS, OUT, M)

    return {"main": main}


def uses_pairs(target: VectorTarget, static: Shape) -> bool:
    """Whether bfloat16 dot products compute it."""
    return takes_pairs(target.dots, str(static["a_dtype"]), str(static["w_dtype"]),
                       int(static["k"]), int(static["block_k"]))


def takes_bytes(target: VectorTarget, static: Shape) -> bool:
    """Whether tiles of few rows take FP8 codes by the byte."""
    return quarters.serves(str(static["w_dtype"]), target.lanes, int(static["k"]),
                           int(static["block_k"]), uses_pairs(target, static))


def weights_of(w: Tensor) -> Tensor:
    """Contiguous weights: fp8 as signed bytes, bfloat16 as its bits."""
    w = bytes_of(w)
    return w.view(torch.int16) if w.dtype == torch.bfloat16 else w


def bytes_of(x: Tensor) -> Tensor:
    """Contiguous, and fp8 as signed bytes."""
    x = x.contiguous()
    return x.view(torch.int8) if x.dtype == torch.float8_e4m3fn else x


def scales_of(scale: Tensor | None, axes: int) -> Tensor:
    """Contiguous scales, or an empty tensor in their place."""
    return torch.empty((1,) * axes) if scale is None else scale.contiguous()


def activations_of(a: Tensor, a_scale: Tensor | None, block_k: int, pairs: bool
                   ) -> tuple[Tensor, Tensor]:
    """Where a kernel finds a [M, K] in float32 (or bfloat16 bits for pairs), and a's scales."""
    if a.dtype == (torch.bfloat16 if pairs else torch.float32):
        x = a.view(torch.int16) if pairs else a
    else:
        x = torch.empty(a.shape, dtype=torch.int16 if pairs else torch.float32)
    if a_scale is None:
        return x, torch.empty((1, -(-a.shape[1] // block_k)))
    return x, a_scale.contiguous().view(a.shape[0], -1)


def few_of(a: Tensor, served: bool) -> tuple[Tensor, Tensor]:
    """Scratch for rows in the order of bytes and their factors; only few of it is ever touched."""
    return torch.empty((a.shape[0] * served, a.shape[1])), torch.empty(a.shape[0] * served)


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """Bind the compiled function to torch tensors; float32 activations are used in place."""
    if serves(target, shape):
        return bind_gemm(target, OP.name, OP.static_of(shape), config)
    main, pairs = (target.compile(OP.name, OP.static_of(shape), config)["main"],
                   uses_pairs(target, shape))
    served = takes_bytes(target, shape)

    def run(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, block_n: int,
            block_k: int, out_dtype: torch.dtype, *, out: Outputs) -> None:
        if not out[0].numel():
            return
        a = a.contiguous()
        x, a_s = activations_of(a, a_scale, block_k, pairs)
        main(bytes_of(a), a_s, weights_of(b)[None], scales_of(b_scale, 2)[None], x,
             *few_of(a, served), out[0])

    return run

