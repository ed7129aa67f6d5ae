"""What a compiling child does for a plan: one config, with all that a check and a timing call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.spec import Args, Operator, Shape
from ..targets.base import BuildError
from .session import make_target

_REAL_BYTES = 1 << 28                # of operands that may be made for their alignment alone
_SIZES = (1, 5, 13, 150)             # around the tiles, as adversarial cases have them
_DATA_NEEDED = (RuntimeError, NotImplementedError, ValueError, TypeError)


def compile_planned(recipe: list[Any], op: str, shape: dict[str, Any], config: dict[str, Any]
                    ) -> dict[str, Any]:
    """Runs in the child: compile into the target's cache; its `Examined`, or how it failed."""
    target, operator = make_target((recipe[0], recipe[1])), ops.load(op)
    try:
        seen = target.compile_here(operator, shape, config)
        launches_of = getattr(target, "launches_of", None)       # Triton's: by alignment
        if seen.legal and launches_of is not None:
            for args in _calls(op, json.dumps(shape)):
                with suppress(Exception):        # one that cannot be made ahead is made there
                    launches_of(operator, shape, config, [args])
    except BuildError as e:
        return {"status": e.status, "reason": str(e)[-2000:]}
    except Exception as e:               # whatever a compiler raises is one candidate
        status = "oom" if isinstance(e, MemoryError) else "build_error"
        return {"status": status, "reason": f"{type(e).__name__}: {e}"[-2000:]}
    return {"status": "ok", "examined": asdict(seen)}


@lru_cache(maxsize=4)
def _calls(op: str, shape: str) -> tuple[Args, ...]:
    return tuple(calls(ops.load(op), json.loads(shape)))


def calls(op: Operator, shape: Shape) -> list[Args]:
    """The calls of a check and of a timing on meta tensors, with the alignments they will have.

    Cases that need data to be made are made with it where that is cheap; of an operator with
    hundreds of MiB of weights, calls of a few sizes stand for them.
    """
    found = [op.signature(shape)]
    with suppress(*_DATA_NEEDED), torch.device("meta"):
        return [*found, *_real(op, shape)]
    if _bytes(found[0]) <= _REAL_BYTES:
        return [*found, *map(_without_data, _real(op, shape))]
    for n in _SIZES:
        sizes = {axis: n for axis in op.dynamic}
        with suppress(*_DATA_NEEDED):            # not every axis takes every size
            found.append(op.signature({**shape, **sizes}))
    return found


def _real(op: Operator, shape: Shape) -> Iterable[Args]:
    return [*(args for _, args in op.cases(shape, 0)), op.inputs(shape, 0)]


def _bytes(args: Args) -> int:
    return sum(a.nbytes for a in args if isinstance(a, Tensor))


def _without_data(args: Args) -> Args:
    """The same call on meta tensors; views keep their place in what they are views of."""
    def moved() -> Iterator[Any]:
        for a in args:
            if not isinstance(a, Tensor):
                yield a
                continue
            raw = torch.empty(a.untyped_storage().nbytes(), dtype=torch.uint8, device="meta")
            yield torch.empty(0, dtype=a.dtype, device="meta").set_(
                raw.untyped_storage(), a.storage_offset(), a.size(), a.stride())

    return tuple(moved())
