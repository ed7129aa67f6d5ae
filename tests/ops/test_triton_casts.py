"""FP8 casts and SwiGLU in Triton: bits in the interpreter, and why the fast division is exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from expertile import ops
from expertile.ops.spec import Shape
from expertile.targets.child import Child

from ..triton_child import TIMEOUT_S, Interpreter, triton_env

CHILD = "tests.ops.triton_cast_child"
DEVICES = {"native": "cuda:sm_90", "bits": "cuda:sm_80", "fnuz": "hip:gfx942"}
TILE = {"rows": 4, "groups": 2, "warps": 1}
Floats = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """A process whose Triton kernels are interpreted."""
    made = Child(memory_gb=12.0, env=triton_env())
    yield made
    made.close()


def _odd(name: str, index: int, **other: Any) -> Shape:
    return {**ops.load(name).odd_shapes[index], **other}


@pytest.mark.parametrize(("fp8", "op", "index", "config"), [
    ("native", "per_token_group_quant_fp8", 0, TILE),
    ("bits", "per_token_group_quant_fp8", 1, {**TILE, "groups": 4}),
    ("fnuz", "per_token_group_quant_fp8", 2, TILE),
    ("native", "per_token_group_quant_fp8", 3, {**TILE, "rows": 1}),
    ("bits", "per_token_group_quant_fp8", 4, {**TILE, "rows": 8, "groups": 1}),
    ("native", "per_token_group_quant_fp8", 5, {"rows": 16, "groups": 4, "warps": 1}),
    ("native", "per_token_group_quant_int8", 0, TILE),
    ("bits", "per_token_group_quant_int8", 1, None),
    ("fnuz", "per_token_group_quant_int8", 2, TILE),
    ("native", "per_token_group_quant_int8", 4, {"rows": 16, "groups": 4, "warps": 1}),
    ("native", "silu_mul", 0, None), ("fnuz", "silu_mul", 1, None), ("bits", "silu_mul", 2, None),
    ("native", "silu_mul", 3, None),
    ("native", "silu_mul_quant_fp8", 0, TILE), ("bits", "silu_mul_quant_fp8", 1, TILE),
    ("fnuz", "silu_mul_quant_fp8", 2, TILE), ("native", "silu_mul_quant_fp8", 3, TILE),
    ("native", "silu_mul_quant_fp8_masked", 0, {**TILE, "programs": 4}),
    ("bits", "silu_mul_quant_fp8_masked", 1, {**TILE, "programs": 1}),
    ("fnuz", "silu_mul_quant_fp8_masked", 2, {**TILE, "programs": 4}),
    ("native", "per_block_quant_fp8", 0, None),
    ("fnuz", "per_block_quant_fp8", 1, {"warps": 4, "blocks": 1, "chunk": 4096}),
    ("bits", "per_block_quant_fp8", 2, None),
    ("native", "weight_dequant", 0, None), ("bits", "weight_dequant", 1, None),
    ("fnuz", "weight_dequant", 2, None), ("native", "weight_dequant", 3, None)])
def test_cases(interpreter: Interpreter, fp8: str, op: str, index: int,
               config: dict[str, Any] | None) -> None:
    """Every adversarial case, with tiles that cross the ends of rows and of groups."""
    why = interpreter(DEVICES[fp8], op, _odd(op, index), config)
    assert why is None, why


def test_default_config(interpreter: Interpreter) -> None:
    """For few rows: a group a program."""
    why = interpreter("cuda:sm_90", "silu_mul_quant_fp8", _odd("silu_mul_quant_fp8", 3))
    assert why is None, why


@pytest.mark.parametrize("clamp", [True, False], ids=["clamp", "in-range"])
@pytest.mark.parametrize("fp8", DEVICES)
def test_every_bfloat16_encodes_to_nearest_even(child: Child, fp8: str, clamp: bool) -> None:
    assert child.call(f"{CHILD}:encode_errors", TIMEOUT_S, fp8=fp8, clamp=clamp) == 0


@pytest.mark.parametrize("nan", [True, False], ids=["nan", "finite"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("fp8", DEVICES)
def test_every_code_decodes_exactly(child: Child, fp8: str, dtype: str, nan: bool) -> None:
    assert child.call(f"{CHILD}:decode_errors", TIMEOUT_S, fp8=fp8, dtype=dtype, nan=nan) == 0


def test_every_code_has_half_its_value_as_fnuz(child: Child) -> None:
    assert child.call(f"{CHILD}:fnuz_errors", TIMEOUT_S) == 0


@pytest.mark.parametrize(("fp8", "use_ue8m0", "eps"), [
    ("native", False, 1e-10), ("native", True, 1e-10), ("native", False, 1e-45),
    ("native", True, 1e-45), ("bits", False, 1e-10), ("bits", False, 1e-45),
    ("fnuz", False, 1e-10), ("fnuz", False, 1e-45)])
def test_all_bfloat16_values_cast_bit_for_bit(child: Child, fp8: str, use_ue8m0: bool,
                                              eps: float) -> None:
    """The whole operator, infinities and NaNs among the values."""
    assert child.call(f"{CHILD}:bfloat16_mismatch", TIMEOUT_S, device=DEVICES[fp8],
                      use_ue8m0=use_ue8m0, eps=eps) is None


def test_silu_is_within_its_error_budget(child: Child) -> None:
    """Ours with an exact 2^x and division. NVIDIA's are off by 2 ulp each, 4.8e-7 in all, and the
    operators allow 1e-6 of the row's maximum."""
    assert child.call(f"{CHILD}:silu_error", TIMEOUT_S) < 3.5e-7


