"""What Huawei's compiler made of the lowerings computes the reference, in the simulator."""

from __future__ import annotations

from pathlib import Path

import pytest

from expertile import ops, targets
from expertile.ops.numerics import mismatches
from expertile.opt.checks import run_once

CASES = [("gemm_nt", 0, 4), ("gemm_nt", 1, 4), ("m_grouped_gemm_nt_masked", 0, 4),
         ("per_token_group_quant_fp8", 0, 5), ("silu_mul", 0, 4), ("mla_decode", 0, 2)]


@pytest.mark.parametrize(("name", "shape", "cases"), CASES)
def test_the_compiled_text_computes_the_reference(tmp_path: Path, name: str, shape: int,
                                                  cases: int) -> None:
    op = ops.load(name)
    target = targets.load("ascend910b3", mode="simulate", cache_dir=tmp_path)
    axes = op.odd_shapes[shape]
    kernel = target.build_kernel(op, axes, target.space(op, axes).default())
    for case, args in list(op.cases(axes, 0))[:cases]:
        got, want = run_once(kernel, op, args), run_once(op.reference, op, args)
        assert mismatches(got, want, op.rtol) is None, case


def test_a_product_of_one_gathered_row_is_refused(tmp_path: Path) -> None:
    """ascendnpu-ir 1.2.0 computes only the first row of fused_moe's gathered tiles."""
    op = ops.load("fused_moe")
    target = targets.load("ascend910b3", cache_dir=tmp_path)
    seen = target.compile_here(op, op.odd_shapes[0], target.space(op, op.odd_shapes[0]).default())
    assert not seen.legal and "only the first row" in seen.reason
    gemm = ops.load("gemm_nt")
    space = target.space(gemm, gemm.odd_shapes[0])
    assert target.compile_here(gemm, gemm.odd_shapes[0], space.default()).legal
