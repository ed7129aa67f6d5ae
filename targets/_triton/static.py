"""Examine a config without a GPU: compile all it launches, read the binaries, judge them."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ops.source import source_hash
from ...ops.space import Config
from ...ops.spec import Operator, Shape
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
    """Where the examination of a config is kept: named by all that decides it."""
    identity = [op.name, sorted(shape.items()), sorted(config.items()), target.toolchain(),
                target.device, source_hash(op.name, target.lang), _version()]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return target.cache_dir / "examined" / f"{op.name}-{digest[:24]}.json"


@cache
def _version() -> str:
    """A hash of the judging code: a better model examines again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for table in ("cuda", "hip"):
        digest.update((Path(__file__).parents[1] / table / "devices.py").read_bytes())
    return digest.hexdigest()[:16]


def load(path: Path) -> Examined | None:
    """An examination that was kept, or None."""
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        return Examined(**{**data, "warnings": tuple(data["warnings"]),
                           "kernels": tuple(data["kernels"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(path: Path, examined: Examined) -> None:
    """Write an examination, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(asdict(examined), file)
    Path(file.name).replace(path)