def _fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c, rounded once: float64 rounded to odd keeps what float32 must know."""
    product, term = a.astype(np.float64) * b, c.astype(np.float64)       # exact: 48 bits
    total = product + term
    part = total - product
    lost = (product - (total - part)) + (term - part)                    # Knuth's two-sum
    even = (total.view(np.int64) & 1) == 0
    odd = np.where((lost != 0) & even, np.nextafter(total, np.copysign(np.inf, lost)), total)
    return odd.astype(np.float32)


def _quotient(x: Floats, s: Floats, r: Floats) -> Floats:
    """What ops/_triton/casts.py computes of x / s."""
    q = x * r
    return _fma(_fma(q, s, -x), -r, q)


def test_scales_are_rounded_once() -> None:
    """amax / 448 without a division, for every significand."""
    amax = (np.arange(1 << 23, dtype=np.int32) + 0x3F800000).view(np.float32)
    got = _quotient(amax, np.float32(448.0), np.float32(0.002232142857142857))
    assert np.array_equal(got, amax / np.float32(448.0))


def _ulps(x: Floats, count: int | np.ndarray[Any, Any]) -> Floats:
    return (x.view(np.int32) + np.asarray(count, np.int32)).view(np.float32)


def test_codes_of_the_fast_quotient_are_those_of_the_division() -> None:
    """Where it could round to the other side of a midpoint M of e4m3 than float32's x / s does.

    That takes x / s within (1 + x) s 2^-49 of M +- half an ulp, hence s within 3 ulp of j / 8,
    j = 8 ... 16 (and 1 <= s < 2 covers all binades); tried are 16 ulp, and x within 3 ulp.
    A reciprocal that is not rounded to nearest would not do: 1 for s = 1 - 2^-24 is wrong.
    """
    j, near, m, side, off = (a.ravel() for a in np.meshgrid(
        np.arange(8, 17), np.arange(-16, 17), np.arange(16, 65), (-1, 1), np.arange(-3, 4)))
    s = _ulps((j / 8).astype(np.float32), near)
    middle = (m / 32).astype(np.float32)                                # in [0.5, 2]
    edge = (middle.astype(np.float64) + _ulps(middle, side)) / 2        # the midpoint next to M
    x = _ulps((s * edge).astype(np.float32), off)
    exact, inverse = x / s, np.float32(1.0) / s

    def wrong(r: Floats) -> np.ndarray[Any, Any]:
        sides = np.sign(_quotient(x, s, r) - middle), np.sign(exact - middle)
        return np.not_equal(*sides)

    assert not wrong(inverse).any()
    assert wrong(np.where(s == 1 - 2.0**-24, np.float32(1.0), inverse)).any()


def test_codes_of_random_quotients() -> None:
    """A million float32 pairs of any size that a cast may meet."""
    g = np.random.default_rng(0)
    s = np.exp2(g.uniform(-69, 119, 1 << 20)).astype(np.float32)
    x = (s * g.uniform(-448, 448, s.size) * np.exp2(-g.integers(0, 16, s.size))).astype(np.float32)
    got, exact = _quotient(x, s, np.float32(1.0) / s), x / s
    assert (got != exact).mean() < 1e-6 and (np.signbit(got) == np.signbit(x)).all()
