"""Device time by the events of a maker's torch module; never run so far on any of the devices."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

_FLUSH_BYTES = 256 << 20             # as on GPUs: beyond any cache


def events_us(device: str, fn: Callable[[], object], inner: int) -> float:
    """Median time of `inner` calls between two events, each after a write of 256 MiB."""
    module: Any = getattr(torch, device)
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)

    def once() -> float:
        flush.zero_()
        start, end = (module.Event(enable_timing=True) for _ in range(2))
        start.record()
        fn()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3

    return median(once() for _ in range(inner))
