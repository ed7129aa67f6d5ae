"""Casts to float8_e5m2 in Triton: bits in the interpreter, instructions of what is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expertile import ops, targets
from expertile.ops._triton.casts import tiny_scales
from expertile.ops.fp8_format import E5M2
from expertile.targets.child import Child

from ..triton_child import TIMEOUT_S, Interpreter, triton_env
from .test_triton_casts import DEVICES, TILE, _quotient

CHILD = "tests.ops.triton_e5m2_child"
OP = ops.load("per_token_group_quant_fp8_e5m2")


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """A process whose Triton kernels are interpreted."""
    made = Child(memory_gb=12.0, env=triton_env())
    yield made
    made.close()


@pytest.mark.parametrize(("fp8", "index", "config"), [
    ("native", 0, TILE), ("bits", 1, {**TILE, "groups": 4}), ("fnuz", 2, TILE),
    ("bits", 3, {**TILE, "rows": 1}), ("fnuz", 4, {**TILE, "rows": 8, "groups": 1}),
    ("native", 5, {"rows": 16, "groups": 4, "warps": 1})])
def test_cases(interpreter: Interpreter, fp8: str, index: int, config: dict[str, Any]) -> None:
    why = interpreter(DEVICES[fp8], OP.name, OP.odd_shapes[index], config)
    assert why is None, why


@pytest.mark.parametrize("fp8", DEVICES)
def test_codes_are_those_of_torchs_cast(child: Child, fp8: str) -> None:
    for clamp in (True, False):
        assert child.call(f"{CHILD}:encode_errors", TIMEOUT_S, fp8=fp8, clamp=clamp) == 0


@pytest.mark.parametrize(("fp8", "use_ue8m0", "eps"), [
    ("native", False, 1e-10), ("native", True, 1e-45), ("bits", False, 2.0**-50),
    ("fnuz", False, 1e-10), ("fnuz", False, 1e-45)])
def test_all_bfloat16_values_cast_bit_for_bit(child: Child, fp8: str, use_ue8m0: bool,
                                              eps: float) -> None:
    """The whole operator, infinities and NaNs among the values."""
    assert child.call(f"{CHILD}:bfloat16_mismatch", TIMEOUT_S, device=DEVICES[fp8],
                      use_ue8m0=use_ue8m0, eps=eps) is None


def test_scales_are_rounded_once() -> None:
    """amax / 57344 without a division; of amax / 448 every significand is tried elsewhere."""
    amax = (np.arange(0, 1 << 23, 7, dtype=np.int32) + 0x3F800000).view(np.float32)
    got = _quotient(amax, np.float32(57344.0), np.float32(1.743861607142857e-05))
    assert np.array_equal(got, amax / np.float32(57344.0))


def test_the_fast_division_has_room_below() -> None:
    """The last bit of q * s of the least scale and of the least quotient that is not 0."""
    assert not tiny_scales(1e-10, E5M2) and not tiny_scales(2.0**-47, E5M2)
    assert tiny_scales(2.0**-48, E5M2) and not tiny_scales(2.0**-48)
    least = 2.0**-47 / 57344.0
    assert np.spacing(np.float32(least)) * float(np.spacing(np.float32(2.0**-17))) >= 2.0**-126


@pytest.mark.parametrize(("device", "instruction", "kind"), [
    ("sm_90", "cvt.rn.satfinite.e5m2x2.f32", "ptx"), ("sm_80", "", "ptx"),
    ("gfx942", "v_cvt_pk_bf8_f32", "amdgcn")])
def test_compiled_without_spills(tmp_path: Path, device: str, instruction: str, kind: str) -> None:
    """From float32 at once where the hardware can, in integers where not: never by float16."""
    target = targets.load(device, cache_dir=tmp_path, kernels=tmp_path / "triton")
    shape = {"k": 512, "group_size": 128, "dtype": "bfloat16", "ue8m0": False, "tokens": 256}
    seen = target.examine(OP, shape, target.space(OP, shape).default())
    assert seen.legal and not seen.spill_bytes, seen.reason
    text = next(tmp_path.rglob(f"*.{kind}")).read_text()
    assert instruction in text and ".f16" not in text and "cvt_f16" not in text
    assert bool(instruction) == ("e5m2x2" in text or "bf8" in text)
