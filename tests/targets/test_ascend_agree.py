"""Gates b and c of one kernel agree: what was lowered to this CPU and what the NPU's text does."""

from __future__ import annotations

import pytest
import torch

from tests.targets.data.ascend import expressions

pytest.importorskip("ascendnpuir", reason="needs expertile[ascend]")
pytest.importorskip("triton", reason="needs triton: its MLIR reader")
pytest.importorskip("llvmlite", reason="needs llvmlite: its JIT")

from expertile.ops.numerics import mismatch
from expertile.targets.ascend import cpu_run
from expertile.targets.ascend.artifact import Artifact
from expertile.targets.ascend.compiler import compile_module
from expertile.targets.ascend.devices import find
from expertile.targets.ascend.simulator import simulate

SEEDS = range(6)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_vector_programs(seed: int) -> None:
    module, steps = expressions.program(seed)
    made = compile_module(module, find("910b3"))
    assert isinstance(made, Artifact), made
    random = torch.Generator().manual_seed(seed)
    shape = (expressions.ROWS, expressions.COLS)
    x, y = (torch.randn(shape, generator=random) * 2 for _ in range(2))
    arguments = [x, y, torch.tensor([seed % 17], dtype=torch.int32), torch.full(shape, 7.0)]
    simulated = simulate(made, arguments, (1, 1, 1))[-1]
    executed = cpu_run.run(cpu_run.build(module), arguments, (1, 1, 1))[-1]
    # sums in another order may end on the other side of a rounding to float16 or to an integer
    coarse = {"f16", "bf16", "integer", "bits", "select", "masks"} & set(steps)
    if not coarse:
        assert mismatch(simulated, executed, 1e-5) is None, steps
    else:
        apart = (simulated - executed).abs() > 1e-5 * executed.abs().amax()
        assert apart.float().mean() < 0.02, steps


def test_the_programs_use_every_step() -> None:
    assert {s for seed in SEEDS for s in expressions.program(seed)[1]} == set(expressions.STEPS)
