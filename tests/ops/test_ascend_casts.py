"""Casts, activation and cache write for Ascend: as MLIR on the CPU, and compiled."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from expertile import ops, targets
from expertile.opt.checks import run_once

from .ascend_cases import C220, C310, drawn, examined, first_mismatch, need_tools, v3

need_tools()

CASTS = ("per_token_group_quant_fp8", "per_token_group_quant_fp8_e5m2",
         "per_token_group_quant_int8", "silu_mul_quant_fp8", "silu_mul_quant_fp8_masked",
         "per_block_quant_fp8", "weight_dequant", "silu_mul")


@pytest.mark.parametrize("device", (C220, C310))
@pytest.mark.parametrize("name", CASTS)
def test_values(device: str, name: str) -> None:
    shapes = ops.load(name).odd_shapes
    shape = shapes[0 if device == C220 else -1]
    assert (why := first_mismatch(device, name, shape)) is None, why


@pytest.mark.parametrize("name", ("per_token_group_quant_fp8", "silu_mul"))
def test_configs_agree(name: str) -> None:
    shape = ops.load(name).odd_shapes[1]
    for config in drawn(C220, name, shape, 2):
        assert (why := first_mismatch(C220, name, shape, config)) is None, why


@pytest.mark.parametrize("device", (C220, C310))
def test_a_scale_of_zero_becomes_the_least_power_of_two(device: str) -> None:
    """1e-45 / 448 is 0 in float32; codes of zeros by a scale of 0 would be NaN."""
    op = ops.load("per_token_group_quant_fp8")
    target = targets.load("ascend", unit=device, mode="emulate")
    args = torch.zeros(3, 128), 128, 1e-45, False, False, True
    shape = op.shape_of(*args)
    q, s = run_once(target.build_kernel(op, shape, target.space(op, shape).default()), op, args)
    assert bool((s == 2.0**-126).all()) and not q.view(torch.uint8).any()


def test_cache_write() -> None:
    op = ops.load("mla_kv_append")
    for device, shape in ((C220, op.odd_shapes[1]), (C310, op.odd_shapes[4])):
        assert (why := first_mismatch(device, op.name, shape)) is None, why


@pytest.mark.parametrize(("device", "number"), ((C220, 0), (C220, 2), (C310, 2), (C220, 3)))
def test_cache_write_is_the_definitions_bit_for_bit(device: str, number: int) -> None:
    """Defined in float64, which the vector cores lack: root, rotation and codes all the same."""
    op = ops.load("mla_kv_append")
    shape = op.odd_shapes[number]
    target = targets.load("ascend", unit=device, mode="emulate")
    kernel = target.build_kernel(op, shape, target.space(op, shape).default())
    for case, args in op.cases(shape, 0):
        (got,), (want,) = run_once(kernel, op, args), run_once(op.reference, op, args)
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8)), case


@pytest.mark.parametrize("device", (C220, C310))
@pytest.mark.parametrize("name", (*CASTS, "mla_kv_append"))
def test_the_compiler_takes_the_default(device: str, name: str, tmp_path: Path) -> None:
    seen = examined(device, name, v3(name, last=True), tmp_path)
    assert seen.legal and not seen.warnings, seen.reason
    assert seen.evidence == "L1 lowered"
    assert (seen.modelled_us is None) == (device == C310)    # the 950 has no model
    for kernel in seen.kernels:
        assert kernel["task_type"] == "vector" and kernel["ub_bytes"] > 0 and kernel["calls"]
        assert max(b["address"] + b["size"] for b in kernel["plan"]) == kernel["ub_bytes"]


def test_fp8_weights_are_decoded_by_vectors(tmp_path: Path) -> None:
    """The 910B compares int16 one by one: 50 M scalar accesses here, modelled 43 ms."""
    shape = {"n": 32768, "k": 512, "block_size": 128, "dtype": "bfloat16"}
    seen = examined(C220, "weight_dequant", shape, tmp_path)
    kernel, = seen.kernels
    done = kernel["model"]["operations"]
    # one scale of each tile is read by the scalar unit
    assert done["AIV S"] == math.prod(kernel["grid"]) < done["AIV V"]
    assert seen.modelled_us is not None and seen.modelled_us < 1000


def test_too_many_rows_are_refused_with_numbers(tmp_path: Path) -> None:
    shape = {**v3("silu_mul", last=True)}
    seen = examined(C220, "silu_mul", shape, tmp_path, {"rows": 16, "columns": 1024})
    assert not seen.legal and seen.evidence == "L0 described"
    assert "ub overflow: needs" in seen.reason and "of 1572864 bits" in seen.reason
