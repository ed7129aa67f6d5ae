"""Ascend lowerings without an NPU: every case as MLIR on this CPU, and the compiler's verdict."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from expertile import ops, targets
from expertile.ops.models import Load, preset
from expertile.ops.numerics import mismatches
from expertile.ops.space import Config
from expertile.ops.spec import Shape
from expertile.opt.checks import run_once
from expertile.targets.base import Examined

C220, C310 = "910B3", "950PR_9599"


def need_tools() -> None:
    """Skip a module where the compiler or what executes its input is not installed."""
    for package, why in (("ascendnpuir", "expertile[ascend]"), ("tvm", "expertile[cpu]"),
                         ("triton", "triton's MLIR reader"), ("llvmlite", "llvmlite's JIT")):
        pytest.importorskip(package, reason=f"needs {why}")


def first_mismatch(device: str, name: str, shape: Shape, config: Config | None = None
                   ) -> str | None:
    """The first case of an operator where a config (by default the default) is not right."""
    op, target = ops.load(name), targets.load("ascend", unit=device, mode="emulate")
    space = target.space(op, shape)
    config = {**space.default(), **(config or {})}
    if why := space.why_not(config):
        return f"not in the space: {why}"
    kernel = target.build_kernel(op, shape, config)
    for case, args in op.cases(shape, 0):
        got, want = run_once(kernel, op, args), run_once(op.reference, op, args)
        if why := mismatches(got, want, op.rtol):
            return f"{name} for {device} {dict(shape)} {config} case {case!r}: {why}"
    return None


def drawn(device: str, name: str, shape: Shape, count: int, seed: int = 0) -> list[Config]:
    """Some configs of a space."""
    space = targets.load("ascend", unit=device, mode="emulate").space(ops.load(name), shape)
    return random.Random(seed).sample(list(space), count)


def examined(device: str, name: str, shape: Shape, cache_dir: Path, config: Config | None = None
             ) -> Examined:
    """What the device's compiler says."""
    op, target = ops.load(name), targets.load("ascend", unit=device, cache_dir=cache_dir)
    return target.compile_here(op, shape, {**target.space(op, shape).default(), **(config or {})})


def v3(name: str, last: bool = False) -> Shape:
    """The first or last shape that V3 makes of an operator; casts to int8, e5m2: V3 in these."""
    model = preset("v3")
    for part, dtype in (("int8", "int8"), ("e5m2", "float8_e5m2")):
        if part in name:
            model = replace(model, weight_dtype=dtype)
    return ops.load(name).shapes(model, Load())[-1 if last else 0]
