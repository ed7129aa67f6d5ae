"""The four gates that a config passes before a record of it may enter the database.

None is a run on an NPU: (compiled) the compiler takes what the config launches, (linked) every
library function that it calls is in the device's bitcode, (executed) the MLIR that the compiler got
computes the reference's results on this CPU, on the operator's hostile cases, (simulated) what the
compiler made of it has no overlap, no missing or unbalanced wait, and the right results. The last
two run on a small shape of the same kernel, once, and are kept on disk.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ... import ops
from ...ops.numerics import SENTINEL, mismatches
from ...ops.space import Config
from ...ops.spec import Args, Operator, Outputs, Shape
from .. import examination
from ..base import BuildError, RunFailed
from ..child import Child, ChildCrashed, ChildFailed, ChildTimeout

if TYPE_CHECKING:
    from .target import AscendTarget

Gate = Literal["compiled", "linked", "executed", "simulated"]
GATES: tuple[Gate, ...] = ("compiled", "linked", "executed", "simulated")
PASSED = "passed"
UNKNOWN = "not modelled"             # what a gate that could not tell begins with
NOT_RUN = "not run"                  # what one begins with that lacks its tools, time or memory
_TOOLS = ("tvm", "triton", "llvmlite")       # of the gate "executed", besides the compiler
_TIMEOUT_S, _MEMORY_GB = 300.0, 12.0
_ROWS = 96                           # 150 of a fused_moe are walked for minutes
_mine = threading.local()            # a child dies with the thread that started it


@dataclass(frozen=True)
class Verified:
    """What the gates said; plain JSON."""

    gates: Mapping[str, str]         # gate -> "passed", "not modelled: ..." or what went wrong
    shape: Shape                     # that the last two ran on
    reason: str                      # what forbids to store the config; "" when nothing does

    @property
    def ok(self) -> bool:
        """Whether a record may enter; a gate that could not tell does not keep it out."""
        return not self.reason

    @property
    def wrong(self) -> str:
        """What was found to be wrong, leaving out gates that were not run."""
        return "; ".join(f"{g}: {said}" for g, said in self.gates.items()
                         if said != PASSED and not said.startswith((UNKNOWN, NOT_RUN)))

    @property
    def note(self) -> str:
        """One line for a record: which gates it passed, and which could not tell."""
        return "; ".join([f"{PASSED}: " + ", ".join(g for g in GATES if self.gates[g] == PASSED),
                          *(f"{g}: {said}" for g, said in self.gates.items() if said != PASSED)])


def verify(target: AscendTarget, op: Operator, shape: Shape, config: Config) -> Verified:
    """Take a config through all gates; every failure is in the answer, never an exception."""
    gates: dict[str, str] = dict.fromkeys(GATES, f"{NOT_RUN}: an earlier gate is closed")
    try:
        examined = target.examine(op, shape, config)
    except BuildError as e:
        return Verified({**gates, "compiled": f"{e.status}: {e}"}, {}, f"{e.status}: {e}")
    if not examined.legal:
        gate = "linked" if "does not define" in examined.reason else "compiled"
        passed = {"compiled": PASSED} if gate == "linked" else {}
        return Verified({**gates, **passed, gate: examined.reason}, {}, examined.reason)
    small = small_shape(target, op, shape, config)
    gates |= {"compiled": PASSED, "linked": PASSED, **_kept(target, op, small, config)}
    bad = [f"{g}: {said}" for g, said in gates.items()
           if said != PASSED and not said.startswith(UNKNOWN)]
    return Verified(gates, small, "; ".join(bad))


# Axes of a small shape. Widths keep their remainder by the tiles, so that the kernel masks the
# same edges; everything that is not here (pages, ropes, blocks of scales) stays as it is.
_FEW = {"tokens": 40, "m_max": 24, "expected_m": 13, "batch": 3, "ctx": 150, "e": 5, "heads": 32}
_WIDE = ("n", "k", "h", "inter", "hidden")
_LARGEST_TILE = 512


def small_shape(target: AscendTarget, op: Operator, shape: Shape, config: Config) -> Shape:
    """A shape of the same kernel with a few thousand times less to compute."""
    tile = max([128, *(v for v in config.values() if type(v) is int and v <= _LARGEST_TILE)])
    for times in (1, 2, 4, 8):
        small = dict(shape)
        for axis, size in shape.items():
            if axis in _WIDE and isinstance(size, int):
                small[axis] = min(size, 2 * times * tile + size % tile)
            elif axis in _FEW:
                small[axis] = min(int(size), times * _FEW[axis])
        if "top_k" in small and "e" in small:
            small["e"] = min(int(shape["e"]), max(int(small["e"]), int(small["top_k"]) + 1))
        if target.space(op, small).why_not(config) is None:
            return small
    return shape


def _kept(target: AscendTarget, op: Operator, small: Shape, config: Config) -> dict[str, str]:
    """The verdicts of the last two gates, from disk or found out now in a child."""
    path = _path_of(target, op, small, config)
    try:
        kept: dict[str, str] = json.loads(path.read_text())
        return kept
    except (OSError, ValueError):
        pass
    child = getattr(_mine, "child", None)
    if child is None:
        child = _mine.child = Child(_MEMORY_GB)
    found: dict[str, str] = {}
    absent = [tool for tool in _TOOLS if find_spec(tool) is None]
    for gate in ("executed", "simulated"):
        if gate == "executed" and absent:
            found[gate] = (f"{NOT_RUN}: {', '.join(absent)} not installed; run: "
                           f"pip install {' '.join(absent)}")
            continue
        try:
            found[gate] = child.call(
                f"{__name__}:in_child", _TIMEOUT_S, gate=gate, device=target.npu.name,
                cache_dir=str(target.cache_dir), op_name=op.name, shape=dict(small),
                config=dict(config))
        except (ChildTimeout, ChildCrashed, ChildFailed) as e:
            found[gate] = f"{NOT_RUN}: {e}"
    if not any(said.startswith(NOT_RUN) for said in found.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(found, file)
        Path(file.name).replace(path)
    return found


def _path_of(target: AscendTarget, op: Operator, small: Shape, config: Config) -> Path:
    kept = examination.path_of(target.cache_dir, target, op, small, config, _judge())
    return kept.parent.parent / "verified" / kept.name


@cache
def _judge() -> str:
    here = Path(__file__).parent
    return examination.code_hash([*here.glob("*.py"), *here.glob("simulator/*.py")])


def in_child(gate: Gate, device: str, cache_dir: str, op_name: str, shape: dict[str, Any],
             config: dict[str, Any]) -> str:
    """Runs in the child."""
    from . import target as target_of

    made = target_of(device, "emulate" if gate == "executed" else "simulate", cache_dir)
    op = ops.load(op_name)
    cases = op.cases(shape, 0)
    return first_wrong(made, op, shape, config, cases if gate == "executed" else _few(cases))


def launching(cases: Iterator[tuple[str, Args]]) -> list[tuple[str, Args]]:
    """The cases that compute anything: those without an empty tensor that others have filled."""
    named = list(cases)
    empty = [{i for i, a in enumerate(args) if isinstance(a, Tensor) and not a.numel()}
             for _, args in named]
    unused = set.intersection(*empty)            # the angles of a rope of no columns
    return [case for case, without in zip(named, empty, strict=True) if without == unused]


def _few(cases: Iterator[tuple[str, Args]]) -> list[tuple[str, Args]]:
    """The first case and the one of the most rows below _ROWS: a walk takes seconds for each."""
    def rows(case: tuple[str, Args]) -> int:
        x = next(a for a in case[1] if isinstance(a, Tensor))
        return x.numel() // int(x.shape[-1])

    first, *others = launching(cases)
    return [first, *sorted((c for c in others if rows(c) <= _ROWS), key=rows)[-1:]]


def first_wrong(target: AscendTarget, op: Operator, shape: Shape, config: Config,
                cases: Iterable[tuple[str, Args]]) -> str:
    """"passed", or the first case that a computing target does not get right."""
    from .simulator import Fault, NotModelled

    try:
        kernel = target.build_kernel(op, shape, config)
        for name, args in cases:
            if why := mismatches(run(kernel, op, args), run(op.reference, op, args), op.rtol):
                return f"case {name!r}: {why}"
    except NotModelled as e:
        return f"{UNKNOWN}: {e}"
    except (Fault, BuildError, RunFailed) as e:
        return f"{type(e).__name__}: {e}"
    return PASSED


def run(fn: Any, op: Operator, args: Args) -> Outputs:
    """Run on outputs of sentinels and clones of what is written in place; all that is written."""
    args = tuple(a.clone() if i in op.mutates else a for i, a in enumerate(args))
    out = op.empty(*args)
    for o in out:
        o.copy_(torch.full((), SENTINEL).to(o.dtype))
    fn(*args, out=out)
    return (*out, *(args[i] for i in op.mutates))
