"""CPU lowering: that of per_token_group_quant_fp8, column by column, with int8 codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._tvm.group_cast import TO_INT8
from ..per_token_group_quant_fp8 import tvm as e4m3
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import VectorTarget


def space(target: VectorTarget, shape: Shape) -> Space:
    """Vector width inside a group, rows per parallel task, elements below which one thread runs."""
    return Space({"lanes": (16, 32, 8, 64), "rows": (4, 1, 16, 64), "serial": (16384, 0, 65536)})


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """As that of the cast to e4m3."""
    return e4m3.lower(target, static, config, TO_INT8)


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """Flatten leading axes."""
    k, static = int(shape["k"]), {a: shape[a] for a in ("k", "group_size", "dtype")}
    main = target.compile("per_token_group_quant_int8", static, config)["main"] if k else None

    def run(x: Tensor, group_size: int, eps: float, *, out: Outputs) -> None:
        q, s = out
        if not x.numel() or main is None:
            return
        rows = x.reshape(-1, k)
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        main(rows, eps, q.view(-1, k), s.view(-1, s.shape[-1]))

    return run
