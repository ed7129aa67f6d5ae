"""How far a right result may be off where the cast between the two GEMMs meets a tie (w8a8).

An activation a rounding away from the float64 one may get the neighbouring code, which moves its
whole row by that element's share: 1e-3 of the largest output, where everything else agrees to 2e-5.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..fp8 import AMAX_FLOOR, E4M3_MAX, group_cast
from ..gemm_nt.operand import FP8, RTOL, plain64
from ..int8 import INT8_MAX, int8_cast
from ..spec import Outputs
from . import round_trip


def slack(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor,
          w1_scale: Tensor | None, w2_scale: Tensor | None, block_n: int, block_k: int,
          w8a8: bool) -> Outputs:
    """What each output may be off beside the tolerance, float64 [tokens, K]; 0 without a cast."""
    total = torch.zeros(hidden.shape, dtype=torch.float64)
    if not w8a8:
        return (total,)
    block, inter, x = (block_n, block_k), w2.shape[2], round_trip(hidden, block_k, w1.dtype)
    for e in topk_ids.unique().tolist():
        if not 0 <= e < w1.shape[0]:
            continue
        token, slot = (topk_ids == e).nonzero().T
        up = x[token] @ plain64(w1[e], None if w1_scale is None else w1_scale[e], block).T
        act = up[:, :inter] * up[:, :inter].sigmoid() * up[:, inter:]
        weights = plain64(w2[e], None if w2_scale is None else w2_scale[e], block)
        share = _steps(act, block_k, w1.dtype) @ weights.abs().T
        total.index_add_(0, token, share * topk_weights[token, slot].abs().double()[:, None])
    return (total.nan_to_num(0.0),)


def _steps(act: Tensor, group: int, codes: torch.dtype) -> Tensor:
    """By how much the cast values differ when an element moves by the tolerance of its group."""
    k = act.shape[-1]
    groups = pad(act.float(), (0, -k % group)).unflatten(-1, (-1, group))
    cast, top = (partial(group_cast, use_ue8m0=False), E4M3_MAX) if codes == FP8 else (
        int8_cast, INT8_MAX)
    scale = cast(groups, eps=AMAX_FLOOR, axes=(-1,))[1]
    move = RTOL["float32"] * groups.abs().amax(-1, keepdim=True)

    def code(moved: Tensor) -> Tensor:
        ratio = (moved / scale).clamp(-top, top)
        return (ratio if codes == FP8 else ratio.round()).to(codes).double()

    return ((code(groups + move) - code(groups - move)) * scale.double()).flatten(-2)[..., :k]
