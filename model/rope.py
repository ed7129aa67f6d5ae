"""Rotary position embedding with YaRN (arXiv 2309.00071), in DeepSeek's interleaved layout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .config_keys import mapping, number, size

ROPE_TYPES = ("default", "yarn")


@dataclass(frozen=True)
class RopeConfig:
    """Base frequency and, with factor > 1 or YaRN stated, its context extension."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_positions: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    @staticmethod
    def from_dict(c: Mapping[str, Any]) -> RopeConfig:
        """Read rope_theta and rope_scaling (releases) or rope_parameters (transformers 5)."""
        scaling = mapping(c, "rope_parameters") | mapping(c, "rope_scaling")
        theta = number({**c, **scaling}, "rope_theta")
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ROPE_TYPES:
            raise ValueError(f"config.json: the rope type must be one of {', '.join(ROPE_TYPES)}, "
                             f"got {kind!r}")
        if (part := scaling.get("partial_rotary_factor", 1.0)) != 1.0:
            raise ValueError(f"config.json: partial_rotary_factor must be 1.0, got {part!r}")
        if kind == "default":
            return RopeConfig(theta)
        for key in ("factor", "original_max_position_embeddings"):
            if key not in scaling:
                raise ValueError(f"config.json: key 'rope_scaling.{key}' is missing; YaRN needs it")
        return RopeConfig(
            theta, "yarn", number(scaling, "factor"),
            size(scaling, "original_max_position_embeddings"),
            float(scaling.get("beta_fast") or 32.0), float(scaling.get("beta_slow") or 1.0),
            float(scaling.get("mscale") or 1.0), float(scaling.get("mscale_all_dim") or 0.0))

    @property
    def attention_mscale(self) -> float:
        """What the softmax scale is multiplied with, twice (queries and keys)."""
        return _mscale(self.factor, self.mscale_all_dim) if self.kind == "yarn" else 1.0

    @property
    def rotary_mscale(self) -> float:
        """What cosines and sines are multiplied with; 1 in all releases."""
        if self.kind != "yarn":
            return 1.0
        return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def frequencies(rope: RopeConfig, dim: int) -> Tensor:
    """Angle per position of each of the dim / 2 pairs, float32."""
    extrapolated = 1.0 / rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if rope.kind != "yarn":
        return extrapolated

    def pair_of(rotations: float) -> float:
        """The pair that turns so many times within the original context."""
        return (dim * math.log(rope.original_positions / (rotations * 2 * math.pi))
                / (2 * math.log(rope.theta)))

    low = max(math.floor(pair_of(rope.beta_fast)), 0)
    high = min(math.ceil(pair_of(rope.beta_slow)), dim - 1)
    width = high - low or 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return extrapolated / rope.factor * ramp + extrapolated * (1 - ramp)


def cos_sin_table(rope: RopeConfig, dim: int, positions: int) -> Tensor:
    """[positions, dim] float32: the cosines of all pairs, then their sines."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies(rope, dim))
    return torch.cat((angles.cos(), angles.sin()), -1) * rope.rotary_mscale


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate pairs (x0, x1), (x2, x3) ...; the layout that mla_kv_append writes keys in."""
    # x [T, H, rope], cos_sin [T, rope] float32 -> [T, H, rope], rounded once to x's dtype
    cos, sin = cos_sin.unsqueeze(1).chunk(2, -1)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2).to(x.dtype)
