"""What answers when a record's config cannot be built: the default one, then the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import expertile as et
from expertile import ops, targets
from expertile.ops.space import Config
from expertile.ops.spec import Kernel, Operator, Shape
from expertile.targets.base import BuildError
from expertile.targets.cpu import CpuTarget
from expertile.tuning_db.key import key_of
from expertile.tuning_db.record import Provenance, Record
from expertile.tuning_db.store import TuningDB

OP = ops.load("silu_mul")
X = torch.linspace(-4, 4, 3 * 64).view(3, 64)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A database whose record for X names another config than the default."""
    target, shape = targets.load("cpu"), OP.shape_of(X)
    space = target.space(OP, shape)
    other = next(c for c in space if c != space.default())
    with TuningDB(tmp_path / "x.sqlite") as store:
        store.add(Record(
            key=key_of(OP, target, shape), config=other, status="ok", role="winner",
            evidence="L4 timed", kind="measured", decision="tuned", us=1.0, default_us=2.0,
            provenance=Provenance("0.1.0", "2026-11-22T00:00:00Z")))
    return tmp_path / "x.sqlite"


def answered(db: Path) -> tuple[torch.Tensor, str]:
    """The operator's result on a new runtime, and what answered."""
    runtime = et.Runtime("cpu", db=db)
    with et.use_runtime(runtime):
        out = et.silu_mul(X)
    row, = runtime.report()
    return out, row["answered_by"]


def refuse(monkeypatch: pytest.MonkeyPatch, *, default_too: bool) -> None:
    """Make the record's config, or every config, impossible to build."""
    build = CpuTarget.build_kernel

    def failing(self: CpuTarget, op: Operator, shape: Shape, config: Config) -> Kernel:
        if default_too or config != self.space(op, shape).default():
            raise BuildError("the compiler gave up", "build_error")
        return build(self, op, shape, config)

    monkeypatch.setattr(CpuTarget, "build_kernel", failing)


@pytest.mark.parametrize("case", ["tuned", "default", "reference"])
def test_the_next_best_thing_answers(db: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    if case != "tuned":
        refuse(monkeypatch, default_too=case == "reference")
    out, by = answered(db)
    gate, up = X.double().chunk(2, -1)
    want = (torch.nn.functional.silu(gate) * up).float()
    assert by == case
    assert torch.allclose(out, want, rtol=1e-5, atol=1e-6)


def test_a_kernel_that_fails_to_compile_at_its_first_launch_gives_way(
        db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's compiler runs when a kernel is first launched, long after it was chosen."""
    build = CpuTarget.build_kernel

    def late(self: CpuTarget, op: Operator, shape: Shape, config: Config) -> Kernel:
        if config == self.space(op, shape).default():
            return build(self, op, shape, config)

        def kernel(*args: object, out: object) -> None:
            raise BuildError("out of shared memory", "illegal")

        return kernel

    monkeypatch.setattr(CpuTarget, "build_kernel", late)
    runtime = et.Runtime("cpu", db=db)
    with et.use_runtime(runtime):
        first, second = et.silu_mul(X), et.silu_mul(X)
    row, = runtime.report()
    assert row["answered_by"] == "default" and row["calls"] == 2
    assert torch.equal(first, second) and first.isfinite().all()
