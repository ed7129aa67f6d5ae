"""Random programs of all operators: does the compiler take them, and had the model said so."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from .. import ops, targets
from ..ops.models import Load, preset
from ..ops.spec import Operator, Shape
from ..targets.ascend.artifact import Artifact
from ..targets.ascend.compiler import compile_module
from ..targets.ascend.devices import Device
from ..targets.ascend.launches import Launch
from ..targets.ascend.legality import fit, live_bytes
from ..targets.ascend.target import AscendTarget

MODELS = ("v3", "v2-lite")
_TILES = ("block_m", "block_n", "block_k", "block_h", "rows", "columns")


@dataclass(frozen=True)
class Tile:
    """One launch of a random config, the model's bytes and the compiler's verdict."""

    op: str
    shape: Shape
    config: dict[str, object]
    kernel: str
    live: dict[str, int]             # bytes of tiles, as they stand in the text
    bound: dict[str, int]            # that the model allows for
    have: dict[str, int]
    accepted: bool
    space: str                       # that overflowed
    need: int                        # bytes
    peaks: dict[str, int]
    why: str


def drawn(target: AscendTarget, names: list[str], seed: int
          ) -> Iterator[tuple[Operator, Shape, dict[str, object], Launch]]:
    """Launches of random configs of shapes that models have, without end; no program twice."""
    pick, seen = random.Random(f"tiles {seed}"), set()
    spaces: dict[str, list[dict[str, object]]] = {}
    while True:
        op = ops.load(pick.choice(names))
        shape = pick.choice([*op.odd_shapes, *(
            s for m in MODELS for s in op.shapes(preset(m), Load()))])
        key = op.name + json.dumps(dict(shape), sort_keys=True)
        if key not in spaces:
            spaces[key] = [dict(c) for c in target.space(op, shape)]
        # spaces leave out much of what does not fit: half of the tiles are larger than theirs
        config = {name: value * pick.choice((1, 1, 1, 2, 4)) if name in _TILES and not scaled(shape)
                  and isinstance(value, int) else value
                  for name, value in pick.choice(spaces[key]).items()}
        if (text := key + json.dumps(config, sort_keys=True)) in seen:
            continue
        seen.add(text)
        with suppress(ValueError, AssertionError):   # not every lowering takes every tile
            for launch in target.launches(op, shape, config):   # type: ignore[arg-type]
                yield op, shape, config, launch


def scaled(shape: Shape) -> bool:
    """Whether a tile of its weights must lie in one block of scales."""
    return any(shape.get(name) in ("int8", "float8_e4m3fn") for name in ("a_dtype", "w_dtype"))


def tiles(device: str, names: list[str], count: int, seed: int, skip: int = 0
          ) -> Iterator[Tile]:
    """Compile `count` of them after the first `skip`, two at a time."""
    from ..targets.ascend.emit import emit

    target = targets.load("ascend", unit=device, cache_dir=Path())
    assert isinstance(target, AscendTarget)

    def verdict(op: Operator, shape: Shape, config: dict[str, object], name: str, text: str,
                flags: dict[str, str], npu: Device) -> Tile:
        made, model = compile_module(text, npu, flags), fit(text, npu)
        common = (op.name, shape, config, name, {str(s): n for s, n in live_bytes(text).items()},
                  {str(s): n for s, n in model.need.items()},
                  {str(s): n for s, n in model.have.items()})
        if isinstance(made, Artifact):
            return Tile(*common, True, "", 0, {s: made.peak(s) for s in ("ub", "cbuf", "cc")}, "")
        return Tile(*common, False, made.space or "", (made.need_bits or 0) // 8, {}, made.reason)

    with ThreadPoolExecutor(2) as pool:
        waiting = []
        for op, shape, config, launch in islice(drawn(target, names, seed), skip,
                                              skip + count):
            made = emit(launch.program, "device")
            waiting.append(pool.submit(verdict, op, shape, config, made.name, made.text,
                                       dict(launch.flags), target.npu))
            while waiting and (waiting[0].done() or len(waiting) > 4):
                yield waiting.pop(0).result()
        for left in waiting:
            yield left.result()


def said_fits(tile: Tile) -> bool:
    """What the legality model says of it."""
    return all(tile.bound[s] <= tile.have[s] for s in tile.bound)
