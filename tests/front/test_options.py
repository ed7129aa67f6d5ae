"""Names of operators on the command line."""

from __future__ import annotations

import pytest

from expertile import ops
from expertile.commands.options import wanted_ops


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
