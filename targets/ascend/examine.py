"""Examine a config without an NPU: compile what it launches, keep what the compiler says."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ... import ops
from ...ops.space import Config
from ...ops.spec import Operator, Shape
from .. import examination
from ..base import BuildError, Examined
from .artifact import Artifact, Refused
from .compiler import compile_module
from .devices import Device
from .launches import Launch, record
from .model import model, total_us, typical, unmodelled
from .process import surroundings
from .symbols import missing_symbols

if TYPE_CHECKING:
    from .target import AscendTarget


# ascendnpu-ir 1.2.0 passes the constant 1 for m then; our tiles have 16 rows or more, so m is
# else a value or another constant. The simulator finds all other rows NaN (docs/facts.md).
ONE_ROW = re.compile(r"@mma_tile_\w+\(%[\w#-]+, %[\w#-]+, %[\w#-]+, %c1,")


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
    kernels, reasons, warnings, times = [], [], [], []
    known = _typical(op.name, json.dumps(dict(shape)))
    for launch in record(target, op, shape, config, known):
        emitted = emit(launch.program, "device")
        try:
            made = _compiled(emitted.text, target.npu, tuple(sorted(launch.flags.items())))
        except BuildError as e:
            raise BuildError(f"{emitted.name}: {e}", e.status) from e
        if not isinstance(made, Artifact):
            reasons.append(f"{emitted.name}: {made.reason}")
            continue
        strays = sorted(f for f, core in made.calls.items() if core == "AIV")
        if made.task_type == "cube" and strays:
            raise BuildError(f"{made.name} was emitted for cube cores but needs the vector "
                             f"cores' {', '.join(strays)}", "build_error")
        if absent := missing_symbols(made, target.npu):
            reasons.append(f"{made.name}: the device library does not define {', '.join(absent)}")
        if ONE_ROW.search(made.text):
            reasons.append(f"{made.name}: the compiler multiplies only the first row of a tile "
                           "that is gathered row by row (it takes m from one row's copy)")
        warnings += [f"{made.name}: the compiler fell back: {why}" for why in made.fallbacks]
        kernels.append(facts(made, launch, target.npu))
        if unmodelled(target.npu) is None:
            times.append(model(made, launch, target.npu))
            kernels[-1]["model"] = dict(times[-1].parts)
    return Examined(not reasons, "; ".join(reasons),
                    "L0 described" if reasons else "L1 lowered", tuple(warnings),
                    modelled_us=total_us(times) if times and not reasons else None,
                    kernels=tuple(kernels))


@lru_cache(maxsize=256)
def _compiled(text: str, device: Device, flags: tuple[tuple[str, str], ...]) -> Artifact | Refused:
    """Configs share kernels: what sums or gathers rows is the same for most of them.

    Only verdicts are kept: a compiler that died or was killed may do better the next time.
    """
    made = compile_module(text, device, dict(flags))
    if isinstance(made, Refused) and made.status != "illegal":
        raise BuildError(made.reason, made.status)
    return made


@lru_cache(maxsize=4)
def _typical(op_name: str, shape: str) -> dict[int, Tensor]:
    return typical(ops.load(op_name), json.loads(shape))


def path_of(target: AscendTarget, op: Operator, shape: Shape, config: Config) -> Path:
    """Where the examination of a config is kept."""
    return examination.path_of(target.cache_dir, target, op, shape, config, _judge())


@cache
def _judge() -> str:
    here = Path(__file__).parent     # the model reads the text with the simulator's parser
    code = examination.code_hash([*here.glob("*.py"), here / "simulator" / "parse.py"])
    return " ".join((code, *surroundings().values()))
