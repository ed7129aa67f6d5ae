"""GPU lowering: that of per_token_group_quant_fp8 with e5m2's scales and codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..fp8_format import E5M2
from ..per_token_group_quant_fp8 import triton as e4m3
from ..space import Config, Space
from ..spec import Kernel, Shape

if TYPE_CHECKING:
    from ...targets.base import GridTarget


def space(target: GridTarget, shape: Shape) -> Space:
    """That of the cast to e4m3."""
    return e4m3.space(target, shape)


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """As that of the cast to e4m3."""
    return e4m3.build(target, shape, config, E5M2)
