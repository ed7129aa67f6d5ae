"""The least time that a machine's measured limits allow for a shape."""

from __future__ import annotations

from ..ops.spec import Operator, Shape
from ..targets.base import Target


def floor_us(op: Operator, target: Target, shape: Shape) -> float | None:
    """max(bytes / bandwidth, flops / peak) in microseconds, or None while no limit is known."""
    work, limits = op.work(shape), target.limits()
    times = [amount / (limits[name].value * 1e9) * 1e6
             for name, amount in (("bandwidth", work.bytes), ("flops", work.flops))
             if name in limits and amount > 0]
    return max(times, default=None)
