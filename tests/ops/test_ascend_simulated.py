"""What Huawei's compiler made of the lowerings computes the reference, in the simulator."""

from __future__ import annotations

from pathlib import Path

import pytest

from expertile import ops, targets
from expertile.ops.numerics import mismatches
from expertile.opt.checks import run_once

CASES = [("gemm_nt", 0, 4), ("gemm_nt", 1, 4), ("m_grouped_gemm_nt_masked", 0, 4),
         ("per_token_group_quant_fp8", 0, 5), ("silu_mul", 0, 4), ("mla_decode", 0, 2),
         ("per_token_group_quant_int8", 2, 7), ("gemm_nt", 9, 3), ("gemm_nt", 8, 2),
         ("fused_moe", 0, 3), ("fused_moe", 1, 4), ("weight_dequant", 1, 1),
         ("mla_kv_append", 2, 2), ("per_token_group_quant_fp8_e5m2", 2, 6)]


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


@pytest.mark.parametrize("gathered", [True, False])
def test_a_product_of_rows_that_are_gathered_one_by_one_is_known(gathered: bool) -> None:
    """ascendnpu-ir 1.2.0 multiplies only their first row: fused_moe gathers in a kernel before."""
    from expertile.ops._ascend.tile import kernel
    from expertile.targets.ascend.artifact import Artifact
    from expertile.targets.ascend.compiler import compile_module
    from expertile.targets.ascend.emit import emit
    from expertile.targets.ascend.examine import ONE_ROW

    with kernel("product") as k:
        rows = k.scalar("rows")
        row = k.tensor("row", (rows,), "int32")
        a, b = k.tensor("a", (rows, 64), "bfloat16"), k.tensor("b", (64, 64), "bfloat16")
        out = k.tensor("out", (rows, 64), "float32")
        first = k.block("x", rows // 32) * 32
        left = k.new((32, 64), "bfloat16",
                     lambda i, c: a[row[first + i] if gathered else first + i, c])
        acc = k.fill((32, 64), "float32", 0)
        k.matmul(acc, left, k.new((64, 64), "bfloat16", lambda j, c: b[j, c]), transposed=True)
        k.store(out, (32, 64), lambda i, j: (first + i, j), lambda i, j: acc[i, j])
    made = compile_module(emit(k.func, "device").text, targets.load("ascend910b3").npu)
    assert isinstance(made, Artifact) and bool(ONE_ROW.search(made.text)) == gathered
