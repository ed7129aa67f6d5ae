"""Launches: order of the calls, views, workspace, locks, streams, times."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from expertile import ops, targets
from expertile.targets.ascend.runtime.arguments import layout, pack
from expertile.targets.ascend.runtime.binary import toolchain
from expertile.targets.ascend.runtime.cann import find
from expertile.targets.ascend.runtime.card import Card
from expertile.targets.ascend.runtime.library import Library
from expertile.targets.ascend.target import AscendTarget

from ...conformance import check
from ..ascend_card import Recorder, install
from .cases import MARK, SHAPE, SILU, silu_launch, tensors


def test_kernels_run_and_are_right(target: AscendTarget, recorder: Recorder) -> None:
    """Every hostile case of a real kernel, through struct, workspace, copies and stream."""
    recorder.kernel("silu_mul", workspace=96)
    kernel = target.build_kernel(SILU, SHAPE, target.space(SILU, SHAPE).default())
    check(SILU, kernel, SHAPE)
    assert "magic=41415246" in recorder.calls
    assert any("run silu_mul blocks=" in line for line in recorder.calls)
    target.card.close()
    assert recorder.live == 0


def test_a_cube_kernel_is_registered_as_one(target: AscendTarget, recorder: Recorder) -> None:
    op = ops.load("gemm_nt")
    shape = op.odd_shapes[0]
    recorder.kernel("gemm_nt", "int npu_block(const arguments_t *a, uint32_t b) { return 0; }")
    args = op.inputs(shape, 0)
    target.build_kernel(op, shape, target.space(op, shape).default())(*args, out=op.empty(*args))
    assert "magic=43554245" in recorder.calls and "stub gemm_nt_0" in recorder.calls


def test_a_stub_is_never_reused(home: Path, recorder: Recorder, tmp_path: Path) -> None:
    """CANN would run the kernel of the card that is gone."""
    for value in range(6):
        recorder.kernel("silu_mul", MARK.replace("0.5f", f"{value}"))
        made = targets.load("npu:0", cache_dir=tmp_path / str(value), cann_home=home)
        assert isinstance(made, AscendTarget)
        x, y = tensors()
        made.card.launch(silu_launch(made, x, y))
        assert y.flatten()[:2].tolist() == [value, value + 1]
        del made


def test_calls_come_in_order(target: AscendTarget, recorder: Recorder) -> None:
    recorder.kernel("silu_mul", MARK)
    x, y = tensors()
    launch = silu_launch(target, x, y)
    target.card.launch(launch)
    assert y.flatten()[:7].tolist() == [b + 0.5 for b in range(7)]
    assert recorder.calls == [
        "aclInit", "aclrtSetDevice", "rtDevBinaryRegister", "magic=41415246", "rtFunctionRegister",
        "stub silu_mul_0", "aclrtCreateStream", "aclrtMalloc", "aclrtMemcpy", "aclrtMalloc",
        "aclrtMemcpy", "rtGetC2cCtrlAddr", "rtKernelLaunch", "stream=1", "aclrtSynchronizeStream",
        "run silu_mul blocks=7 size=64", "aclrtMemcpy", "aclrtFree", "aclrtFree"]
    recorder.reset()
    target.card.launch(launch)           # registered once
    assert "rtDevBinaryRegister" not in recorder.calls
    flags = recorder.compiled()[-1]
    assert flags[0] == "--target=Ascend910B3" and "--enable-triton-kernel-compile=true" in flags


def test_views_of_one_tensor_stay_views(target: AscendTarget, recorder: Recorder) -> None:
    """Input and output in one storage: one copy, and only what is written comes back."""
    recorder.kernel("silu_mul", """
int npu_block(const arguments_t *a, uint32_t block) {
    float *x = a->a1, *y = a->a2;
    if (y != x + 7 * 154 + 3) return 9;
    y[block] = x[block] + 1;
    x[0] = 99;                       /* not an output: must not come back */
    return 0;
}
""")
    both = torch.arange(7.0 * 154 + 3 + 7 * 77)
    x, y = both[:7 * 154].view(7, 154), both[7 * 154 + 3:].view(7, 77)
    before = both.clone()
    target.card.launch(silu_launch(target, x, y))
    # block 0 overwrites x[0] on the card after reading it; here x is what it was
    assert torch.equal(y.flatten()[:7], before[:7] + 1) and torch.equal(x.flatten(),
                                                                       before[:7 * 154])
    assert recorder.calls.count("aclrtMalloc") == 1


def test_workspace_and_locks(target: AscendTarget, recorder: Recorder) -> None:
    """The kernel writes its whole share of the workspace and sees the locks' value."""
    recorder.kernel("silu_mul", MARK, workspace=4096, locks=3, lock_value=-5)
    x, y = tensors()
    launch = silu_launch(target, x, y)
    target.card.launch(launch)
    target.card.launch(launch)
    allocated = recorder.calls.count("aclrtMalloc")
    assert allocated == 2 + 2 + 2        # workspace and lock once, x and y at each launch
    assert recorder.live == 2
    target.card.close()
    assert recorder.live == 0


