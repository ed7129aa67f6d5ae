"""Dense and grouped GEMMs against the float64 reference, on poisoned and ragged inputs."""

from __future__ import annotations

import random

import pytest
import torch

from expertile import ops, targets
from expertile.ops.gemm_nt.operand import random_operand
from expertile.ops.numerics import mismatch
from expertile.ops.spec import Operator, Shape
from expertile.targets.base import Target
from tests.conformance import check_config

GEMMS = ("gemm_nt", "m_grouped_gemm_nt_contiguous", "m_grouped_gemm_nt_masked")
CASES = [(op, shape) for op in map(ops.load, GEMMS) for shape in op.odd_shapes]
FP8 = torch.float8_e4m3fn


def ident(case: object) -> str:
    if isinstance(case, Operator):
        return case.name
    return "-".join(str(v) for v in dict(case).values()) if isinstance(case, dict) else str(case)


def sampled(op: Operator, target: Target, shape: Shape, count: int) -> list[dict[str, object]]:
    """The default config and a few others, always the same ones."""
    space = ops.lowering(op.name, target.lang).space(target, shape)
    others = [c for c in space if c != space.default()]
    return [space.default(), *random.Random(op.name).sample(others, count - 1)]


@pytest.mark.parametrize(("op", "shape"), CASES, ids=ident)
def test_matches_reference(cpu: Target, op: Operator, shape: Shape) -> None:
    for config in sampled(op, cpu, shape, 2):
        check_config(op, cpu, shape, config)


@pytest.mark.parametrize(("op", "shape"), [CASES[2], CASES[-3], CASES[-2]], ids=ident)
def test_matches_reference_on_avx2(op: Operator, shape: Shape) -> None:
    target = targets.load("cpu", arch="x86-avx2")
    check_config(op, target, shape)


def build(target: Target, name: str, shape: Shape, config: object = None) -> object:
    lowering = ops.lowering(name, target.lang)
    return lowering.build(target, shape, config or lowering.space(target, shape).default())


@pytest.mark.parametrize("w_dtype", ["float32", "bfloat16", "float8_e4m3fn", "int8"])
def test_result_does_not_depend_on_config(cpu: Target, w_dtype: str) -> None:
    op = ops.load("gemm_nt")
    shape = {"tokens": 23, "n": 130, "k": 520, "a_dtype": "float32", "w_dtype": w_dtype,
             "out_dtype": "float32", "block_n": 128, "block_k": 128}
    space = ops.lowering(op.name, cpu.lang).space(cpu, shape)
    last = {name: choices[-1] for name, choices in space.knobs.items()}
    args = op.inputs(shape, 3)
    got = []
    for config in (space.default(), last):
        got.append(op.empty(*args))
        build(cpu, op.name, shape, config)(*args, out=got[-1])
    assert mismatch(got[0][0], got[1][0], 1e-5) is None


@pytest.mark.parametrize(("a_dtype", "w_dtype"), [
    ("bfloat16", "bfloat16"), ("bfloat16", "float8_e4m3fn"), ("float16", "float16")])
def test_grouped_equal_dense(cpu: Target, a_dtype: str, w_dtype: str) -> None:
    """One expert's rows give the same bits through all three operators."""
    n, k, rows = 72, 200, 5
    static = {"n": n, "k": k, "a_dtype": a_dtype, "w_dtype": w_dtype, "out_dtype": "float32",
              "block_n": 64, "block_k": 64}
    a, _ = random_operand((rows, k), a_dtype, (1, 64), 0, 1.0)
    b, scale = random_operand((3, n, k), w_dtype, (1, 64, 64), 1, 0.1)
    tail = (64, 64, torch.float32)
    dense, grouped = torch.empty(rows, n), torch.zeros(rows, n)
    masked = torch.zeros(3, rows, n)
    build(cpu, "gemm_nt", {**static, "tokens": rows})(
        a, None, b[1], None if scale is None else scale[1], *tail, out=(dense,))
    build(cpu, "m_grouped_gemm_nt_contiguous", {**static, "e": 3, "tokens": rows})(
        a, None, b, scale, torch.ones(rows, dtype=torch.int32), *tail, out=(grouped,))
    build(cpu, "m_grouped_gemm_nt_masked", {**static, "e": 3, "m_max": rows, "expected_m": 2})(
        a.expand(3, rows, k), None, b, scale, torch.tensor([0, rows, 0], dtype=torch.int32), None,
        *tail, out=(masked,))
    assert torch.equal(dense, grouped) and torch.equal(dense, masked[1])
    assert not masked[0].any() and not masked[2].any()


