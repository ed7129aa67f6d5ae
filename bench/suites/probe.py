"""Which of a peer's forms is the fastest here, and how calls are clocked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

Call = Callable[[], Any]
Make = Callable[[int], Call]         # a call on that many threads

_PROBE_S = 0.4                       # of a form, after its first call
_MOST_CALLS = 9
_WAKE_S = 0.01                       # two ticks of 4 ms, and spare
_LONG_US = 300_000.0                 # from here on one call is a measurement
_HOPELESS = 1.5                      # slower than the best by this: no further calls


def always(call: Call) -> Make:
    """A form whose calls do not know how many threads there are."""
    return lambda threads: call


def _no_pool(threads: int) -> None:
    """For forms whose thread count is their own."""


def probe(forms: Iterable[tuple[str, Make]], threads: int,
          use: Callable[[int], None] = _no_pool, each: bool = False
          ) -> tuple[dict[str, Any], dict[str, tuple[Call, int]]]:
    """Microseconds of all forms, then of the fastest (of `each` form) with half of the threads, a
    quarter and so on.

    Returns what can be told of them, and the fastest calls by name with their thread counts.
    """
    probes: dict[str, float] = {}
    failed: dict[str, str] = {}
    kept: dict[str, tuple[str, Make, Call, int]] = {}        # by form, or "" for all

    def attempt(form: str, make: Make, count: int) -> None:
        full = f"{form}, {count} thread{'s' if count > 1 else ''}"
        best = kept.get(form if each else "")
        try:
            use(count)
            call = make(count)
            probes[full] = _quick(call, probes[best[0]] if best else math.inf)
        except Exception as e:       # a form that cannot do this shape
            failed[full] = f"{type(e).__name__}: {str(e)[:200]}"
            return
        loser: Call | None = call
        if not best or probes[full] < probes[best[0]]:
            loser = best[2] if best else None
            kept[form if each else ""] = full, make, call, count
        if loser is not None and loser is not kept[form if each else ""][2]:
            close(loser)

    for form, make in forms:
        attempt(form, make, threads)
    for full, make, _, _ in list(kept.values()):
        count = threads // 2
        while count:
            attempt(full.rpartition(", ")[0], make, count)
            count //= 2
    told = {"best": [full for full, *_ in kept.values()], "probes": probes, "failed": failed}
    return told, {full: (call, count) for full, _, call, count in kept.values()}


def close(call: Any) -> None:
    """Give a peer's memory back; most hold none of their own."""
    getattr(call, "close", lambda: None)()


def _quick(call: Call, best_us: float) -> float:
    """Least of a few calls; a slow form that is not the best gets one or two."""
    found = [clock(call, 1)]
    if found[0] > max(_LONG_US, _HOPELESS * best_us):
        return found[0]
    end = time.perf_counter() + _PROBE_S
    found = [clock(call, 1)]         # the first one compiled, or filled caches
    while (found[0] < _HOPELESS * best_us and time.perf_counter() < end
           and len(found) < _MOST_CALLS):
        found.append(clock(call, 1))
    return min(found)


def wake(kernel: Call) -> None:
    """Two threads that sleep may wake on one core, and share it until the scheduler's next tick."""
    end = time.perf_counter() + _WAKE_S
    while time.perf_counter() < end:
        kernel()


def clock(call: Call, inner: int) -> float:
    """Microseconds of one of `inner` calls in a row."""
    start = time.perf_counter_ns()
    for _ in range(inner):
        call()
    return (time.perf_counter_ns() - start) / inner / 1e3
