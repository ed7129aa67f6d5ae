"""Products on the cube core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .memory import poison_of
from .work import NotModelled, tiled, untiled

if TYPE_CHECKING:
    from .machine import Core


def product(core: Core, args: Sequence[Any], b_transposed: bool) -> None:
    """mma_tile_*: L1 to L0 on MTE1, which waits and sets by itself, then the product on M."""
    a, b, fresh, m, k, n, c, wait_a, wait_b, free_a, free_b, _, extra, unit, mode = args
    if (extra, unit, mode) != (-1, -1, 0):
        raise NotModelled(f"mma_tile with unit flags: {extra}, {unit}, {mode}")
    for event in (wait_a, wait_b):
        if event >= 0:
            core.pipes.wait_flag("MTE2", "MTE1", event)
    loading = core.pipes.issue("MTE1")
    core.access(loading, (a, b), ())
    for event in (free_a, free_b):
        if event >= 0:
            core.pipes.set_flag("MTE1", "MTE2", event)
    core.pipes.join("M", core.pipes.ended("MTE1"))
    left, right = untiled(a.read()), untiled(b.read())
    left = left[:m, :k]
    right = right[:n, :k].T if b_transposed else right[:k, :n]
    exact = torch.int32 if c.dtype == "i32" else torch.float32
    whole = untiled(c.read()) if not fresh else torch.full(
        (c.sizes[1] * c.sizes[2], c.sizes[0] * c.sizes[3]), poison_of(exact), dtype=exact)
    if fresh:
        whole[:m, :n] = 0
    core.access(core.pipes.issue("M"), () if fresh else (c,), (c,))
    whole[:m, :n] += left.to(exact) @ right.to(exact)
    c.write(tiled(whole, c))