def test_tensors_of_any_alignment(cpu: Target) -> None:
    """Slices and memory-mapped weights are aligned to their elements only."""
    op = ops.load("gemm_nt")
    shape = op.odd_shapes[5]
    a, _, b, scale, *rest = op.inputs(shape, 0)
    want, = op.empty(a, None, b, scale, *rest)
    op.reference(a, None, b, scale, *rest, out=(want,))

    def shifted(x: torch.Tensor) -> torch.Tensor:
        flat = torch.empty(x.numel() + 1, dtype=x.dtype)
        flat[1:] = x.flatten()
        return flat[1:].view(x.shape)

    got = shifted(want * 0)
    build(cpu, op.name, shape)(shifted(a), None, shifted(b), shifted(scale), *rest, out=(got,))
    assert mismatch(got, want, op.rtol["float32"]) is None


def test_float16_results_overflow_as_torch_has_it(cpu: Target) -> None:
    """65520 is halfway to 65536, which float16 does not hold: from there on it is infinite."""
    sums = torch.tensor([65504.0, 65519.0, 65520.0, 65536.0, 131008.0, 3e38, -65519.0, -65520.0])
    shape = {"tokens": 1, "n": len(sums), "k": 64, "a_dtype": "float32", "w_dtype": "float32",
             "out_dtype": "float16", "block_n": 64, "block_k": 64}
    a, b = torch.eye(64)[:1], torch.zeros(len(sums), 64)
    b[:, 0] = sums
    got = torch.empty(1, len(sums), dtype=torch.float16)
    build(cpu, "gemm_nt", shape)(a, None, b, None, 64, 64, torch.float16, out=(got,))
    assert torch.equal(got[0], sums.half()) and got[0].isinf().sum() == 5
    half = {**shape, "a_dtype": "float16", "w_dtype": "float16"}
    x, w = torch.full((1, 64), 256.0).half(), torch.full((len(sums), 64), 4.0).half()
    w[1] = 3.5
    build(cpu, "gemm_nt", half)(x, None, w, None, 64, 64, torch.float16, out=(got,))
    assert torch.equal(got, x @ w.T) and got[0, 1] == 57344 and got[0, 0].isinf()


def test_weights_beyond_two_gigabytes(cpu: Target) -> None:
    """Offsets are 64 bits wide; only the last expert's pages are ever touched."""
    op = ops.load("m_grouped_gemm_nt_contiguous")
    shape = {"tokens": 3, "e": 2200, "n": 1000, "k": 1000, "a_dtype": "float32",
             "w_dtype": "float8_e4m3fn", "out_dtype": "float32", "block_n": 128, "block_k": 128}
    b = torch.empty((2200, 1000, 1000), dtype=FP8)
    scale = torch.empty((2200, 8, 8))
    b[-1:], last_scale = random_operand((1, 1000, 1000), "float8_e4m3fn", (1, 128, 128), 1, 0.03)
    scale[-1:] = last_scale
    a = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    args = (a, None, b, scale, torch.full((3,), 2199, dtype=torch.int32), 128, 128, torch.float32)
    got, want = op.empty(*args), op.empty(*args)
    build(cpu, op.name, shape)(*args, out=got)
    op.reference(*args, out=want)
    assert mismatch(got[0], want[0], op.rtol["float32"]) is None


@pytest.mark.parametrize(("change", "message"), [
    ({"a": torch.zeros(2, 9)}, "share K"),
    ({"a": torch.zeros(2, 8, dtype=torch.float64)}, "float32, bfloat16, float16, float8"),
    ({"a": torch.zeros(2, 8).half(), "b": torch.zeros(3, 8).bfloat16()}, "mix float16 and bf"),
    ({"b_scale": torch.zeros(1, 1)}, "scales if and only if"),
    ({"b": torch.zeros(3, 8).to(FP8), "b_scale": torch.zeros(2, 1)}, r"float32\[1, 1\]"),
    ({"b": torch.zeros(3, 8, dtype=torch.int8)}, "scales if and only if"),
    ({"a": torch.zeros(2, 8).to(FP8), "a_scale": torch.zeros(2, 1),
      "b": torch.zeros(3, 8, dtype=torch.int8), "b_scale": torch.zeros(1, 1)}, "must not mix"),
    ({"out_dtype": torch.float64}, "out_dtype"),
    ({"block_n": 0}, "block_shape"),
])
def test_misuse_states_the_rule(change: dict[str, object], message: str) -> None:
    args = {"a": torch.zeros(2, 8), "a_scale": None, "b": torch.zeros(3, 8), "b_scale": None,
            "block_n": 128, "block_k": 128, "out_dtype": torch.float32, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        ops.load("gemm_nt").shape_of(**args)
