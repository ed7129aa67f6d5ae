"""Examine a config without an NPU: compile what it launches, keep what the compiler says."""

from __future__ import annotations

import re
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ops.space import Config
from ...ops.spec import Operator, Shape
from .. import examination
from ..base import BuildError, Examined
from .artifact import Artifact
from .compiler import compile_module
from .devices import Device
from .launches import Launch
from .symbols import missing_symbols

if TYPE_CHECKING:
    from .target import AscendTarget


# ascendnpu-ir 1.2.0 passes the constant 1 for m then; our tiles have 16 rows or more, so m is
# else a value or another constant. The simulator finds all other rows NaN (docs/facts.md).
_ONE_ROW = re.compile(r"@mma_tile_\w+\(%[\w#-]+, %[\w#-]+, %[\w#-]+, %c1,")


def facts(artifact: Artifact, launch: Launch, device: Device) -> dict[str, Any]:
    """What is kept of a compiled kernel; sizes in bytes of one core."""
    return {
        "name": artifact.name, "grid": list(launch.grid), "task_type": artifact.task_type,
        "ub_bytes": artifact.peak("ub"), "l1_bytes": artifact.peak("cbuf"),
        "l0c_bytes": artifact.peak("cc"), "workspace_bytes": artifact.workspace_bytes,
        "fill": {space: artifact.peak(space) / device.capacity(space)
                 for space in ("ub", "cbuf", "cc")},
        "calls": dict(artifact.calls), "flags": dict(artifact.flags),
        "fallbacks": list(artifact.fallbacks), "sha256": artifact.sha256,
        "plan": [asdict(b) for b in artifact.buffers]}


def examine_here(target: AscendTarget, op: Operator, shape: Shape, config: Config) -> Examined:
    """Compile all launches of a config; a refusal for its size is a verdict, others raise."""
    from .emit import emit

    verdict = target.legal(op, shape, config)
    if not verdict.legal:
        return Examined(False, verdict.reason, "L0 described")
    kernels, reasons, warnings = [], [], []
    for launch in target.launches(op, shape, config):
        emitted = emit(launch.program, "device")
        made = compile_module(emitted.text, target.npu, launch.flags)
        if not isinstance(made, Artifact):
            if made.status != "illegal":
                raise BuildError(f"{emitted.name}: {made.reason}", made.status)
            reasons.append(f"{emitted.name}: {made.reason}")
            continue
        strays = sorted(f for f, core in made.calls.items() if core == "AIV")
        if made.task_type == "cube" and strays:
            raise BuildError(f"{made.name} was emitted for cube cores but needs the vector "
                             f"cores' {', '.join(strays)}", "build_error")
        if absent := missing_symbols(made, target.npu):
            reasons.append(f"{made.name}: the device library does not define {', '.join(absent)}")
        if _ONE_ROW.search(made.text):
            reasons.append(f"{made.name}: the compiler multiplies only the first row of a tile "
                           "that is gathered row by row (it takes m from one row's copy)")
        warnings += [f"{made.name}: the compiler fell back: {why}" for why in made.fallbacks]
        kernels.append(facts(made, launch, target.npu))
    return Examined(not reasons, "; ".join(reasons),
                    "L0 described" if reasons else "L1 lowered", tuple(warnings),
                    kernels=tuple(kernels))


def path_of(target: AscendTarget, op: Operator, shape: Shape, config: Config) -> Path:
    """Where the examination of a config is kept."""
    return examination.path_of(target.cache_dir, target, op, shape, config, _judge())


@cache
def _judge() -> str:
    return examination.code_hash(Path(__file__).parent.glob("*.py"))
