"""The int8 GEMMs of the operators on dot-product instructions: lowerings and their bindings.

An operator's tvm.py asks `serves` and hands over; elsewhere int8 codes are widened to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape
from . import stack
from .emit import put, scope
from .exp import silu
from .fetch import importing
from .gemm_stages import Plan, along, each_row, each_task, tensor
from .int8_gemm import Int8Task
from .int8_tiles import Int8Tiles, pack_block, scratch
from .int8dot import functions as kept_functions
from .int8dot import kind_of
from .registers import local

if TYPE_CHECKING:
    from ...targets.base import VectorTarget


def serves(target: VectorTarget, shape: Shape) -> bool:
    """Whether a GEMM of these axes is made of int8 dot products: both operands are int8 codes."""
    both = shape["a_dtype"] == "int8" if "a_dtype" in shape else bool(shape["w8a8"])
    return both and shape["w_dtype"] == "int8" and kind_of(target.dots) is not None


def space(target: VectorTarget, decode: bool) -> Space:
    """Columns of a task, rows of an item, and which of the two neighbours share."""
    return Space({"chunk": (256, 128, 64) if decode else (128, 64, 256), "rows": (128, 256, 64),
                  "order": ("item", "chunk")})


def tiles(target: VectorTarget, n: int, k: int, shape: Shape, config: Config,
          halves: int = 1) -> Int8Tiles:
    """The sizes of one GEMM."""
    kind = kind_of(target.dots)
    assert kind is not None
    return Int8Tiles(kind, target.lanes, n, k, int(shape["block_n"]), int(shape["block_k"]),
                     int(config["chunk"]), int(config["rows"]), halves)


class Stage:
    """One GEMM over the items of a plan: pack the activations, multiply, write."""

    def __init__(self, g: Int8Tiles, order: str, A: Any, AS: Any, XP: Any, W: Any, S: Any):
        self.g, self.order = g, order
        self.A, self.AS, self.XP, self.W, self.S = A, AS, XP, W, S

    def run(self, items: Any, item_of: Callable[[Any], tuple[Any, Any, Any]],
            row: Callable[[Any], Any], OUT: Any, out_dtype: str,
            out_row: Callable[[Any], Any]) -> None:
        """OUT[out_row(r)] = A[row(r)] . W[expert]; item_of gives expert, first row and rows."""
        g = self.g
        per_item = -(-g.rows // g.lanes)

        def pack(i: Any) -> None:
            _, first, count = item_of(i // per_item)
            pack_block(g, self.A, self.AS, self.XP, i // per_item, i % per_item, first, count, row)

        each_row(items * per_item, g.k, pack)

        def task(item: Any, chunk: Any) -> None:
            with scope("int8"):
                C, at = scratch(g), local(3, "int64")
                for i, value in enumerate(item_of(item)):    # once, not at every use
                    put(at, i, T.Cast("int64", value))
                e, first, count = at[0], at[1], at[2]
                Int8Task(g, self.A, self.AS, self.XP, row, self.W, self.S, C, e, item, first,
                         count, g.column(chunk)).emit()
                self._write(C, OUT, count, g.column(chunk), out_dtype,
                            lambda r: out_row(first + r))

        each_task(items, g.chunks, self.order, task)

    def _write(self, C: Any, OUT: Any, rows: Any, col: Any, dtype: str,
               out_row: Callable[[Any], Any]) -> None:
        """OUT[out_row(r), col + j] = C[r, j], or silu(gate) * up of the two halves."""
        g = self.g
        with T.serial(rows) as r:
            if g.halves == 2:        # through C: a cast repeats its argument
                along(g.lanes, g.width,
                      lambda j: put(C, (r, j), silu(C[r, j]) * C[r, g.padded + j]))
            along(g.lanes, g.width,
                  lambda j: put(OUT, (out_row(r), col + j), T.Cast(dtype, C[r, j])))

    def run_plan(self, plan: Plan, row: Callable[[Any], Any], OUT: Any, out_dtype: str,
                 out_row: Callable[[Any], Any]) -> None:
        """All items of a plan."""
        self.run(plan.items, lambda i: (plan.expert(i), plan.first(i), plan.count(i)), row, OUT,
                 out_dtype, out_row)


def functions(g: Int8Tiles) -> tuple[str, ...]:
    """What tasks call."""
    return (stack.functions(g.lanes), *([kept_functions(g.lanes)] if g.pairs else []))


def same(r: Any) -> Any:
    """The row itself."""
    return r


def packed(g: Int8Tiles, rows: int, items: int) -> Tensor:
    """Scratch for packed activations; what is not written is never touched."""
    return torch.empty((g.blocks(rows, items), g.words, g.lanes), dtype=torch.int32)


def lower_gemm(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """gemm_nt: main(a, a_scale, b, b_scale, packed, out)."""
    n, k = int(static["n"]), int(static["k"])
    g, out_dtype = tiles(target, n, k, static, config), str(static["out_dtype"])

    def run(A: Any, AS: Any, B: Any, BS: Any, XP: Any, OUT: Any, rows: Any) -> None:
        with importing(*functions(g)):
            Stage(g, str(config["order"]), A, AS, XP, B, BS).run(
                (rows + (g.rows - 1)) // g.rows,
                lambda i: (T.int64(0), i * g.rows, T.min(rows - i * g.rows, g.rows)),
                same, OUT, out_dtype, same)

    @T.prim_func(s_tir=True)
    def main(  # type: ignore[no-untyped-def]
            a: T.handle, a_s: T.handle, b: T.handle, b_s: T.handle, xp: T.handle, o: T.handle):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        M = T.int64()
        NS = T.int64()
        P = T.int64()
        A = tensor(a, (M, k), "int8")
        AS = tensor(a_s, (M, g.k_blocks), "float32")
        B = tensor(b, (1, n, k), "int8")
        BS = tensor(b_s, (1, NS, g.k_blocks), "float32")
        XP = tensor(xp, (P, g.words, g.lanes), "int32")
        OUT = tensor(o, (M, n), out_dtype)
        run(A, AS, B, BS, XP, OUT, M)

    return {"main": main}


def bind_gemm(target: VectorTarget, op: str, static: Shape, config: Config) -> Kernel:
    """The kernel of gemm_nt."""
    main = target.compile(op, static, config)["main"]
    g = tiles(target, int(static["n"]), int(static["k"]), static, config)

    def run(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, block_n: int, block_k: int,
            out_dtype: torch.dtype, *, out: Outputs) -> None:
        if out[0].numel():
            rows = a.shape[0]
            main(a.contiguous(), a_scale.contiguous(), b.contiguous()[None],
                 b_scale.contiguous()[None], packed(g, rows, -(-rows // g.rows)), out[0])

    return run
