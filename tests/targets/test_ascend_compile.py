"""Ascend without a device: the device table, the compile driver, its refusals, the link check."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from dataclasses import replace

import pytest

from tests.targets.data.ascend import kernels

pytest.importorskip("ascendnpuir", reason="the compiler is not installed: expertile[ascend]")

from expertile.targets.ascend import compiler, process, symbols
from expertile.targets.ascend.artifact import Artifact, Refused, target_spec
from expertile.targets.ascend.devices import DEVICES, aliases, find

A2, A5 = find("910b3"), find("950pr_9599")
QUANT = kernels.group_quant(256, 32)
GEMM = kernels.gemm(256, 128, 128, 128, 64)
GROUPED = kernels.grouped_gemm(256, 256, 64, 128, 128, "i8")
MLA = kernels.mla_decode(16, 16, 64, 192)
ACCEPTED = {"quant": QUANT, "gemm": GEMM, "grouped_w8a8": GROUPED, "mla": MLA,
            "grouped_f16": kernels.grouped_gemm(256, 256, 64, 128, 128)}
FP8 = """module {
  func.func @k(%lock: memref<?xi8>, %space: memref<?xi8>, %X: memref<?xf16>,
      %Y: memref<?xf8E4M3FN>, %gx: i32, %gy: i32, %gz: i32, %px: i32, %py: i32, %pz: i32)
      attributes {SyncBlockLockArgIdx = 0 : i64, WorkspaceArgIdx = 1 : i64,
      global_kernel = "local", mix_mode = "aiv", parallel_mode = "simd"} {
    %c0 = arith.constant 0 : index
""" + kernels.load("x", "X", "c0", (32, 128), (128, 1), "f16") + """
    %f = arith.truncf %x : tensor<32x128xf16> to tensor<32x128xf8E4M3FN>
""" + kernels.store("f", "Y", "c0", (32, 128), (128, 1), "f8E4M3FN") + "    return\n  }\n}\n"


def accepted(answer: Artifact | Refused) -> Artifact:
    assert isinstance(answer, Artifact), answer
    return answer


def refused(answer: Artifact | Refused) -> Refused:
    assert isinstance(answer, Refused), f"the compiler took {answer.name}"
    return answer


def _some_names() -> list[str]:
    """All of the 910B, whose compiler is quick, and of the 950 one for each number of cores."""
    by_cores = {(d.family, d.cube_cores): name for name, d in DEVICES.items()}
    return sorted({name for name, d in DEVICES.items() if d.family == "c220"}
                  | set(by_cores.values()))


@pytest.mark.parametrize("name", _some_names())
def test_the_table_is_the_compilers(name: str) -> None:
    device = DEVICES[name]
    spec = target_spec(accepted(compiler.compile_module(QUANT, device)).text)
    assert spec["CUBE_CORE_COUNT"] == spec["AI_CORE_COUNT"] == device.cube_cores
    assert spec["VECTOR_CORE_COUNT"] == device.vector_cores
    bits = {"UB_SIZE": device.ub, "L1_SIZE": device.l1, "L0A_SIZE": device.l0a,
            "L0B_SIZE": device.l0b, "L0C_SIZE": device.l0c, "UB_ALIGN_SIZE": device.ub_align,
            "L1_ALIGN_SIZE": device.l1_align, "L0C_ALIGN_SIZE": device.l0c_align}
    assert {key: spec[key] for key in bits} == {key: 8 * size for key, size in bits.items()}


def test_every_spelling_finds_its_device() -> None:
    for device in DEVICES.values():
        assert {find(a) for a in (device.name, *aliases(device))} == {device}
    with pytest.raises(ValueError, match="Ascend910B3"):
        find("910b9")


def test_a_peak_says_where_it_comes_from() -> None:
    peaks = A2.peaks()
    assert peaks["flops_f16"].value == A2.cube_cores * 8192 * 1.8
    assert all(f.source and f.confidence == "reported" for f in peaks.values())
    assert not A5.peaks()


@pytest.mark.parametrize("device", (A2, A5), ids=lambda d: d.name)
@pytest.mark.parametrize("kernel", ACCEPTED)
def test_accepted_twice_is_the_same(kernel: str, device: object) -> None:
    first, second = (accepted(compiler.compile_module(ACCEPTED[kernel], device)) for _ in range(2))
    assert first.sha256 == second.sha256
    assert symbols.missing_symbols(first, device) == ()
    for space in ("ub", "cbuf", "cc"):
        assert first.peak(space) <= device.capacity(space)


def test_the_plan_of_a_matmul() -> None:
    made = accepted(compiler.compile_module(kernels.gemm(512, 1024, 128, 256, 64), A2))
    assert (made.name, made.task_type, made.workspace_bytes) == ("gemm", "cube", 0)
    plan = {(b.space, b.address, b.size) for b in made.buffers}
    a, b = 128 * 64 * 2, 64 * 256 * 2            # both operands twice: double buffering
    assert plan == {("cbuf", 0, a), ("cbuf", 49152, a), ("cbuf", 16384, b), ("cbuf", 65536, b),
                    ("cc", 0, 128 * 256 * 4)}
    assert made.calls == {"nd2nz_half": "AIC", "mma_tile_half_to_float": "AIC",
                          "fixpipe_nz2nd_float_to_half_4d_to_2d": "AIC"}


def test_a_mix_kernel_has_a_workspace() -> None:
    made = accepted(compiler.compile_module(GROUPED, A2))
    assert (made.task_type, made.workspace_bytes) == ("mix", 64 * 128 * 4)
    assert {b.function for b in made.buffers} == {"grouped_mix_aic", "grouped_mix_aiv"}


def test_overflow_is_refused_with_the_numbers() -> None:
    answer = refused(compiler.compile_module(kernels.gemm(512, 512, 256, 256, 64), A2))
    assert (answer.status, answer.space) == ("illegal", "cc")
    assert (answer.need_bits, answer.have_bits) == (2097152, 1048576)
    # the 950 has twice the L0C
    accepted(compiler.compile_module(kernels.gemm(512, 512, 256, 256, 64), A5))


def test_a_fallback_is_recorded_or_refused() -> None:
    made = accepted(compiler.compile_module(MLA, A2))
    assert made.fallbacks and made.flags["enable-auto-multi-buffer"] == "false"
    asked = accepted(compiler.compile_module(MLA, A2, made.flags, fallback=False))
    assert not asked.fallbacks and asked.sha256 == made.sha256
    answer = refused(compiler.compile_module(MLA, A2, fallback=False))
    assert answer.status == "illegal" and "enable-auto-multi-buffer to false" in answer.reason


def test_an_abort_and_an_error_are_refusals() -> None:
    answer = refused(compiler.compile_module(FP8, A2))
    assert "SIGABRT" in answer.reason and "unsupported datatype" in answer.reason
    accepted(compiler.compile_module(FP8, A5))
    answer = refused(compiler.compile_module("module { nonsense }", A2))
    assert answer.status == "build_error" and "nonsense" in answer.reason


def test_limits_of_time_and_memory() -> None:
    answer = refused(compiler.compile_module(MLA, A2, timeout_s=0.05))
    assert answer.status == "timeout" and "0.05 s" in answer.reason
    assert refused(compiler.compile_module(MLA, A2, memory_gb=0.1)).status == "oom"


def test_a_killed_compiler_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = process.subprocess.Popen

    def record(*args: object, **kwargs: object) -> object:
        started.append(popen(*args, **kwargs))
        return started[0]

    def kill() -> None:
        while not started:
            time.sleep(0.001)
        os.kill(started[0].pid, signal.SIGKILL)

    monkeypatch.setattr(process.subprocess, "Popen", record)
    thread = threading.Thread(target=kill)
    thread.start()
    answer = refused(compiler.compile_module(MLA, A2))
    thread.join()
    assert answer.status == "build_error" and "SIGKILL" in answer.reason


def test_a_missing_compiler_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "tool_path", lambda tool: None)
    assert "pip install 'expertile[ascend]'" in refused(compiler.compile_module(GEMM, A2)).reason


def test_the_link_check_finds_what_is_not_there() -> None:
    made = accepted(compiler.compile_module(GEMM, A2))
    forged = replace(made, calls={**made.calls, "mma_tile_half_to_int3": "AIC"})
    assert symbols.missing_symbols(forged, A2) == ("mma_tile_half_to_int3",)
    # a vector function is not in the library of the cube cores
    vector = replace(made, calls={"vadd_1d_float": "AIC"})
    assert symbols.missing_symbols(vector, A2) == ("vadd_1d_float",)
    assert symbols.missing_symbols(replace(made, calls={"vadd_1d_float": "AIV"}), A2) == ()


def test_only_definitions_count() -> None:
    # intrinsics are declared in the library, not defined: the linker would not find them there
    assert not any(s.startswith("llvm.") for s in symbols.library_symbols("c220", "AIV"))


def test_many_tiles_never_exceed_a_space() -> None:
    """What is accepted fits; what is refused names a space and asks for more than it has."""
    pick, verdicts = random.Random(0), set()
    for _ in range(24):
        bm, bn, bk = (pick.choice((16, 64, 128, 256)) for _ in range(3))
        answer = compiler.compile_module(kernels.gemm(256, 512, bm, bn, bk), A2)
        verdicts.add(type(answer))
        if isinstance(answer, Refused):
            assert answer.need_bits > answer.have_bits == 8 * A2.capacity(answer.space), answer
        else:
            assert answer.peak("cc") == bm * bn * 4 <= A2.l0c
            assert answer.peak("cbuf") <= A2.l1
    assert verdicts == {Artifact, Refused}