def test_timing_is_the_devices_with_a_cold_cache(target: AscendTarget, recorder: Recorder) -> None:
    recorder.kernel("silu_mul", MARK)
    x, y = tensors()
    launch = silu_launch(target, x, y)
    target.card.launch(launch)
    recorder.reset()
    assert target.time_us(lambda: target.card.launch(launch), 3) == pytest.approx(7.0, rel=1e-3)
    assert target.time_us(lambda: [target.card.launch(launch) for _ in range(2)], 1) == \
        pytest.approx(14.0, rel=1e-3)
    order = [c for c in recorder.calls if c in ("aclrtMemsetAsync", "aclrtRecordEvent",
                                                "rtKernelLaunch")]
    assert order == 5 * ["aclrtMemsetAsync", "aclrtRecordEvent", "rtKernelLaunch",
                         "aclrtRecordEvent"]


def test_torch_npus_stream_and_tensors(target: AscendTarget, home: Path, recorder: Recorder,
                                       tmp_path: Path) -> None:
    """Tensors that are on the card go as they are; nothing waits, nothing is copied."""
    recorder.kernel("silu_mul", MARK)
    cann = find(home)
    asked: list[int] = []

    def stream() -> int:
        asked.append(1)
        return 0x5157

    card = Card(Library(cann), 0, target.npu, toolchain(cann, target.npu), tmp_path, stream, "cpu")
    x, y = tensors()
    recorder.reset()
    card.launch(silu_launch(target, x, y))
    assert "stream=0" in recorder.calls and asked
    assert not {"aclrtCreateStream", "aclrtMemcpy", "aclrtMalloc", "aclrtSynchronizeStream"} & {
        *recorder.calls}
    assert y.sum() == 0                  # queued
    card.npu.wait(0x5157)
    assert y.flatten()[:7].tolist() == [b + 0.5 for b in range(7)]
    launch = silu_launch(target, x, y)
    assert card.time_us(lambda: card.launch(launch), 2) == pytest.approx(7.0, rel=1e-3)
    with pytest.raises(ValueError, match="must be on cpu, got one on meta"):
        card.launch(silu_launch(target, x.to("meta"), y))


def test_without_rt_the_public_interface_launches(tmp_path: Path) -> None:
    home = install(tmp_path / "cann", rt=False)
    recorder = Recorder(home)
    recorder.kernel("silu_mul", MARK)
    made = targets.load("npu:0", cache_dir=tmp_path, cann_home=home)
    assert isinstance(made, AscendTarget)
    x, y = tensors()
    made.card.launch(silu_launch(made, x, y))
    assert y.flatten()[:7].tolist() == [b + 0.5 for b in range(7)]
    assert made.card.route.name == "aclrt" and not any(c.startswith("rt") for c in recorder.calls)
    assert [c for c in recorder.calls if "Binary" in c or "Host" in c or "Sync" in c] == [
        "aclrtBinaryLoadFromData", "aclrtBinaryGetFunction", "aclrtGetHardwareSyncAddr",
        "aclrtLaunchKernelWithHostArgs", "aclrtSynchronizeStream"]


def test_the_struct() -> None:
    module = ("func.func @k(%l: memref<?xi8>, %w: memref<?xi8>, %a: i32, %b: memref<?xf32>, "
              "%c: i32, %d: i32, %gx: i32, %gy: i32, %gz: i32, %px: i32, %py: i32, %pz: i32) "
              "attributes {}")
    kinds = layout(module, True)
    assert kinds == ("flags", "lock", "workspace", "i32", "pointer", "i32", "i32", "grid", "grid",
                     "grid")
    data = pack(kinds, 1, 2, 3, [-4, 5, 6, 7], (8, 9, 10))
    words = list((ctypes.c_int32 * (len(data) // 4)).from_buffer_copy(data))
    assert words == [1, 0, 2, 0, 3, 0, -4, 0, 5, 0, 6, 7, 8, 9, 10, 0]
    assert layout(module, False) == kinds[1:]        # the 950 hands over no flags
    with pytest.raises(ValueError, match="takes 4 arguments, got 3"):
        pack(kinds, 1, 2, 3, [4, 5, 6], (8, 9, 10))
    with pytest.raises(ValueError, match="memrefs and i32, got f32"):
        layout(module.replace("%c: i32", "%c: f32"), True)
