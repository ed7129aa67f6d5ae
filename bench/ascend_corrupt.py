"""What the simulator makes of corrupted modules (faults that it must find) and of clean ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import ops, targets
from ..ops.numerics import same_bits
from ..targets.ascend.artifact import Artifact
from ..targets.ascend.compiler import compile_module
from ..targets.ascend.launches import Launch
from ..targets.ascend.simulator import Fault, NotModelled, simulate
from ..targets.ascend.simulator.trace import Access, unordered
from ..targets.ascend.target import AscendTarget
from ..targets.ascend.verify import run
from .ascend_mutations import Mutation, some


@dataclass(frozen=True)
class Module:
    """An operator's first launch for one of its hostile calls."""

    op: str
    odd: int                         # which of its odd shapes
    case: str
    shape: Mapping[str, Any] = field(default_factory=dict)       # changes of that
    config: Mapping[str, Any] = field(default_factory=dict)      # and of the default


# Programs of each kind, for the cube alone, the vector cores alone and both, that take seconds.
MODULES = (
    Module("gemm_nt", 1, "150 rows", {"n": 77, "k": 260}, {"block_m": 64, "block_k": 64}),
    Module("gemm_nt", 4, "13 rows"),
    Module("m_grouped_gemm_nt_contiguous", 1, "typical"),
    Module("m_grouped_gemm_nt_masked", 2, "typical"),
    Module("per_token_group_quant_fp8", 0, "typical"),
    Module("per_block_quant_fp8", 0, "typical"),
    Module("mla_decode", 0, "ragged", {"batch": 1}),
    Module("mla_decode", 1, "ragged", {"batch": 1, "heads": 16}))


@dataclass(frozen=True)
class Call:
    """A compiled launch with data."""

    name: str
    artifact: Artifact
    arguments: tuple[Tensor | int, ...]
    grid: tuple[int, int, int]
    clean: tuple[Tensor, ...]


@dataclass(frozen=True)
class Missed:
    """A corruption that changed nothing that the simulator sees."""

    call: str
    kind: str
    line: int
    text: str                        # the line
    equivalent: bool                 # proven: all conflicting accesses are ordered all the same


@cache
def call_of(number: int, device_name: str = "910b3") -> Call:
    """The launch of one of MODULES, compiled and run clean."""
    from ..targets.ascend.emit import emit

    module, found = MODULES[number], list[Launch]()
    op = ops.load(module.op)
    shape = {**op.odd_shapes[module.odd], **module.shape}
    target = targets.load("ascend", unit=device_name, mode="simulate", cache_dir=Path())
    assert isinstance(target, AscendTarget)
    kernel = target.recording(found).build_kernel(
        op, shape, {**target.space(op, shape).default(), **module.config})
    run(kernel, op, dict(op.cases(shape, 0))[module.case])
    launch = found[0]
    made = compile_module(emit(launch.program, "device").text, target.npu, launch.flags)
    assert isinstance(made, Artifact), made
    clean = simulate(made, launch.args, launch.grid)
    return Call(f"{module.op} {shape}", made, launch.args, launch.grid, clean)


def outcome(call: Call, mutation: Mutation) -> str:
    """"fault", "result", "unreadable" or, when nothing shows, ""."""
    try:
        got = simulate(replace(call.artifact, text=mutation.text), call.arguments, call.grid)
    except Fault:
        return "fault"
    except NotModelled:
        return "unreadable"
    same = all(same_bits(g, c).all() for g, c in zip(got, call.clean, strict=True))
    return "" if same else "result"


def is_equivalent(call: Call, mutation: Mutation) -> bool:
    """Whether a corruption is harmless, by comparing all pairs of accesses of its run.

    What it changed is then implied by other flags, or moved what no one needed: the results are
    the clean ones (that is why it was missed), in every order that the pipes may take.
    """
    trace: list[Access] = []
    simulate(replace(call.artifact, text=mutation.text), call.arguments, call.grid, trace)
    return not unordered(trace)


def corrupted(numbers: tuple[int, ...], each: int, seed: int
              ) -> Iterator[tuple[Call, Mutation, str]]:
    """Corrupt modules, `each` times in every way, and say how each corruption showed."""
    for number in numbers:
        call = call_of(number)
        for mutation in some(call.artifact.text, seed, each):
            yield call, mutation, outcome(call, mutation)


def count(numbers: tuple[int, ...], each: int, seed: int
          ) -> tuple[Counter[tuple[str, str]], list[Missed]]:
    """How often which (kind, outcome) came, and what was missed."""
    seen: Counter[tuple[str, str]] = Counter()
    missed = []
    for call, mutation, said in corrupted(numbers, each, seed):
        seen[mutation.kind, said] += 1
        if not said:
            line = call.artifact.text.splitlines()[mutation.line - 1].strip()
            missed.append(Missed(call.name, mutation.kind, mutation.line, line,
                                 is_equivalent(call, mutation)))
    return seen, missed
