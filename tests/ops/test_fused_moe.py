"""The fused expert layer against the float64 reference and against its parts."""

from __future__ import annotations

import pytest
import torch

from expertile import ops, targets
from expertile.ops.fused_moe import W8A8_RTOL
from expertile.ops.models import TINY_LOAD, preset
from expertile.ops.numerics import mismatch
from expertile.ops.spec import Shape
from expertile.targets.base import Target
from tests.conformance import check, check_config
from tests.ops.test_gemm import build, sampled

OP = ops.load("fused_moe")
TINY = OP.shapes(preset("tiny"), TINY_LOAD)


@pytest.mark.parametrize("shape", OP.odd_shapes, ids=lambda s: "-".join(map(str, s.values())))
def test_matches_reference(cpu: Target, shape: Shape) -> None:
    for config in sampled(OP, cpu, shape, 2):
        check_config(OP, cpu, shape, config)


def test_matches_reference_on_the_tiny_model(cpu: Target) -> None:
    check_config(OP, cpu, TINY[-1])


def test_matches_reference_on_avx2() -> None:
    check_config(OP, targets.load("cpu", arch="x86-avx2"), OP.odd_shapes[3])


def test_float32_outputs_of_w8a8(cpu: Target) -> None:
    shape = {**OP.odd_shapes[5], "dtype": "float32"}
    args = OP.inputs(shape, 0)
    got, want = OP.empty(*args), OP.empty(*args)
    build(cpu, OP.name, shape)(*args, out=got)
    OP.reference(*args, out=want)
    assert mismatch(got[0], want[0], W8A8_RTOL["float32"]) is None


def test_result_does_not_depend_on_config(cpu: Target) -> None:
    """Few and many tokens run different code: a batch equals its tokens one by one."""
    shape = {**TINY[-1], "tokens": 64}
    space = ops.lowering(OP.name, cpu.lang).space(cpu, shape)
    last = {name: choices[-1] for name, choices in space.knobs.items()}
    args = OP.inputs(shape, 1)
    kernels = build(cpu, OP.name, shape), build(cpu, OP.name, shape, last)
    got = [OP.empty(*args) for _ in kernels]
    for kernel, out in zip(kernels, got, strict=True):
        kernel(*args, out=out)
    assert mismatch(got[0][0], got[1][0], 1e-5) is None
    hidden, w1, w2, weights, ids, *rest = args
    for t in (0, 31, 63):
        one = torch.empty(1, hidden.shape[1])
        kernels[0](hidden[t:t + 1], w1, w2, weights[t:t + 1], ids[t:t + 1], *rest, out=(one,))
        assert mismatch(one, got[0][0][t:t + 1], 1e-5) is None


def test_ranks_of_expert_parallelism_add_up(cpu: Target) -> None:
    """Each rank holds a part of the experts and drops foreign ids; the sum is the whole."""
    whole = {**OP.odd_shapes[3], "e": 6, "tokens": 11}
    part = {**whole, "e": 3}
    hidden, w1, w2, weights, ids, s1, s2, *rest = OP.inputs(whole, 2)
    want, = OP.empty(hidden, w1, w2, weights, ids, s1, s2, *rest)
    OP.reference(hidden, w1, w2, weights, ids, s1, s2, *rest, out=(want,))
    kernel, total = build(cpu, OP.name, part), torch.zeros_like(want)
    for first in (0, 3):
        mine, out = slice(first, first + 3), torch.empty_like(want)
        kernel(hidden, w1[mine], w2[mine], weights, ids - first, s1[mine], s2[mine], *rest,
               out=(out,))
        total += out
    assert mismatch(total, want, OP.rtol["float32"]) is None


def test_many_tokens_run_in_passes(cpu: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    lowering = ops.lowering(OP.name, cpu.lang)
    monkeypatch.setattr(lowering, "_SCRATCH_ELEMENTS", 3 * 4 * (256 + 128))
    check(OP, build(cpu, OP.name, TINY[-1]), TINY[-1])


@pytest.mark.parametrize(("change", "message"), [
    ({"topk_ids": torch.zeros(2, 2, dtype=torch.int64)}, "int32"),
    ({"topk_weights": torch.zeros(2, 3)}, "float32"),
    ({"w2": torch.zeros(4, 8, 5)}, "fit each other"),
    ({"w8a8": True}, "w8a8 needs"),
    ({"hidden": torch.zeros(2, 8, dtype=torch.float16)}, "hidden must be"),
])
def test_misuse_states_the_rule(change: dict[str, object], message: str) -> None:
    args = {"hidden": torch.zeros(2, 8), "w1": torch.zeros(4, 12, 8), "w2": torch.zeros(4, 8, 6),
            "topk_weights": torch.zeros(2, 2), "topk_ids": torch.zeros(2, 2, dtype=torch.int32),
            "w1_scale": None, "w2_scale": None, "block_n": 128, "block_k": 128,
            "w8a8": False, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        OP.shape_of(**args)
