"""Symmetric int8 codes with scales: the definition that every int8 cast follows bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

INT8_MAX = 127.0                     # -128 is a legal code of an operand that no cast here makes


def int8_cast(groups: Tensor, eps: float, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Codes int8 of float32 `groups` that lie along `axes`, and their scales.

    s = max(amax, eps) / 127 and q = x / s to the nearest integer, ties to even, in float32 with
    IEEE division; |q| <= 127. A NaN or an infinity makes the scale the same and all codes of the
    group 0, so that every product with it is NaN; so does a scale that underflows to 0 (of values
    and eps below 127 * 2^-149), whose products are 0.
    """
    scale = groups.abs().amax(axes, keepdim=True).clamp_min(eps) / torch.tensor(INT8_MAX)
    q = (groups / scale).round().clamp(-INT8_MAX, INT8_MAX)
    return torch.where((scale > 0.0) & scale.isfinite(), q, 0.0).to(torch.int8), scale
