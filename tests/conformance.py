"""The checks that every lowering of every operator must pass."""

from __future__ import annotations

from expertile import ops
from expertile.ops.numerics import mismatches
from expertile.ops.space import Config
from expertile.ops.spec import Kernel, Operator, Shape
from expertile.opt.checks import run_once
from expertile.targets.base import Target


def check(op: Operator, kernel: Kernel, shape: Shape, seed: int = 0) -> None:
    """Compare a kernel with the reference on every adversarial case of a shape."""
    for name, args in op.cases(shape, seed):
        want = run_once(op.reference, op, args)
        why = mismatches(run_once(kernel, op, args), want, op.rtol)
        assert why is None, f"{op.name} {dict(shape)} case {name!r}: {why}"


def check_config(op: Operator, target: Target, shape: Shape, config: Config | None = None) -> None:
    """Build one config of a shape (the default one if None) and check it."""
    lowering = ops.lowering(op.name, target.lang)
    kernel = lowering.build(target, shape, config or lowering.space(target, shape).default())
    check(op, kernel, shape)
