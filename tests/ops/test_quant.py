import pytest

from expertile import ops

from ..conformance import check_config

OP = ops.load("per_token_group_quant_fp8")

@pytest.mark.parametrize("shape", OP.odd_shapes, ids=str)
def test_q(cpu, shape):
    for c in ops.lowering(OP.name, "tvm").space(cpu, shape):
        check_config(OP, cpu, shape, c)
