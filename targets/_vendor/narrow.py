"""A lowering's space on a backend that does not take all of Triton's launch options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from ...ops.space import Knob, Space
from ..base import BuildError

# Knobs that are launch options, and what Triton calls them.
_OPTION_OF = {"warps": "num_warps", "stages": "num_stages", "waves_per_eu": "waves_per_eu",
              "matrix_instr_nonkdim": "matrix_instr_nonkdim", "kpack": "kpack"}


def narrowed(space: Space, options: Mapping[str, Any], num_warps: Sequence[int]) -> Space:
    """The space with accepted numbers of warps only, and one choice for an option that is absent.

    The default is the first config that is left, in the lowering's own order; where the lowering's
    predicate leaves none, its default with another number of warps is all there is.
    """
    knobs: dict[str, tuple[Knob, ...]] = {}
    for name, choices in space.knobs.items():
        option = _OPTION_OF.get(name)
        if option is not None and option not in options:
            choices = choices[:1]
        elif option == "num_warps":
            choices = tuple(c for c in choices if c in num_warps)
        knobs[name] = choices
    if knobs == space.knobs:
        return space
    for values in product(*knobs.values()):
        if space.where(dict(zip(knobs, values, strict=True))):
            first = {n: (v, *(c for c in knobs[n] if c != v))
                     for n, v in zip(knobs, values, strict=True)}
            return Space(first, space.where)
    if not all(knobs.values()):
        raise BuildError(f"the backend has the option num_warps and accepts none of those that "
                         f"the kernel can take, {list(space.knobs['warps'])}", "illegal")
    nearest = {name: choices[0] for name, choices in knobs.items()}
    return Space(knobs, lambda c: dict(c) == nearest or space.where(c))
