"""Gate b: the MLIR for the NPU, executed on the CPU, against torch on hard data."""

from __future__ import annotations

import pytest
import torch

from tests.targets.data.ascend import calls, kernels

pytest.importorskip("ascendnpuir", reason="needs expertile[ascend]")
pytest.importorskip("triton", reason="needs triton: its MLIR reader")
pytest.importorskip("llvmlite", reason="needs llvmlite: its JIT")

from expertile.ops.numerics import mismatch, same_bits
from expertile.targets.ascend import cpu_child, cpu_run
from expertile.targets.base import BuildError, RunFailed

CALLS = {
    "quant_f16": calls.group_quant(2, 256, 32),
    "quant_bf16": calls.group_quant(2, 256, 32, "bf16"),
    "gemm": calls.gemm(128, 256, 192, 64, 128, 64),
    **{f"grouped_{dtype}": calls.grouped_gemm((70, 0, 64, 3), 256, 256, 64, 128, 128, dtype)
       for dtype in calls.TORCH},
    **{f"mla_rope{rope}": calls.mla_decode((1, 63, 64, 65, 150, 192), 32, 16, 64, 128, rope)
       for rope in (64, 32)}}


@pytest.mark.parametrize("name", CALLS)
def test_matches_torch(name: str) -> None:
    call = CALLS[name]
    before = [a.clone() for a in call.arguments]
    after = cpu_run.run(cpu_run.build(call.module), call.arguments, call.grid)
    for got, want in zip(after[-len(call.want):], call.want, strict=True):
        assert mismatch(got, want, call.rtol) is None
    for got, had, given in zip(after, before, call.arguments, strict=True):
        assert same_bits(given, had).all()               # it worked on copies
        if got.data_ptr() not in {w.data_ptr() for w in after[-len(call.want):]}:
            assert same_bits(got, had).all()             # and left its inputs alone


def test_reading_past_an_array_is_caught() -> None:
    kernel = cpu_run.build(kernels.gemm(128, 64, 64, 128, 64))
    short = torch.ones(64 * 64 - 1).half()
    with pytest.raises(RunFailed, match="SIGSEGV") as failure:
        cpu_run.run(kernel, [short, torch.ones(64, 128).half(), torch.empty(64, 128).half()],
                    (1, 1, 1))
    assert failure.value.status == "illegal"


def test_what_it_cannot_run_it_refuses() -> None:
    quant = kernels.group_quant(256, 32)
    with pytest.raises(BuildError, match="cast ceil from f32 to i32: only rint"):
        cpu_run.build(quant.replace("round_mode<rint>", "round_mode<ceil>"))
    with pytest.raises(BuildError, match="cast in two steps"):    # the device would truncate
        cpu_run.build(quant.replace("32x128xi32", "32x128xi8"))
    with pytest.raises(BuildError, match="fp8"):
        cpu_run.build(quant.replace("xi8>", "xf8E4M3FN>"))
    with pytest.raises(BuildError, match="undeclared SSA value"):
        cpu_run.build(quant.replace("%ratio =", "%other ="))
    with pytest.raises(ValueError, match="takes 3 arguments, got 1"):
        cpu_run.run(cpu_run.build(quant), [torch.ones(4)], (1, 1, 1))


@pytest.mark.parametrize(("written", "taken"), (
    ("store float 7.216878e-02, ptr %a", "store float 0x3FB279A740000000, ptr %a"),
    ("store float f0x3E0C378C, ptr %a", "store float 0x3FC186F180000000, ptr %a"),
    ("store float -inf, ptr %a", "store float 0xFFF0000000000000, ptr %a"),
    ("select i1 %c, half -2.5, half %x", "select i1 %c, half 0xHC100, half %x"),
    ("fadd bfloat %x1.0, 1.5", "fadd bfloat %x1.0, 0xR3FC0"),
    ("call double @f(float %x, double 1.0e-3)", "call double @f(float %x, double "
                                               "0x3F50624DD2F1A9FC)")))
def test_float_constants_for_the_older_llvm(written: str, taken: str) -> None:
    assert cpu_child._exact_floats(written) == taken
