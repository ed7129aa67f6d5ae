"""What one library call does, and the layouts of tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

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
