"""CPU lowering: that of per_token_group_quant_fp8 with e5m2's scales, quotients and codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._tvm.group_cast import TO_E5M2
from ..per_token_group_quant_fp8 import tvm as e4m3
from ..space import Config, Space
from ..spec import Kernel, Shape

if TYPE_CHECKING:
    from ...targets.base import VectorTarget


def space(target: VectorTarget, shape: Shape) -> Space:
    """That of the cast to e4m3."""
    return e4m3.space(target, shape)


def lower(target: VectorTarget, static: Shape, config: Config) -> dict[str, Any]:
    """As that of the cast to e4m3."""
    return e4m3.lower(target, static, config, TO_E5M2)


def build(target: VectorTarget, shape: Shape, config: Config) -> Kernel:
    """As that of the cast to e4m3."""
    return e4m3.build(target, shape, config, TO_E5M2)
