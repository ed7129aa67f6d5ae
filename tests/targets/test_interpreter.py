"""Triton's interpreter with our mends agrees with torch, in each triton that we test with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from expertile.targets._triton.interpreter import TESTED
from expertile.targets.child import Child, ChildFailed

from ..triton_child import triton_env

PAIRS = [("float32", t) for t in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2",
                                  "float8_e4m3fnuz")]
PAIRS += [(s, "float32") for s in ("bfloat16", "float8_e4m3fn", "float8_e5m2")]


@pytest.fixture(scope="module", params=TESTED)
def child(request: pytest.FixtureRequest) -> Iterator[Child]:
    made = Child(memory_gb=8.0, env=triton_env(request.param))
    assert made.call("tests.targets.interpreted:version", 120.0) == request.param
    yield made
    made.close()


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_conversions_are_torchs_bit_for_bit(child: Child, source: str, target: str) -> None:
    wrong = child.call("tests.targets.interpreted:wrong_conversions", 120.0, source=source,
                       target=target)
    assert wrong == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn",
                                   "float8_e5m2"])
def test_dot_accumulates_in_float32(child: Child, dtype: str) -> None:
    assert child.call("tests.targets.interpreted:dot_error", 60.0, dtype=dtype) < 1e-6


def test_a_fused_multiply_add_rounds_once(child: Child) -> None:
    assert child.call("tests.targets.interpreted:wrong_fmas", 120.0) == 0


def test_a_process_that_compiles_cannot_interpret() -> None:
    child = Child(memory_gb=8.0)
    with pytest.raises(ChildFailed, match="needs a process of its own"):
        child.call("tests.targets.compiling:then_interpret", 60.0)
    child.close()
