"""Attention for Ascend: paged decode and varlen prefill as MLIR on the CPU, and compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from expertile import ops, targets
from expertile.ops.mla_decode import _of_lengths
from expertile.ops.numerics import mismatches
from expertile.opt.checks import run_once

from .ascend_cases import C220, C310, drawn, examined, first_mismatch, need_tools, v3

need_tools()


@pytest.mark.parametrize(("device", "at"), ((C220, 2), (C310, 3), (C220, 4)))
def test_decode(device: str, at: int) -> None:
    """Pages of 7 gathered row by row, three query positions; the fp8 cache."""
    shape = ops.load("mla_decode").odd_shapes[at]
    assert (why := first_mismatch(device, "mla_decode", shape)) is None, why


@pytest.mark.parametrize(("device", "at"), ((C310, 0), (C220, 1)))
def test_prefill(device: str, at: int) -> None:
    shape = ops.load("mla_prefill").odd_shapes[at]
    assert (why := first_mismatch(device, "mla_prefill", shape)) is None, why


@pytest.mark.parametrize("config", ({"splits": 1}, {"splits": 4, "block_n": 16},
                                    {"block_h": 16, "splits": 2, "workspace_buffers": 1}))
def test_decode_of_ragged_lengths(config: dict[str, int]) -> None:
    op = ops.load("mla_decode")
    shape = {"heads": 20, "head_dim_v": 128, "rope": 64, "page": 64, "s_q": 1,
             "dtype": "bfloat16", "kv_dtype": "bfloat16", "causal": True, "batch": 6, "ctx": 192}
    target = targets.load("ascend", unit=C220, mode="emulate")
    kernel = target.build_kernel(op, shape, {**target.space(op, shape).default(), **config})
    args = _of_lengths(shape, (0, 1, 63, 64, 65, 150), 1)
    got, want = run_once(kernel, op, args), run_once(op.reference, op, args)
    assert mismatches(got, want, op.rtol) is None


def test_configs_agree() -> None:
    shape = ops.load("mla_prefill").odd_shapes[1]
    for config in drawn(C220, "mla_prefill", shape, 1):
        assert (why := first_mismatch(C220, "mla_prefill", shape, config)) is None, why


@pytest.mark.parametrize("device", (C220, C310))
@pytest.mark.parametrize("name", ("mla_decode", "mla_prefill"))
def test_the_compiler_takes_the_default(device: str, name: str, tmp_path: Path) -> None:
    seen = examined(device, name, v3(name, last=True), tmp_path)
    assert seen.legal and not seen.warnings, seen.reason
    assert seen.kernels[0]["task_type"] == "mix"
    # the older family moves tiles between its cores through global memory
    assert (seen.kernels[0]["workspace_bytes"] > 0) == (device == C220)


def test_heads_of_a_tile(tmp_path: Path) -> None:
    shape = {**v3("mla_decode", last=True)}
    assert examined(C220, "mla_decode", shape, tmp_path, {"block_h": 32}).legal
    seen = examined(C220, "mla_decode", shape, tmp_path, {"block_h": 64})
    assert not seen.legal and "ub overflow: needs" in seen.reason
    assert examined(C310, "mla_decode", shape, tmp_path, {"block_h": 64}).legal
