"""CPU lowering: one scan finds the runs, then tiles on the weights as they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from .._tvm.emit import put, scope
from .._tvm.fetch import importing
from .._tvm.gemm import Task
from .._tvm.gemm_stages import (
    Plan,
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
from .._tvm.int8_grouped import bind_contiguous, lower_grouped
from .._tvm.int8_lower import serves
from .._tvm.int8_lower import space as int8_space
from .._tvm.llvm import functions
from .._tvm.quarters import Few, byte_functions, prepare
from .._tvm.registers import local
from .._tvm.tiles import FP8, tiles
from ..gemm_nt.tvm import (
    activations_of,
    bytes_of,
    few_of,
    scales_of,
    takes_bytes,
    uses_pairs,
    weights_of,
)
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
    """main(a, a_scale, b, b_scale, m_indices, x: scratch or `a`, few rows, factors, plan, out)."""
    if serves(target, static):
        return lower_grouped(target, static, config, masked=False)
    n, k, e = int(static["n"]), int(static["k"]), int(static["e"])
    block_n, block_k = int(static["block_n"]), int(static["block_k"])
    a_dtype, out_dtype = str(static["a_dtype"]), str(static["out_dtype"])
    w_dtype, pairs = str(static["w_dtype"]), uses_pairs(target, static)
    x_dtype = "bfloat16" if pairs else "float32"
    g = tiles(n, k, w_dtype, (block_n, block_k), target.lanes, config, pairs=pairs,
              quarters=takes_bytes(target, static))
    order = str(config["order"])

    def valid(IDS: Any, r: Any) -> Any:
        return T.And(IDS[r] >= 0, IDS[r] < e)

    def widen(X: Any, A: Any, AS: Any, IDS: Any, rows: Any) -> None:
        def row(r: Any) -> None:
            with T.If(valid(IDS, r)), T.Then():
                if pairs:
                    code_row(g.lanes, X, A, r, k)
                else:
                    widen_row(g.lanes, X, A, AS, r, k, a_dtype, block_k)
        if a_dtype != "float32" and a_dtype != x_dtype:
            each_row(rows, k, row)

    def find_runs(plan: Plan, IDS: Any, rows: Any) -> None:
        plan.clear()
        with scope("runs"):
            start = local(1, "int64")
            put(start, 0, T.int64(0))
            with T.serial(rows) as r:
                last = T.Or(r == rows - 1, IDS[r] != IDS[T.min(r + 1, rows - 1)])
                with T.If(last), T.Then():
                    with T.If(valid(IDS, r)), T.Then():
                        plan.add(IDS[r], start[0], r + 1 - start[0], g.rows)
                    put(start, 0, T.Cast("int64", r + 1))

    def gemm(plan: Plan, X: Any, few: Few, AS: Any, B: Any, BS: Any, OUT: Any) -> None:
        def task(item: Any, chunk: Any) -> None:
            with scope("task"):
                C = scratch(g)
                first, count = plan.first(item), plan.count(item)
                Task(g, X, lambda r: r, B, BS, C, plan.expert(item), first, count,
                     g.column(chunk), AS if pairs and a_dtype == FP8 else None,
                     few if g.quarters else None).emit()
                write_tile(g, C, OUT, count, g.column(chunk), out_dtype, lambda r: (first + r,))

        with importing(*functions(g), *byte_functions(g)):
            if g.quarters:
                prepare(g, plan.items, plan.span, X, lambda r: r, few)
            each_task(plan.items, g.chunks, order, task)

    def run(X: Any, few: Few, A: Any, AS: Any, B: Any, BS: Any, IDS: Any, PLAN: Any, OUT: Any,
            rows: Any) -> None:
        plan = Plan(PLAN, rows)
        find_runs(plan, IDS, rows)
        widen(X, A, AS, IDS, rows)
        gemm(plan, X, few, AS, B, BS, OUT)

    @T.prim_func(s_tir=True)
    def main(  # type: ignore[no-untyped-def]
            a: T.handle, a_s: T.handle, b: T.handle, b_s: T.handle, ids: T.handle, x: T.handle,
            q: T.handle, f: T.handle, p: T.handle, o: T.handle):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        M = T.int64()
        MS = T.int64()
        ES = T.int64()
        NS = T.int64()
        KS = T.int64()
        PS = T.int64()
        FM = T.int64()
        A = tensor(a, (M, k), a_dtype)
        AS = tensor(a_s, (MS, -(-k // block_k)), "float32")
        B = operand(b, (e, n, k), g.dtype)
        BS = tensor(b_s, (ES, NS, KS), "float32")
        IDS = tensor(ids, (M,), "int32")
        X = operand(x, (M, k), x_dtype)
        ROWS = tensor(q, (FM, k), "float32")
        F = tensor(f, (FM,), "float32")
        PLAN = tensor(p, (PS,), "int32")
        OUT = tensor(o, (M, n), out_dtype)
        run(X, Few(ROWS, F), A, AS, B, BS, IDS, PLAN, OUT, M)

    return {"main": main}


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """Bind the compiled function to torch tensors; float32 activations are used in place."""
    if serves(target, shape):
        return bind_contiguous(target, OP.name, OP.static_of(shape), config)
    main, pairs = (target.compile(OP.name, OP.static_of(shape), config)["main"],
                   uses_pairs(target, shape))
    served = takes_bytes(target, shape)

    def run(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None,
            m_indices: Tensor, block_n: int, block_k: int, out_dtype: torch.dtype, *,
            out: Outputs) -> None:
        if not out[0].numel():
            return
        a = a.contiguous()
        x, a_s = activations_of(a, a_scale, block_k, pairs)
        plan = torch.empty(Plan.size(a.shape[0], 0), dtype=torch.int32)
        main(bytes_of(a), a_s, weights_of(b), scales_of(b_scale, 3), m_indices.contiguous(), x,
             *few_of(a, served), plan, out[0])

    return run
