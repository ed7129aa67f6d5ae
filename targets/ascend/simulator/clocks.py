"""Pipes, event flags and vector clocks: which operation is certain to end before which begins.

A core's scalar unit walks the program and hands each operation to the queue of a pipe. Pipes run
beside one another; only flags and barriers order them. Between two operations of one pipe a barrier
is needed too, except where the hardware keeps the order by itself (IN_ORDER). A clock says for each
pipe of each core up to which of its operations all have ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Clock = NDArray[np.int64]
PIPES = ("S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX")
# The compiler emits no barrier inside these: S is the walk itself, MTE1 and M work in the order of
# the products that one library call or the next asks for.
IN_ORDER = frozenset(("S", "MTE1", "M"))
# For the 950 it emits none between vector functions either.
IN_ORDER_950 = IN_ORDER | {"V"}
_MOST_PENDING = 15                   # a cross-core flag is a counter of four bits


class Fault(Exception):
    """The text would not run as it was meant to on the device; the message says where and why."""


class Pipes:
    """The clocks and flags of one core; `core` of `cores` takes part in one block."""

    def __init__(self, core: int, cores: int, in_order: frozenset[str] = IN_ORDER):
        self._in_order = in_order
        self._first = core * len(PIPES)
        size = cores * len(PIPES)
        self._clock = {p: np.zeros(size, np.int64) for p in PIPES}
        self._issued = dict.fromkeys(PIPES, 0)
        self._flags: dict[tuple[str, str, int], Clock] = {}

    def thread(self, pipe: str) -> int:
        """The number of a pipe among those of all cores."""
        return self._first + PIPES.index(pipe)

    def issue(self, pipe: str) -> tuple[int, int, Clock]:
        """An operation on a pipe: (thread, its number there, what has ended when it begins)."""
        clock = self._clock[pipe]
        np.maximum(clock, self._clock["S"], out=clock)
        began = clock.copy()
        self._issued[pipe] += 1
        if pipe in self._in_order:
            clock[self.thread(pipe)] = self._issued[pipe]
        return self.thread(pipe), self._issued[pipe], began

    def ended(self, pipe: str) -> Clock:
        """The clock once everything handed to the pipe so far has ended."""
        clock = np.maximum(self._clock[pipe], self._clock["S"])
        clock[self.thread(pipe)] = self._issued[pipe]
        return clock

    def join(self, pipe: str, clock: Clock) -> None:
        """What comes next on a pipe begins after all that `clock` says."""
        np.maximum(self._clock[pipe], clock, out=self._clock[pipe])

    def barrier(self, pipe: str) -> None:
        """pipe_barrier: order within one pipe, or ("ALL") of everything."""
        for p in PIPES if pipe == "ALL" else (pipe,):
            self.join("S" if pipe == "ALL" else p, self.ended(p))

    def set_flag(self, source: str, target: str, event: int) -> None:
        """When `source` has ended what it has, the event is set for `target`."""
        key = (source, target, event)
        if key in self._flags:
            raise Fault(f"event {event} from {source} to {target} is set while it is set")
        self._flags[key] = self.ended(source)

    def wait_flag(self, source: str, target: str, event: int) -> None:
        """`target` goes on when the event is set, and clears it."""
        clock = self._flags.pop((source, target, event), None)
        if clock is None:
            raise Fault(f"{target} waits for event {event} from {source} that nobody set")
        self.join(target, clock)

    def check_no_event_is_set(self) -> None:
        """At the end of a kernel every event must have been waited for."""
        if self._flags:
            raise Fault(f"events are still set at the end: {sorted(self._flags)}")


class CrossCore:
    """The flags between the cube core (0) and the vector cores (1, 2) of a block."""

    def __init__(self, vectors: Sequence[int]):
        self._vectors = tuple(vectors)
        self._pending: dict[tuple[int, int, int], deque[Clock]] = {}
        self.sets = 0                # so far: tells whether a round of waiting got anywhere

    def set(self, core: int, flag: int, clock: Clock) -> None:
        """The cube core sets for every vector core, a vector core for the cube core."""
        self.sets += 1
        for target in self._vectors if core == 0 else (0,):
            queue = self._pending.setdefault((core, target, flag), deque())
            queue.append(clock)
            if len(queue) > _MOST_PENDING:
                raise Fault(f"cross-core flag {flag} is set more than {_MOST_PENDING} times "
                            "without a wait")

    def wait(self, core: int, flag: int) -> Clock | None:
        """The joined clocks of the setters, or None while one of them has not set the flag."""
        queues = [self._pending.get((source, core, flag))
                  for source in (self._vectors if core == 0 else (0,))]
        if not all(queues):
            return None
        clock: Clock = np.maximum.reduce([q.popleft() for q in queues if q])
        return clock

    def check_no_flag_is_set(self) -> None:
        """At the end of a kernel every flag must have been waited for."""
        left = sorted({flag for (_, _, flag), queue in self._pending.items() if queue})
        if left:
            raise Fault(f"cross-core flags are still set at the end: {left}")
