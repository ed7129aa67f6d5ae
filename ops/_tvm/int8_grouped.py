"""The grouped int8 GEMMs on dot-product instructions: rows in runs, and rows by count."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from ..space import Config
from ..spec import Kernel, Outputs, Shape
from .emit import put, scope
from .fetch import importing
from .gemm_stages import Plan, tensor
from .int8_lower import Stage, functions, packed, same, tiles
from .registers import local

if TYPE_CHECKING:
    from ...targets.base import VectorTarget


def _runs(plan: Plan, ids: Any, rows: Any, experts: int, at_most: int) -> None:
    """Items of neighbouring rows of one expert; ids outside 0 .. experts-1 are dropped."""
    with scope("runs"):
        start = local(1, "int64")
        put(start, 0, T.int64(0))
        with T.serial(rows) as r:
            last = T.Or(r == rows - 1, ids[r] != ids[T.min(r + 1, rows - 1)])
            with T.If(last), T.Then():
                with T.If(T.And(ids[r] >= 0, ids[r] < experts)), T.Then():
                    plan.add(ids[r], start[0], r + 1 - start[0], at_most)
                put(start, 0, T.Cast("int64", r + 1))


def _counts(plan: Plan, counts: Any, rows: Any, experts: int, at_most: int) -> None:
    """Items of the first rows of each expert, of rows // experts that it has."""
    most = rows // experts
    with T.serial(experts) as e:
        plan.add(e, e * most, T.max(T.min(T.Cast("int64", counts[e]), most), T.int64(0)), at_most)


def lower_grouped(target: VectorTarget, static: Shape, config: Config, masked: bool
                  ) -> dict[str, Any]:
    """main(a [rows, K], a_scale, b, b_scale, m_indices or masked_m, packed, plan, out)."""
    n, k, e = int(static["n"]), int(static["k"]), int(static["e"])
    g, out_dtype = tiles(target, n, k, static, config), str(static["out_dtype"])

    def run(A: Any, AS: Any, B: Any, BS: Any, GROUPS: Any, XP: Any, PLAN: Any, OUT: Any,
            rows: Any) -> None:
        plan = Plan(PLAN, rows)
        plan.clear()
        (_counts if masked else _runs)(plan, GROUPS, rows, e, g.rows)
        with importing(*functions(g)):
            Stage(g, str(config["order"]), A, AS, XP, B, BS).run_plan(
                plan, same, OUT, out_dtype, same)

    @T.prim_func(s_tir=True)
    def main(  # type: ignore[no-untyped-def]
            a: T.handle, a_s: T.handle, b: T.handle, b_s: T.handle, groups: T.handle,
            xp: T.handle, p: T.handle, o: T.handle):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        M = T.int64()
        NG = T.int64()
        NS = T.int64()
        P = T.int64()
        PS = T.int64()
        A = tensor(a, (M, k), "int8")
        AS = tensor(a_s, (M, g.k_blocks), "float32")
        B = tensor(b, (e, n, k), "int8")
        BS = tensor(b_s, (e, NS, g.k_blocks), "float32")
        GROUPS = tensor(groups, (NG,), "int32")
        XP = tensor(xp, (P, g.words, g.lanes), "int32")
        PLAN = tensor(p, (PS,), "int32")
        OUT = tensor(o, (M, n), out_dtype)
        run(A, AS, B, BS, GROUPS, XP, PLAN, OUT, M)

    return {"main": main}


def _call(target: VectorTarget, op: str, static: Shape, config: Config) -> Callable[..., None]:
    """call(a [rows, K], a_scale, b, b_scale, groups, most_items, out [rows, N])."""
    main = target.compile(op, static, config)["main"]
    g = tiles(target, int(static["n"]), int(static["k"]), static, config)

    def call(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, groups: Tensor,
             most_items: int, out: Tensor) -> None:
        rows = a.shape[0]
        plan = torch.empty(Plan.size(rows, 0), dtype=torch.int32)
        items = min(rows, most_items) + rows // g.rows
        main(a.contiguous(), a_scale.contiguous().view(rows, -1), b.contiguous(),
             b_scale.contiguous(), groups.contiguous(), packed(g, rows, items), plan, out)

    return call


def bind_contiguous(target: VectorTarget, op: str, static: Shape, config: Config) -> Kernel:
    """The kernel of m_grouped_gemm_nt_contiguous."""
    call = _call(target, op, static, config)

    def run(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, m_indices: Tensor,
            block_n: int, block_k: int, out_dtype: torch.dtype, *, out: Outputs) -> None:
        if out[0].numel():
            call(a, a_scale, b, b_scale, m_indices, a.shape[0], out[0])

    return run


def bind_masked(target: VectorTarget, op: str, static: Shape, config: Config) -> Kernel:
    """The kernel of m_grouped_gemm_nt_masked."""
    call = _call(target, op, static, config)

    def run(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, masked_m: Tensor,
            expected_m: int | None, block_n: int, block_k: int, out_dtype: torch.dtype, *,
            out: Outputs) -> None:
        if out[0].numel():
            experts, m_max, k = a.shape
            call(a.reshape(-1, k), a_scale, b, b_scale, masked_m, experts,
                 out[0].view(experts * m_max, -1))

    return run
