"""A form: one way of a peer to compute an operator, and how argument sets take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any


@dataclass(frozen=True)
class Form:
    """One way to compute a case; `call` steps through the argument sets, so data stays cold."""

    name: str                        # "torch f32 loop"
    call: Callable[[], Any]
    threads: int = 1


def turns(fn: Callable[..., Any], sets: Iterable[Sequence[Any]]) -> Callable[[], Any]:
    """A call without arguments that takes the next argument set every time."""
    following = cycle(list(sets)).__next__

    def call() -> Any:
        return fn(*following())

    return call
