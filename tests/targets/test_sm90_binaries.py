"""What must be in the binaries for Hopper, in each triton that we test with: no GPU is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from expertile import ops
from expertile.ops.models import Load, preset
from expertile.ops.spec import Shape
from expertile.targets._triton.interpreter import TESTED
from expertile.targets.child import Child

from ..triton_child import triton_env

FP8 = {"a_dtype": "float8_e4m3fn", "w_dtype": "float8_e4m3fn", "out_dtype": "bfloat16",
       "block_n": 128, "block_k": 128}
DECODE = {"n": 4096, "k": 7168, **FP8, "tokens": 1}
PREFILL = {"n": 4096, "k": 7168, **FP8, "tokens": 4096}


@pytest.fixture(scope="module", params=TESTED)
def compiler(request: pytest.FixtureRequest) -> Iterator[Child]:
    made = Child(memory_gb=10.0, env=triton_env(request.param))
    yield made
    made.close()


def facts(compiler: Child, op: str, shape: Shape, **wanted: Any) -> list[dict[str, Any]]:
    """Facts of the default config, or of the first with the wanted choices."""
    site = {"device": "cuda:sm_90", "op_name": op, "shape": dict(shape)}
    config = wanted and compiler.call("tests.targets.compiling:pick", 60.0, wanted=wanted, **site)
    found: list[dict[str, Any]] = compiler.call("tests.targets.compiling:facts", 180.0,
                                                config=config or None, **site)
    return found


def matrix(kernels: list[dict[str, Any]]) -> dict[str, int]:
    """Matrix instructions of all kernels together."""
    found: dict[str, int] = {}
    for kernel in kernels:
        for name, count in kernel["mma"].items():
            found[name] = found.get(name, 0) + count
    return found


def test_an_fp8_decode_gemm_of_16_rows_keeps_the_warpgroup_instruction(compiler: Child) -> None:
    kernels = facts(compiler, "gemm_nt", DECODE, block_m=16)
    found = matrix(kernels)
    assert found.get("QGMMA") and "HMMA" not in found and "QMMA" not in found, found
    assert all(k["stack_bytes"] == 0 for k in kernels)


@pytest.mark.parametrize("heads", [16, 32])
def test_mla_of_few_heads_keeps_the_warpgroup_instruction(compiler: Child, heads: int) -> None:
    model = preset("v3").split(tp=128 // heads)
    shape = ops.load("mla_decode").shapes(model, Load(batch=(32,), ctx=(4096,)))[0]
    kernels = facts(compiler, "mla_decode", shape)
    found = matrix(kernels)
    assert found.get("HGMMA") and "HMMA" not in found, found
    assert all(k["stack_bytes"] == 0 for k in kernels)


def test_the_warp_specialised_fp8_gemm_moves_registers_and_spills_none(compiler: Child) -> None:
    kernels = facts(compiler, "gemm_nt", PREFILL, form="tma_ws")
    gemm = max(kernels, key=lambda k: k["instructions"])
    assert gemm["counts"]["USETMAXREG"] > 0 and gemm["stack_bytes"] == 0, gemm
    assert gemm["counts"]["UTMALDG"] > 0 and gemm["mma"].get("QGMMA")
    assert gemm["warps"] > 4                     # the producer's and the second consumer's
