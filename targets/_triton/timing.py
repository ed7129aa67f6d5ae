"""Device time of GPU calls: events around each, the L2 cache cold, graphs for the shortest."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor

GRAPH_BELOW_US = 20.0                # shorter calls are timed as graphs: their launches cost more
_FLUSH_BYTES = 256 << 20             # several times the largest L2 of today (MI300X: 256 MiB LLC)


@cache
def _flush_buffer() -> Tensor:
    return torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")


def _once_us(fn: Callable[[], object]) -> float:
    """One call behind a flush of the L2; the flush also hides the host's time to launch."""
    _flush_buffer().zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    fn()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def _captured(fn: Callable[[], object]) -> Any:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fn()
    return graph


def median_us(fn: Callable[[], object], calls: int) -> float:
    """Median device time of `calls` calls, each with a cold L2."""
    return median(_once_us(fn) for _ in range(calls))


def host_us(fn: Callable[[], object], inner: int) -> float:
    """Wall time of one of `inner` calls in the interpreter: says nothing about a GPU."""
    start = time.perf_counter_ns()
    for _ in range(inner):
        fn()
    return (time.perf_counter_ns() - start) / inner / 1e3


def time_us(fn: Callable[[], object], inner: int) -> float:
    """Median device time of `inner` calls, short ones as graphs; the caller has warmed `fn` up."""
    if _once_us(fn) >= GRAPH_BELOW_US:
        return median_us(fn, inner)
    graph = _captured(fn)
    graph.replay()
    return median_us(graph.replay, inner)
