"""The cast to float8_e5m2 as it is defined."""

from __future__ import annotations

import torch
from torch import Tensor

from .fp8 import power_of_two_above
from .fp8_format import E5M2


def group_cast(groups: Tensor, eps: float, use_ue8m0: bool) -> tuple[Tensor, Tensor]:
    """Cast float32 `groups` [..., columns]: e5m2 values (still float32), and their scales.

    s = max(amax, eps) / 57344 and q = x / s in float32 with IEEE division, saturating: as
    `fp8.group_cast` does for e4m3, infinities and NaNs too. So no code is infinity, though the
    format has one: an infinity makes the scale infinite and is itself NaN, as one NaN makes all.
    """
    top = groups.abs().amax(-1, keepdim=True).clamp_min(eps)
    scale = top / torch.tensor(E5M2.most)     # a tensor: docs/facts.md on Python divisors
    if use_ue8m0:
        scale = power_of_two_above(scale)
    return (groups / scale).clamp(-E5M2.most, E5M2.most), scale
