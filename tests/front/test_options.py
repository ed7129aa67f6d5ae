"""Operators and dtypes on the command line."""

from __future__ import annotations

import pytest

from expertile import ops
from expertile.commands.options import wanted_ops
from expertile.commands.shapes import model_dims, shapes_of


def test_a_name_and_the_beginning_of_names() -> None:
    assert wanted_ops(["silu_mul"]) == ("silu_mul",)
    casts = wanted_ops(["per_token_group_quant"])
    assert "per_token_group_quant_fp8" in casts and len(casts) == sum(
        name.startswith("per_token_group_quant_") for name in ops.names())
    assert wanted_ops(["gemm_nt, gemm_nt", "fused_moe"]) == ("gemm_nt", "fused_moe")
    assert wanted_ops(None) == wanted_ops(["gemm_nt,all"]) == ops.names()


def test_a_wrong_name_is_answered_with_what_was_meant() -> None:
    with pytest.raises(ValueError, match="got 'fused_mo'; did you mean fused_moe"):
        wanted_ops(["fused_mo"])
    with pytest.raises(ValueError, match="got 'x'; there are fused_moe, "):
        wanted_ops(["x"])


GEMMS = ["gemm_nt,m_grouped_gemm_nt_contiguous,m_grouped_gemm_nt_masked"]


@pytest.mark.parametrize("w", ["float16", "float8_e4m3fn", "int8"])
def test_float16_reaches_the_gemms(w: str) -> None:
    model = model_dims("v2-lite", None, w, "float16", "ascend910b3")
    for op, shapes in shapes_of(model, GEMMS, "1,64", "1", None):
        seen = {(s["a_dtype"], s["w_dtype"], s["out_dtype"]) for s in shapes}
        assert ("float16", w, "float16") in seen, op.name
        assert not any("bfloat16" in dtypes for dtypes in seen)
        assert all(op.shape_of(*op.signature(s)) == s for s in shapes)


@pytest.mark.parametrize(("op", "w", "says"), [
    ("fused_moe", "float16", "fused_moe does not take these dtypes: hidden must be float32 or"),
    ("mla_decode", "float16", "mla_decode does not take these dtypes: q must be"),
    ("gemm_nt", "bfloat16", "gemm_nt does not take these dtypes: a and b must not mix float16"),
])
def test_an_operator_without_a_dtype_says_so(op: str, w: str, says: str) -> None:
    model = model_dims("tiny", None, w, "float16", "ascend910b3")
    with pytest.raises(ValueError, match=says):
        shapes_of(model, [op], None, None, None)


@pytest.mark.parametrize("act", ["float32", "bfloat16"])
@pytest.mark.parametrize("w", ["float32", "bfloat16", "float8_e4m3fn", "int8"])
def test_every_operator_takes_what_models_have(act: str, w: str) -> None:
    model = model_dims("v3", None, w, act, "sm_90")
    assert len(shapes_of(model, None, None, None, None)) == len(ops.names())
