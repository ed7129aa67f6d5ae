"""What all FP8 casts share: the e4m3 range, scale layouts and UE8M0 scales."""

from __future__ import annotations

import torch
from torch import Tensor

E4M3_MAX = 448.0
AMAX_FLOOR = 1e-10                   # eps where the caller cannot choose one: per-block casts
TMA_ALIGNMENT_BYTES = 16             # a TMA descriptor's stride unit (CUDA driver API, cuTensorMap)


def power_of_two_above(scale: Tensor) -> Tensor:
    """The smallest power of two >= scale >= 0, at least 2^-126 (UE8M0), exact: no log2.

    What is not finite stays as it is.
    """
    mantissa, exponent = torch.frexp(scale)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    exponent = torch.where(mantissa == 0.0, -126, exponent).clamp(-126, 127)
    return torch.where(scale.isfinite(), torch.ldexp(torch.ones_like(scale), exponent), scale)


def group_cast(groups: Tensor, eps: float, use_ue8m0: bool, axes: tuple[int, ...]) -> tuple[
        Tensor, Tensor]:
    """Cast float32 `groups` that lie along `axes`: e4m3 values (still float32), and their scales.

    s = max(amax, eps) / 448 and q = x / s in float32 with IEEE division, saturating: the
    definition that every FP8 cast of this package follows bit for bit. One NaN in a group makes
    the scale and the group NaN; an infinity makes the scale infinite, so finite values become 0.
    """
    # a Python 448.0 / amax would be rounded by another route in torch (docs/facts.md)
    scale = groups.abs().amax(axes, keepdim=True).clamp_min(eps) / torch.tensor(E4M3_MAX)
    if use_ue8m0:
        scale = power_of_two_above(scale)
    return (groups / scale).clamp(-E4M3_MAX, E4M3_MAX), scale


def check_cast(group: int, eps: float) -> None:
    """The rules that all casts share."""
    if group < 1:
        raise ValueError(f"group_size must be at least 1, got {group}")
    if not 0.0 < eps < float("inf"):
        raise ValueError(f"eps must be positive and finite, got {eps}; 1e-10 is usual: it keeps "
                         "the scale of an all-zero group above 0")


def scale_count(size: int, group: int) -> int:
    """How many scales `size` elements need."""
    return -(-size // group)


def empty_scales(x: Tensor, groups: int, column_major: bool, tma_aligned: bool) -> Tensor:
    """float32 scales [..., groups] of x [..., K]; column-major means that tokens are adjacent.

    TMA-aligned pads the token stride to 16 bytes, as DeepGEMM's MN-major layout asks.
    """
    lead = x.shape[:-1]
    if not column_major:
        return torch.empty((*lead, groups), dtype=torch.float32, device=x.device)
    if x.ndim < 2:
        raise ValueError(f"column_major_scales needs x [..., M, K], got {list(x.shape)}")
    m = lead[-1]
    unit = TMA_ALIGNMENT_BYTES // 4
    padded = -(-m // unit) * unit if tma_aligned else m
    buffer = torch.empty((*lead[:-1], groups, padded), dtype=torch.float32, device=x.device)
    return buffer.transpose(-1, -2)[..., :m, :]
