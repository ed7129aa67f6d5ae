"""Random configs of the Ascend lowerings, executed as MLIR on this CPU or simulated."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from .. import ops, targets
from ..ops.space import Config, config_text
from ..ops.spec import Operator, Shape
from ..targets.ascend.target import AscendTarget, Mode
from ..targets.ascend.verify import PASSED, UNKNOWN, first_wrong, launching
from ..targets.base import BuildError

# Axes whose size is free; how far a drawn one may be from that of a small shape of the operator.
_FREE = ("tokens", "n", "k", "h", "inter", "hidden", "m_max", "ctx", "batch", "e")
_CASES = (1, 0), (5, 2)              # which two of an operator's hostile calls a config gets


@dataclass(frozen=True)
class Tally:
    """How many configs of an operator were right, and what was not."""

    op: str
    right: int
    wrong: tuple[str, ...]
    refused: tuple[str, ...]         # by the compiler (of the simulator's runs): no kernel
    unknown: tuple[str, ...]         # not modelled
    seconds: float


def draws(target: AscendTarget, op: Operator, seed: int, dtype: str | None = None
          ) -> Iterator[tuple[Shape, Config]]:
    """Different (shape, config) of an operator: its small odd shapes first, then drawn ones.

    Only those with an operand of a dtype where one is given.
    """
    pick, seen = random.Random(f"{op.name} {seed}"), set()
    spaces = [(shape, list(target.space(op, shape))) for shape in op.odd_shapes
              if dtype is None or dtype in shape.values()]
    if not spaces:
        raise ValueError(f"{op.name} has no odd shape with {dtype}")
    for i in range(100_000):
        shape, space = spaces[i % len(spaces)]
        if i >= 2 * len(spaces) and pick.random() < 0.5:
            shape = _varied(op, shape, pick)
            space = list(target.space(op, shape))
        config = pick.choice(space)
        text = f"{sorted(shape.items())} {config_text(config)}"
        if text not in seen:
            seen.add(text)
            yield shape, config


def _varied(op: Operator, shape: Shape, pick: random.Random) -> Shape:
    changed = dict(shape)
    for axis in _FREE:
        if axis in shape and isinstance(shape[axis], int) and not _is_bound(op, axis):
            changed[axis] = max(1, int(int(shape[axis]) * pick.uniform(0.4, 1.4)))
    for count, whole in (("top_k", "e"), ("expected_m", "m_max")):
        if count in changed and whole in changed:
            changed[count] = min(int(changed[count]), int(changed[whole]))
    return changed


def _is_bound(op: Operator, axis: str) -> bool:
    """Whether an axis hangs on others: a request's context, the tokens of a varlen batch."""
    return "ctx" in op.dynamic or (axis == "n" and op.name == "weight_dequant")


def tally(op_name: str, device: str, count: int, seed: int, mode: Mode, cache_dir: Path,
          skip: int = 0, dtype: str | None = None) -> Tally:
    """Try `count` configs of an operator after the first `skip`, each on two of its calls."""
    began = time.monotonic()
    op = ops.load(op_name)
    target = targets.load("ascend", unit=device, mode=mode, cache_dir=cache_dir)
    assert isinstance(target, AscendTarget)
    right = 0
    wrong, refused, unknown = list[str](), list[str](), list[str]()
    drawn = enumerate(islice(draws(target, op, seed, dtype), skip + 4 * count))
    for number, (shape, config) in islice(drawn, skip, None):
        if right + len(wrong) + len(unknown) == count:
            break
        try:
            cases = launching(op.cases(shape, seed))
        except ValueError:           # a drawn shape that the operator does not have
            continue
        some = [cases[(number * step + start) % len(cases)] for step, start in _CASES]
        what = f"{dict(shape)} {dict(config)}"
        try:
            said = first_wrong(target, op, shape, config, some)
        except BuildError as e:
            said = f"BuildError: {e}"
        if said == PASSED:
            right += 1
        elif "overflow" in said or "multiplies only" in said:
            refused.append(f"{what}: {said}")
        else:
            (unknown if said.startswith(UNKNOWN) else wrong).append(f"{what}: {said}")
    return Tally(op.name, right, tuple(wrong), tuple(refused), tuple(unknown),
                 time.monotonic() - began)


def wanted(names: Sequence[str]) -> list[str]:
    """The operators that have an Ascend lowering, or those of them that are named."""
    return [n for n in (names or ops.names()) if ops.has_lowering(n, "ascend")]
