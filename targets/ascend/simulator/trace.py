"""Every access of a run, and which of them nothing orders: all pairs, byte by byte.

The simulator's own check looks at the last writer and the last readers of each byte while it walks.
This one forgets nothing and knows nothing of that bookkeeping. A run without an unordered pair has
the same results however the pipes take their turns, because all orders that the flags allow agree
on every pair of accesses that could matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .clocks import Clock

Span = slice | NDArray[np.int64]


@dataclass(frozen=True)
class Access:
    """One operation's use of some bytes of a memory."""

    memory: tuple[int, str]          # block and core of a memory on chip, its name
    thread: int
    number: int                      # of the operation on that pipe
    began: Clock                     # what had ended then
    span: Span
    writes: bool
    scratch: int                     # the buffer, of what a call only scribbles in; else -1


def unordered(trace: Sequence[Access]) -> list[tuple[Access, Access]]:
    """The pairs that touch a byte, one of them writing, with neither ended when the other began."""
    by_memory: dict[tuple[int, str], list[Access]] = defaultdict(list)
    for access in trace:
        by_memory[access.memory].append(access)
    return [pair for accesses in by_memory.values() for pair in _pairs(accesses)]


def _pairs(accesses: list[Access]) -> list[tuple[Access, Access]]:
    bounds = np.array([_bounds(a.span) for a in accesses], np.int64)
    threads = np.array([a.thread for a in accesses])
    numbers = np.array([a.number for a in accesses])
    writes = np.array([a.writes for a in accesses])
    scratch = np.array([a.scratch for a in accesses])
    clocks = np.stack([a.began for a in accesses])
    found = []
    for i, a in enumerate(accesses[1:], 1):
        earlier = slice(0, i)
        near = (bounds[earlier, 0] < bounds[i, 1]) & (bounds[i, 0] < bounds[earlier, 1])
        near &= writes[earlier] | a.writes
        near &= (numbers[earlier] > a.began[threads[earlier]])           # not ended before a began
        near &= (a.number > clocks[earlier, a.thread])                   # nor a before they began
        near &= (threads[earlier] != a.thread) | (numbers[earlier] != a.number)
        near &= (scratch[earlier] != a.scratch) | (a.scratch < 0)
        found += [(accesses[j], a) for j in np.flatnonzero(near) if _meet(accesses[j].span, a.span)]
    return found


def _bounds(span: Span) -> tuple[int, int]:
    if isinstance(span, slice):
        return int(span.start), int(span.stop)
    return (int(span.min()), int(span.max()) + 1) if span.size else (0, 0)


def _meet(a: Span, b: Span) -> bool:
    first, second = (np.arange(s.start, s.stop) if isinstance(s, slice) else s for s in (a, b))
    return bool(np.isin(first, second).any())
