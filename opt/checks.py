"""Whether a kernel computes what its operator defines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.numerics import SENTINEL, mismatches
from ..ops.spec import Args, Kernel, Operator, Outputs
from .guards import Guarded


class WroteOutside(Exception):
    """A kernel wrote past its output."""


def run_once(fn: Kernel, op: Operator, args: Args) -> Outputs:
    """Run on sentinel-filled outputs and cloned in-place arguments; return all that is written.

    Raises:
        WroteOutside: the bytes around an output changed.
    """
    args = tuple(a.clone() if i in op.mutates else a for i, a in enumerate(args))
    guarded = Guarded(op.empty(*args))
    for o in guarded.outputs:
        o.copy_(torch.full((), SENTINEL).to(o.dtype))
    fn(*args, out=guarded.outputs)
    if why := guarded.why_broken():
        raise WroteOutside(why)
    return (*guarded.outputs, *(args[i] for i in op.mutates))


def why_wrong(op: Operator, kernel: Kernel, name: str, args: Args, want: Outputs) -> str | None:
    """The first mismatch with the reference's outputs (on the CPU) of one case, or None.

    Where the operator casts inside, a result is right with either code of a tie (`ops.slack`).
    """
    try:
        got = tuple(o.cpu() for o in run_once(kernel, op, args))
    except WroteOutside as e:
        return f"case {name!r}: it {e}"
    why = mismatches(got, want, op.rtol)
    if why and (slack := ops.slack(op.name, tuple(map(_here, args)))) is not None:
        near = tuple(_nearest(w, g, s) for w, g, s in zip(want, got, slack, strict=True))
        why = mismatches(got, near, op.rtol)
    return why and f"case {name!r}: {why}"


def _here(argument: Any) -> Any:
    return argument.cpu() if isinstance(argument, Tensor) else argument


def _nearest(want: Tensor, got: Tensor, slack: Tensor) -> Tensor:
    """What comes nearest to `got` within `slack` of `want`."""
    wide = want.double()
    moved = wide + (got.double() - wide).clamp(-slack, slack)
    return torch.where(moved.isfinite(), moved, wide).to(want.dtype)
