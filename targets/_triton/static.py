"""Examine a config without a GPU: compile all it launches, read the binaries, judge them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ...ops.space import Config
from ...ops.spec import Operator, Shape
from .. import examination
from ..base import Examined
from . import amdgcn, sass
from .aot import Launch
from .facts import Facts
from .legality import LaunchShape, Operands, legal, warnings
from .model import modelled_us

if TYPE_CHECKING:
    from .target import TritonTarget

LAUNCH_US = 2.0                      # of each further launch in a graph; for ordering only
_DOT = re.compile(r"tt\.dot .*: tensor<[0-9x]+(\w+)> \* tensor<[0-9x]+(\w+)>")


@cache
def _tools() -> Path:
    import triton

    return sass.tools_in(Path(triton.__file__).parent)


def facts_of(launch: Launch) -> Facts:
    """What the binary of a launch says."""
    compiled, shared = launch.compiled, int(launch.compiled.metadata.shared)
    if "cubin" in compiled.asm:
        return sass.read(compiled.asm["cubin"], shared, _tools())
    return amdgcn.parse(compiled.asm["amdgcn"], shared)


def operands_of(launch: Launch) -> Operands:
    """What a kernel's dot products multiply, as its first IR says; float32 ones have no unit."""
    kinds = {kind for pair in _DOT.findall(launch.compiled.asm["ttir"]) for kind in pair}
    if kinds and all(kind.startswith("f8") for kind in kinds):
        return "fp8"
    return "bf16" if kinds & {"bf16", "f16"} else "none"


def examine_here(target: TritonTarget, op: Operator, shape: Shape, config: Config) -> Examined:
    """Compile in this very process and judge; a compiler's failure passes through."""
    verdict = target.legal(op, shape, config)
    if not verdict.legal:
        return Examined(False, verdict.reason, "L0 described")
    kernels, reasons, notes, spills = [], [], [], 0
    times: list[tuple[bool, int, float | None]] = []
    work = op.work(shape)
    for launch in target.launches(op, shape, config):
        facts, operands = facts_of(launch), operands_of(launch)
        form = LaunchShape(launch.grid, launch.warps, launch.tmem_columns)
        judged = legal(target.gpu, facts, form)
        if not judged.legal:
            reasons.append(f"{launch.name}: {judged.reason}")
        notes += [f"{launch.name}: {w}" for w in warnings(target.gpu, facts, operands)]
        spills = max(spills, facts.stack_bytes)
        if judged.legal:
            times.append((operands != "none", form.blocks, modelled_us(
                target.gpu, work.flops, work.bytes, operands, facts, form)))
        kernels.append({"name": launch.name, "grid": list(launch.grid), "warps": launch.warps,
                        "operands": operands, **facts.json(), "fill": dict(judged.facts)})
    us = None if reasons or not times else _whole(times)
    return Examined(not reasons, "; ".join(reasons), "L2 native object", tuple(notes), spills, us,
                    tuple(kernels))


def _whole(times: list[tuple[bool, int, float | None]]) -> float | None:
    """Time of a call: as if its products, or its widest kernel, did all the work."""
    products = [us for multiplies, _, us in times if multiplies]
    known = [us for us in products or [max(times, key=lambda t: t[1])[2]] if us is not None]
    return max(known) + LAUNCH_US * (len(times) - 1) if known else None


def path_of(target: TritonTarget, op: Operator, shape: Shape, config: Config) -> Path:
    """Where the examination of a config is kept."""
    return examination.path_of(target.cache_dir, target, op, shape, config, _judge())


@cache
def _judge() -> str:
    here = Path(__file__).parent
    tables = [here.parent / family / "devices.py" for family in ("cuda", "hip")]
    return examination.code_hash([*here.glob("*.py"), *tables])
