"""Few rows of weights of eight bits, by the byte: whole vectors, one to nine rows, any size."""

from __future__ import annotations

import pytest
import torch

from expertile import ops, targets
from expertile.ops.fused_moe.tvm import takes_bytes, uses_pairs
from expertile.ops.numerics import mismatch
from expertile.ops.spec import Shape
from expertile.targets.base import Target
from tests.conformance import check_config

OP = ops.load("fused_moe")
FP8 = "float8_e4m3fn"
# int8 where no other product takes it
KINDS = [(None, FP8), ("x86-avx2", FP8), ("x86-avx2", "int8")]


def shape_of(tokens: int, dtype: str = "float32", w8a8: bool = False, block: int = 64,
             weights: str = FP8) -> Shape:
    return {"e": 4, "inter": 192, "hidden": 256, "top_k": 2, "w_dtype": weights,
            "dtype": dtype, "block_n": block, "block_k": block, "w8a8": w8a8, "tokens": tokens}


def target_of(cpu: Target, arch: str | None) -> Target:
    return cpu if arch is None else targets.load("cpu", arch=arch)


@pytest.mark.parametrize(("arch", "weights"), KINDS)
def test_hostile_cases(cpu: Target, arch: str | None, weights: str) -> None:
    target, shape = target_of(cpu, arch), shape_of(9, weights=weights)
    assert takes_bytes(target.lanes, shape, uses_pairs(target, shape)) == (True, True)
    config = dict(ops.lowering(OP.name, "tvm").space(target, shape).default())
    check_config(OP, target, shape, config)
    check_config(OP, target, shape, {**config, "unroll": 2, "panel_rows": 12, "chunk": 128})
    shape = shape_of(9, "bfloat16", True)
    if not uses_pairs(target, shape) and weights == FP8:
        check_config(OP, target, shape, config)


def test_only_whole_vectors_are_taken_by_the_byte() -> None:
    assert takes_bytes(8, {**shape_of(1), "inter": 176}, False) == (True, False)
    assert takes_bytes(8, {**shape_of(1), "block_k": 48}, False) == (False, False)
    assert takes_bytes(4, shape_of(1), False) == (False, False)
    assert takes_bytes(16, shape_of(1), True) == (False, False)


@pytest.mark.parametrize(("arch", "weights"), KINDS)
def test_rows_of_any_magnitude(cpu: Target, arch: str | None, weights: str) -> None:
    """Codes come times 2^-120: rows of 1e-17 would give subnormal products, of 1e17 infinite ones,
    were they not brought to one size; a row of zeros, infinities and NaN keeps to itself."""
    target, shape = target_of(cpu, arch), shape_of(8, weights=weights)
    hidden, *rest = OP.inputs(shape, 3)
    hidden *= torch.tensor([1e-17, 1e-12, 1e-6, 1.0, 1e6, 1e17, 0.0, 1.0])[:, None]
    hidden[7, 5] = torch.nan
    kernel = ops.lowering(OP.name, "tvm").build(
        target, shape, dict(ops.lowering(OP.name, "tvm").space(target, shape).default()))
    got, want = OP.empty(hidden, *rest), OP.empty(hidden, *rest)
    kernel(hidden, *rest, out=got)
    OP.reference(hidden, *rest, out=want)
    assert mismatch(got[0][:7], want[0][:7], OP.rtol["float32"]) is None
    assert got[0][6].eq(0).all() and got[0][7].isnan().all()


@pytest.mark.parametrize(("arch", "weights"), KINDS)
@pytest.mark.parametrize("tokens", [5, 40])      # few rows, and panels
@pytest.mark.parametrize("block_n", [128, 20])   # 20: lanes of one vector have different scales
def test_scales_of_any_magnitude(cpu: Target, arch: str | None, weights: str, tokens: int,
                                 block_n: int) -> None:
    """They are multiplied into the rows or the panels, with powers of two of the codes: those of
    one block of columns must neither overflow there nor make another's products subnormal."""
    op, target = ops.load("gemm_nt"), target_of(cpu, arch)
    shape = {"n": 512, "k": 512, "a_dtype": "float32", "w_dtype": weights,
             "out_dtype": "float32", "block_n": block_n, "block_k": 128, "tokens": tokens}
    a, a_scale, b, b_scale, *rest = op.inputs(shape, 4)
    blocks = b_scale.shape[0]
    sizes = torch.tensor([1e-30, 1.0, 1e27, 0.0]).repeat(-(-blocks // 4))[:blocks]
    b_scale.copy_(sizes[:, None] * torch.tensor([1.0, 1e-6, 3.0, 1e6]))
    kernel = ops.lowering(op.name, "tvm").build(
        target, shape, dict(ops.lowering(op.name, "tvm").space(target, shape).default()))
    args = a, a_scale, b, b_scale, *rest
    got, want = op.empty(*args), op.empty(*args)
    kernel(*args, out=got)
    op.reference(*args, out=want)
    for block in range(blocks):
        columns = slice(block_n * block, block_n * (block + 1))
        up = 1e24 if block % 4 == 0 else 1.0     # `mismatch` takes rows below 1e-30 for zero
        assert mismatch(got[0][:, columns] * up, want[0][:, columns] * up,
                        op.rtol["float32"]) is None
    assert want[0][:, :block_n].abs().max() > 0
