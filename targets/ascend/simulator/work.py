"""What one library call does, and the layouts of tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from .clocks import Fault
from .memory import View

Value = Any                          # View, int, float or bool
Compute = Callable[[list[Tensor]], Tensor]


class NotModelled(Exception):
    """The simulator does not know a function, a mode or an operation: nothing was found out."""


@dataclass(frozen=True)
class Work:
    """One library call: what it reads, what it leaves, and on which pipe."""

    pipe: str
    reads: tuple[View, ...]
    write: View
    compute: Compute
    scratch: tuple[View, ...] = ()


def need(condition: bool, what: str) -> None:
    """NotModelled unless a call is of the kind that is modelled."""
    if not condition:
        raise NotModelled(what)


def tiled(x: Tensor, view: View) -> Tensor:
    """A matrix [rows, columns] in the layout of `view`: [columns / c, rows / r, r, c]."""
    columns, rows, r, c = view.sizes
    return x.reshape(rows, r, columns, c).permute(2, 0, 1, 3)


def untiled(x: Tensor) -> Tensor:
    """The inverse: [columns / c, rows / r, r, c] -> [rows, columns]."""
    return x.permute(1, 2, 0, 3).reshape(x.shape[1] * x.shape[2], -1)


def check_operands(work_: Work) -> None:
    """A result may stand on a source from its first byte on; scratch on nothing at all."""
    pairs = [(a, work_.write, True) for a in work_.reads]
    pairs += [(a, b, False) for a in (*work_.reads, work_.write) for b in work_.scratch]
    for a, b, in_place in pairs:
        first, second = a.span(), b.span()
        if a.space is not b.space or not isinstance(first, slice) or not isinstance(second, slice):
            continue
        apart = max(first.start, second.start) >= min(first.stop, second.stop)
        # a result with other sizes would overwrite what is still to be read
        in_place = in_place and first.start == second.start and prod(a.sizes) == prod(b.sizes)
        if not apart and not in_place:
            raise Fault(f"{a.space.name}: one call's operands at {first.start} and {second.start} "
                        "overlap")
