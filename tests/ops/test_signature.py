"""A call without data has the sizes, dtypes and layout of a call with data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from expertile import ops
from expertile.ops.models import PRESETS, TINY_LOAD, Load
from expertile.ops.spec import Operator, Shape

OPERATORS = [ops.load(name) for name in ops.names()]
ODD = [(op, shape) for op in OPERATORS for shape in op.odd_shapes]


def _kind(value: object) -> object:
    return ((value.dtype, value.shape, value.stride()) if isinstance(value, Tensor) else value)


@pytest.mark.parametrize(("op", "shape"), ODD, ids=lambda v: getattr(v, "name", None))
def test_signature_is_inputs_without_data(op: Operator, shape: Shape) -> None:
    blank, real = op.signature(shape), op.inputs(shape, 0)
    assert all(x.device.type == "meta" for x in blank if isinstance(x, Tensor))
    page_pools = {"mla_decode": 1, "mla_kv_append": 4}   # as many pages as a draw happens to need
    skip = page_pools.get(op.name)
    pairs = [(b, r) for i, (b, r) in enumerate(zip(blank, real, strict=True)) if i != skip]
    for b, r in pairs:
        assert _kind(b) == pytest.approx(_kind(r)) if isinstance(r, float) else _kind(b) == _kind(r)


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
def test_signature_of_a_model_shape_is_of_that_shape(op: Operator) -> None:
    for name, model in PRESETS.items():
        for shape in op.shapes(model, TINY_LOAD if name == "tiny" else Load()):
            if "ctx" in shape and "page" in shape:       # a table holds whole pages
                shape = {**shape, "ctx": -(-int(shape["ctx"]) // int(shape["page"]))
                         * int(shape["page"])}
            args = op.signature(shape)
            assert op.shape_of(*args) == shape, (name, shape)
            assert all(o.device == torch.device("meta") for o in op.empty(*args))
