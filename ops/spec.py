"""The contract of an operator: what is computed, on what data, and how much work that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .models import Load, ModelDims

Value = int | float | str | bool
Shape = Mapping[str, Value]          # axis -> size, dtype name or flag; plain JSON
Args = tuple[Any, ...]               # the call's arguments, in the operator's canonical order
Outputs = tuple[Tensor, ...]


# Runs one operator, `kernel(*args, out=outputs)`: writes every element that the operator defines.
Kernel = Callable[..., None]


@dataclass(frozen=True)
class Work:
    """The least that any implementation must do; the floor of a shape follows from it."""

    flops: int
    bytes: int                       # compulsory memory traffic: every operand once


def same_args(args: Args, seed: int, shares: Tensor | None = None) -> Args:
    """The default of `Operator.redraw`: the same arguments again."""
    return args


@dataclass(frozen=True)
class Operator:
    """One operator, without any device code.

    `args` everywhere are the positional arguments in canonical order: tensors first (None for an
    absent optional one), then plain scalars. A kernel and the reference are called alike:
    `fn(*args, out=outputs)`, and neither touches elements of `out` that the operator leaves alone.
    """

    name: str
    static: tuple[str, ...]          # axes that select a compiled kernel
    dynamic: tuple[str, ...]         # axes that select a bucket of the tuning database
    shape_of: Callable[..., Shape]   # (*args) -> all axes; raises ValueError/TypeError on misuse
    empty: Callable[..., Outputs]    # (*args) -> fresh outputs; works on meta and fake tensors
    reference: Kernel                # plain torch in float64 (or float32): the truth
    signature: Callable[[Shape], Args]                       # a call on meta tensors: no data
    inputs: Callable[[Shape, int], Args]                     # realistic, unread slots poisoned
    cases: Callable[[Shape, int], Iterator[tuple[str, Args]]]  # adversarial calls, same static axes
    work: Callable[[Shape], Work]
    shapes: Callable[[ModelDims, Load], tuple[Shape, ...]]   # what a model makes of this operator
    rtol: Mapping[str, float]        # output dtype name -> tolerance (numerics.py); 0 = bit for bit
    odd_shapes: tuple[Shape, ...] = ()   # small shapes that divide nothing: what the tests run
    mutates: tuple[int, ...] = ()    # positions in `args` that are written in place
    redraw: Callable[..., Args] = same_args  # (args, seed, shares of the experts): other experts,
                                             # the same weights: keeps weights cold
    experts_of: Callable[[Args], tuple[Tensor, Tensor]] | None = None  # weights [E, ...], ids used
    regime: Callable[[Shape], str] = field(default=lambda shape: "")  # no record crosses regimes

    @property
    def is_routed(self) -> bool:
        """Whether its speed depends on how tokens spread over experts."""
        return self.redraw is not same_args

    def static_of(self, shape: Shape) -> dict[str, Value]:
        """The axes that select a compiled kernel."""
        return {axis: shape[axis] for axis in self.static}

    def dynamic_of(self, shape: Shape) -> dict[str, Value]:
        """The axes that select a bucket."""
        return {axis: shape[axis] for axis in self.dynamic}
