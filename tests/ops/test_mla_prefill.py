"""MLA prefill on the CPU: every case of odd shapes, with sampled configs."""

from __future__ import annotations

import random

import pytest
import torch

from expertile import ops, targets
from expertile.ops.models import PRESETS, TINY_LOAD
from expertile.ops.numerics import mismatch
from expertile.ops.spec import Shape
from expertile.targets.base import Target
from tests.conformance import check_config, run_once

OP = ops.load("mla_prefill")
LOWERING = ops.lowering("mla_prefill", "tvm")


@pytest.mark.parametrize("shape", OP.odd_shapes, ids=str)
def test_default_config_on_all_cases(cpu: Target, shape: Shape) -> None:
    check_config(OP, cpu, shape)


@pytest.mark.parametrize("shape", OP.odd_shapes, ids=str)
def test_sampled_configs_on_all_cases(cpu: Target, shape: Shape) -> None:
    for config in random.Random(0).sample(list(LOWERING.space(cpu, shape))[1:], 2):
        check_config(OP, cpu, shape, config)


@pytest.mark.parametrize("arch", ["x86-avx2", "x86"])
def test_narrower_vectors_on_all_cases(cpu: Target, arch: str) -> None:
    """Eight and four lanes, whatever this machine has."""
    if not cpu.arch.startswith("x86-avx"):
        pytest.skip(f"needs AVX2, this is {cpu.arch}")
    check_config(OP, targets.load("cpu", arch=arch), OP.odd_shapes[0])


@pytest.mark.parametrize("lq, lk", [(3, 3), (1, 4), (4, 2)])
def test_causal_mask_is_aligned_to_the_end(cpu: Target, lq: int, lk: int) -> None:
    """With equal scores a row is the mean of the values that it sees."""
    shape = OP.odd_shapes[0]
    heads, d_qk, d_v = (int(shape[a]) for a in ("heads", "d_qk", "d_v"))
    v = torch.randn(lk, heads, d_v, generator=torch.Generator().manual_seed(0))
    args = (torch.zeros(lq, heads, d_qk), torch.zeros(lk, heads, d_qk), v,
            torch.tensor([0, lq], dtype=torch.int32), torch.tensor([0, lk], dtype=torch.int32),
            1.0, True)
    kernel = LOWERING.build(cpu, shape, LOWERING.space(cpu, shape).default())
    out, lse = run_once(kernel, OP, args)
    for i in range(lq):
        sees = lk - lq + 1 + i
        want = v[:sees].mean(0) if sees > 0 else torch.zeros(heads, d_v)
        assert mismatch(out[i], want, 1e-6) is None
        assert torch.allclose(lse[:, i], torch.tensor(float(max(sees, 0))).log())


def test_chunks_equal_the_whole(cpu: Target) -> None:
    """A prompt in one piece, and its second half against all of its keys."""
    shape = OP.odd_shapes[0]
    q, k, v, _, _, scale, causal = OP.inputs({**shape, "tokens": 150, "ctx": 150, "batch": 1}, 1)
    kernel = LOWERING.build(cpu, shape, LOWERING.space(cpu, shape).default())
    whole, half = (
        run_once(kernel, OP, (q[at:], k, v, torch.tensor([0, 150 - at], dtype=torch.int32),
                              torch.tensor([0, 150], dtype=torch.int32), scale, causal))
        for at in (0, 77))
    assert mismatch(half[0], whole[0][77:], 1e-6) is None
    assert mismatch(half[1], whole[1][:, 77:], 1e-6) is None


@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_agree_with_calls(preset: str) -> None:
    """What `shapes` promises is what `shape_of` reads from `inputs`."""
    for shape in OP.shapes(PRESETS[preset], TINY_LOAD):
        args = OP.inputs(shape, 0)
        assert OP.shape_of(*args) == shape
        assert OP.work(shape).flops > 0 and OP.work(shape).bytes > 0


def test_misuse_is_refused() -> None:
    q, k, v, cu_q, cu_k, *rest = OP.inputs(OP.odd_shapes[0], 0)
    for args, rule in (((q, k.double(), v, cu_q, cu_k), "must all be"),
                       ((q, k[:-1], v, cu_q, cu_k), "q must be"),
                       ((q, k, v, cu_q.long(), cu_k), "cu_seqlens"),
                       ((q, k, v, cu_q[:-1], cu_k), "cu_seqlens")):
        with pytest.raises((ValueError, TypeError), match=rule):
            OP.shape_of(*args, *rest)
