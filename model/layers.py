"""Norm, projection, MLP and mixture of experts over the front door's operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import (
    fused_moe,
    gemm_nt,
    moe_route,
    per_token_group_quant_fp8,
    per_token_group_quant_int8,
    silu_mul,
)
from .config import RoutingConfig
from .weights import Operand

# Sees the routing of a step: (layer, topk_weights [T, k], topk_ids [T, k]).
RouteObserver = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class RMSNorm:
    """x / rms(x) * weight."""

    weight: Tensor                   # [D] in the activations' dtype
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True)
class Linear:
    """x @ weight.T in x's dtype or another; the weight is read as it is stored."""

    weight: Operand                  # [N, K] plain, or FP8 or int8 with scales
    block: tuple[int, int] = (128, 128)          # rows and columns per scale
    w8a8: bool = False               # cast the activations like the weight

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        # x [T, K] -> [T, N]
        out_dtype = out_dtype or x.dtype
        if self.w8a8 and not isinstance(self.weight, Tensor):
            cast = (per_token_group_quant_int8 if self.weight[0].dtype == torch.int8
                    else per_token_group_quant_fp8)
            pair = cast(x, group_size=self.block[1])
            return gemm_nt(pair, self.weight, out_dtype=out_dtype, block_shape=self.block)
        return gemm_nt(x, self.weight, out_dtype=out_dtype, block_shape=self.block)


@dataclass(frozen=True)
class MLP:
    """down(silu(gate(x)) * up(x)); gate and up are one GEMM."""

    gate_up: Linear                  # [2I, D]
    down: Linear                     # [D, I]

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(silu_mul(self.gate_up(x)))


@dataclass(frozen=True)
class MoE:
    """Routed experts plus the shared ones."""

    layer: int
    gate: Tensor                     # [E, D] float32: rounding it would change who is chosen
    bias: Tensor | None              # [E] float32, selects only
    routing: RoutingConfig
    w1: Operand                      # [E, 2I, D]
    w2: Operand                      # [E, D, I]
    shared: MLP | None
    block: tuple[int, int]
    w8a8: bool

    def __call__(self, x: Tensor, on_route: RouteObserver | None = None,
                 absent: Tensor | None = None) -> Tensor:
        # x [T, D], absent [T] bool -> [T, D]
        r = self.routing
        weights, ids = moe_route(
            gemm_nt(x.float(), self.gate, out_dtype=torch.float32), r.top_k, self.bias, r.scoring,
            r.n_group, r.topk_group, r.group_score, r.norm_topk_prob, r.routed_scaling_factor)
        if on_route is not None:
            on_route(self.layer, weights, ids)
        if absent is not None:       # no expert's weights are read for a row that is not there
            ids = ids.masked_fill(absent.unsqueeze(1), -1)
        (w1, s1), (w2, s2) = _parts(self.w1), _parts(self.w2)
        w8a8 = self.w8a8 and s1 is not None
        out = fused_moe(x, w1, w2, weights, ids, s1, s2, self.block,
                        use_fp8_w8a8=w8a8 and w1.dtype != torch.int8,
                        use_int8_w8a8=w8a8 and w1.dtype == torch.int8)
        return out if self.shared is None else out.add_(self.shared(x))


def _parts(operand: Operand) -> tuple[Tensor, Tensor | None]:
    return (operand, None) if isinstance(operand, Tensor) else operand
