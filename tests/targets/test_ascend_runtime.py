"""The launcher for Ascend cards, against libraries that record its calls and run its kernels.

It says that arguments, buffers, streams, waits and errors are handled as CANN's headers ask. It
says nothing of a real card.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from expertile import ops, targets
from expertile.commands.options import load_target
from expertile.opt.budget import Budget
from expertile.opt.tune import tune
from expertile.targets.ascend.launches import Launch
from expertile.targets.ascend.runtime.arguments import layout, pack
from expertile.targets.ascend.runtime.binary import load_or_build, toolchain
from expertile.targets.ascend.runtime.cann import NoCann, find
from expertile.targets.ascend.runtime.card import Card
from expertile.targets.ascend.runtime.library import AclError, Library
from expertile.targets.ascend.target import AscendTarget
from expertile.targets.base import BuildError, RunFailed
from expertile.tuning_db.store import TuningDB

from ..conformance import check
from .ascend_card import FLAGS, Recorder, install

SILU = ops.load("silu_mul")
SHAPE = SILU.odd_shapes[0]           # 7 x 77 in float32
# y = block + 0.5 in the block's first output, whatever x is
MARK = """
int npu_block(const arguments_t *a, uint32_t block) {
    ((float *)a->a2)[block] = block + 0.5f;
    return 0;
}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation whose binaries this CPU runs."""
    return install(tmp_path_factory.mktemp("cann") / "latest")


@pytest.fixture
def recorder(home: Path) -> Iterator[Recorder]:
    """Fresh before each test; nothing may leak in between."""
    made = Recorder(home)
    yield made
    for path in (*made.tools.glob("*.c"), *made.tools.glob("*.json")):
        path.unlink()


@pytest.fixture
def target(home: Path, tmp_path: Path) -> AscendTarget:
    """The card as --device npu:0 has it."""
    made = targets.load("npu:0", cache_dir=tmp_path, cann_home=home)
    assert isinstance(made, AscendTarget)
    return made


def silu_launch(target: AscendTarget, x: torch.Tensor, y: torch.Tensor) -> Launch:
    """One launch of silu_mul on real tensors."""
    found: list[Launch] = []
    recording = target.recording(found)
    recording.build_kernel(SILU, SHAPE, target.space(SILU, SHAPE).default())(x, out=(y,))
    return found[0]


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    """x [7, 154] and y [7, 77]."""
    return torch.randn(7, 154), torch.zeros(7, 77)


def test_the_chip_is_found_by_its_name(target: AscendTarget, home: Path) -> None:
    assert (target.mode, target.arch, target.torch_device) == ("device", "ascend910b3", "cpu")
    assert target.available() is None and target.evidence() == "L4 timed" and target.computes
    assert target.toolchain()["hivmc"] == "CANN 8.5.0"
    child = targets.load(f"npu:{target.here.index}", cann_home=home) if target.here else None
    assert child == targets.load("ascend", cann_home=home)     # no name: the card that is here
    recipe = target.recipe()[1]
    assert recipe["soc"] == "Ascend910B3" and recipe["cann_home"] == str(home)
    named = targets.load("ascend910b1", cann_home=home)
    assert named.torch_device == "meta" and not named.computes   # named: only compiled for


def test_the_command_line_reads_the_toolkits_variable(home: Path, monkeypatch: pytest.MonkeyPatch
                                                      ) -> None:
    monkeypatch.setenv("ASCEND_HOME_PATH", str(home))
    made = load_target("npu:0")
    assert isinstance(made, AscendTarget) and made.here is not None and made.here.home == home
    monkeypatch.delenv("ASCEND_HOME_PATH")
    with pytest.raises(NoCann, match="CANN is not installed here"):
        load_target("npu:0")


def test_kernels_run_and_are_right(target: AscendTarget, recorder: Recorder) -> None:
    """Every hostile case of a real kernel, through struct, workspace, copies and stream."""
    recorder.kernel("silu_mul", workspace=96)
    kernel = target.build_kernel(SILU, SHAPE, target.space(SILU, SHAPE).default())
    check(SILU, kernel, SHAPE)
    assert "magic=41415246" in recorder.calls
    assert any("run silu_mul blocks=" in line for line in recorder.calls)
    target.card.close()
    assert recorder.live == 0


def test_a_card_is_tuned(target: AscendTarget, recorder: Recorder, tmp_path: Path) -> None:
    """Children find the card again, build, check, time by its events; a wrong config is a row."""
    recorder.kernel("silu_mul", """
#include <math.h>
int npu_block(const arguments_t *a, uint32_t block) {
    const float *x = a->a1;
    float *y = a->a2;
    for (int r = 0; !block && r < a->a0; r++)
        for (int j = 0; j < 77; j++) {
            float g = x[r * 154 + j], u = x[r * 154 + 77 + j];
            y[r * 77 + j] = g / (1.0f + expf(-g)) * u * (a->gx == a->a0 ? 1 : 2);
        }
    return 0;
}
""")
    outcome, = tune(SILU, target, [SHAPE], tmp_path / "x.sqlite", Budget(trials=6))
    record = outcome.record
    assert (record.status, record.kind, record.evidence) == ("ok", "measured", "L4 timed")
    assert record.default_us == pytest.approx(7.0, rel=1e-2) and record.decision == "default kept"
    assert record.provenance.versions["hivmc"] == "CANN 8.5.0"
    assert record.key.arch == "ascend910b3"
    with TuningDB(tmp_path / "x.sqlite") as db:
        rows = db.records(op="silu_mul", role="candidate")
    assert {(r.config["rows"] == 1, r.status) for r in rows} <= {
        (True, "ok"), (False, "wrong"), (False, "illegal")}
    assert len(rows) == 6 and all(r.us is None for r in rows if r.status != "ok")


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


def test_binaries_are_kept_on_disk(target: AscendTarget, home: Path, recorder: Recorder,
                                   tmp_path: Path) -> None:
    recorder.kernel("silu_mul", MARK)
    x, y = tensors()
    target.card.launch(silu_launch(target, x, y))
    count = len(recorder.compiled())
    again = targets.load("npu:0", cache_dir=tmp_path, cann_home=home)
    assert isinstance(again, AscendTarget)
    again.card.launch(silu_launch(again, x, y))
    assert len(recorder.compiled()) == count
    kept, = (tmp_path / "npubin").glob("*.o")
    kept.write_bytes(kept.read_bytes()[:-1])         # damaged: built again
    once_more = targets.load("npu:0", cache_dir=tmp_path, cann_home=home)
    assert isinstance(once_more, AscendTarget)
    once_more.card.launch(silu_launch(once_more, x, y))
    assert len(recorder.compiled()) == count + 1


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


def test_torch_npu_is_found(home: Path, recorder: Recorder, tmp_path: Path,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch_npu.py").write_text("""
import types
import torch
torch.npu = types.SimpleNamespace(
    devices=[], current_stream=lambda: types.SimpleNamespace(npu_stream=0x77))
torch.npu.set_device = torch.npu.devices.append
""")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch, "npu", None, raising=False)
    recorder.kernel("silu_mul", MARK)
    try:
        made = targets.load("npu:0", cache_dir=tmp_path, cann_home=home)
        assert isinstance(made, AscendTarget) and made.torch_device == "npu:0"
        assert made.card.stream == 0x77 and torch.npu.devices == [0]
        with pytest.raises(ValueError, match="must be on npu:0, got one on cpu"):
            made.card.launch(silu_launch(made, *tensors()))
    finally:
        del sys.modules["torch_npu"]


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


@pytest.mark.parametrize(("function", "code", "says", "status"), [
    ("rtDevBinaryRegister", 507008, "compiled for another chip", "illegal"),
    ("rtFunctionRegister", 507027, "does not have the kernel", "run_error"),
    ("aclrtCreateStream", 107002, "no device was set", "run_error"),
    ("aclrtMalloc", 207001, "out of memory", "oom"),
    ("aclrtMemcpy", 107000, "a parameter is not valid", "run_error"),
    ("rtGetC2cCtrlAddr", 207000, "does not have the feature", "run_error"),
    ("rtKernelLaunch", 107003, "another context's", "run_error"),
    ("aclrtSynchronizeStream", 507035, "the vector core stopped", "illegal"),
    ("aclrtSynchronizeStream", 507014, "time limit", "timeout"),
    ("rtKernelLaunch", 999999, "CANN's list of error codes", "run_error"),
])
def test_every_failing_call_says_what_it_means(home: Path, recorder: Recorder, tmp_path: Path,
                                               function: str, code: int, says: str, status: str
                                               ) -> None:
    recorder.kernel("silu_mul", MARK)
    made = targets.load("npu:0", cache_dir=tmp_path, cann_home=home)
    assert isinstance(made, AscendTarget)
    x, y = tensors()
    recorder.fail(function, code)
    with pytest.raises(AclError, match=rf"{function} failed with {code}: .*{says}") as raised:
        made.card.launch(silu_launch(made, x, y))
    assert raised.value.status == status and f"says no to {function}" in str(raised.value)
    assert recorder.live == 0 and y.sum() == 0       # nothing leaks, nothing half-written
    recorder.reset()
    made.card.launch(silu_launch(made, x, y))        # and the card goes on
    assert y.sum() != 0


def test_a_second_buffer_that_does_not_fit_frees_the_first(target: AscendTarget, recorder: Recorder
                                                           ) -> None:
    recorder.kernel("silu_mul", MARK)
    x, y = tensors()
    recorder.fail("aclrtMalloc", 207001, after=1)
    with pytest.raises(AclError, match="out of memory"):
        target.card.launch(silu_launch(target, x, y))
    assert recorder.live == 0


def test_a_fault_of_the_kernel_is_its_own(target: AscendTarget, recorder: Recorder) -> None:
    recorder.kernel("silu_mul", "int npu_block(const arguments_t *a, uint32_t b) {return b == 3;}")
    x, y = tensors()
    with pytest.raises(AclError, match="the vector core stopped.*kernel fault 1"):
        target.card.launch(silu_launch(target, x, y))


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    def refusal(home: Path) -> str:
        with pytest.raises(NoCann) as raised:
            targets.load("npu:0", cann_home=home)
        text = str(raised.value)
        assert "\n" not in text
        return text

    assert "no libascendcl.so" in refusal(tmp_path) and "ASCEND_HOME_PATH" in refusal(tmp_path)
    assert "has no bishengir-compile" in refusal(install(tmp_path / "a", compiler=False))
    assert "'Ascend310P3', which the device table does not have" in refusal(
        install(tmp_path / "b", 'SOC="Ascend310P3"'))
    home = install(tmp_path / "c")
    Recorder(home).fail("aclrtSetDevice", 107001)
    assert "npu:0 cannot be used" in refusal(home) and "no such device" in refusal(home)
    library = tmp_path / "e" / "lib64" / "libascendcl.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"\x7fELF and nothing else")
    assert "libascendcl.so" in refusal(tmp_path / "e") and "set_env.sh" in refusal(tmp_path / "e")
    with pytest.raises(ValueError, match="npu:0 is Ascend910B1, not Ascend910B3"):
        targets.load("ascend910b3", mode="device",
                     cann_home=install(tmp_path / "d", 'SOC="Ascend910B1"'))
    with pytest.raises(ValueError, match="got 'npu:x'"):
        targets.load("npu:x")


def test_a_library_without_any_launch_names_what_it_lacks(tmp_path: Path) -> None:
    home = install(tmp_path / "old", "NO_HOST_ARGS", rt=False)
    Recorder(home).kernel("silu_mul", MARK)
    made = targets.load("npu:0", cache_dir=tmp_path, cann_home=home)
    assert isinstance(made, AscendTarget)
    with pytest.raises(NoCann, match="rtKernelLaunch, aclrtLaunchKernelWithHostArgs; install"):
        made.card.launch(silu_launch(made, *tensors()))


def test_what_the_compiler_refuses(target: AscendTarget, recorder: Recorder,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    from expertile.targets.ascend.runtime import prepare

    monkeypatch.setattr(prepare, "unusable", lambda: "not asked here")
    recorder.kernel("silu_mul", MARK, refuse=1)
    with pytest.raises(BuildError, match="ub overflow: needs 1835008 of 1572864 bits") as raised:
        target.card.launch(silu_launch(target, *tensors()))
    assert raised.value.status == "illegal"
    recorder.kernel("mla_decode", "int npu_block(const arguments_t *a, uint32_t b) { return 0; }",
                    mute=1)
    op = ops.load("mla_decode")
    shape = op.odd_shapes[0]
    kernel = target.build_kernel(op, shape, target.space(op, shape).default())
    args = op.inputs(shape, 0)
    with pytest.raises(BuildError, match="does not say how large"):
        kernel(*args, out=op.empty(*args))


def test_flags_are_those_that_the_compiler_has(tmp_path: Path) -> None:
    home = install(tmp_path / "cann")
    recorder = Recorder(home)
    recorder.kernel("silu_mul", MARK)
    (recorder.tools / "help.txt").write_text(FLAGS.replace("--enable-code-motion", "--reg-based"))
    made = targets.load("npu:0", cache_dir=tmp_path, cann_home=home)
    assert isinstance(made, AscendTarget)
    launch = silu_launch(made, *tensors())
    made.card.launch(launch)             # code motion is on without a flag
    asked = recorder.compiled()[-1]
    assert "--reg-based=true" in asked
    assert not any("code-motion" in a or "enable-hivm-compile" in a for a in asked)
    off = Launch(launch.program, launch.grid, launch.args, {"enable-code-motion": "false"})
    with pytest.raises(BuildError, match="has no --enable-code-motion, .* to false") as raised:
        made.card.launch(off)
    assert raised.value.status == "illegal"


def test_a_grid_beyond_cann_is_refused(target: AscendTarget, recorder: Recorder) -> None:
    made = silu_launch(target, *tensors())
    with pytest.raises(RunFailed, match="at most 65535 blocks"):
        target.card.launch(Launch(made.program, (256, 256, 1), made.args, made.flags))


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


def test_a_config_is_examined_with_its_binary(target: AscendTarget, recorder: Recorder) -> None:
    recorder.kernel("silu_mul", MARK)
    found = target.compile_here(SILU, SHAPE, target.space(SILU, SHAPE).default())
    assert found.legal and found.evidence == "L2 native object"
    kernel, = found.kernels
    assert kernel["binary_bytes"] > 1000 and kernel["binary_compiler"].endswith("CANN 8.5.0")
    assert kernel["ub_bytes"] > 0 and kernel["grid"] == [7, 1, 1]
    assert "rtKernelLaunch" not in recorder.calls


def test_the_package_compiles_with_canns_hivmc(tmp_path: Path) -> None:
    """Without a bishengir-compile of its own; a hivmc that only fails shows how far it gets."""
    home = install(tmp_path / "cann", compiler=False)
    hivmc = home / "tools" / "bishengir" / "bin" / "hivmc"
    hivmc.write_text("#!/bin/sh\necho 'error: I am a stub' >&2\nexit 3\n")
    hivmc.chmod(0o755)
    made = targets.load("npu:0", cache_dir=tmp_path, cann_home=home)
    assert isinstance(made, AscendTarget)
    assert made.card.tools.version == "bishengir-compile of ascendnpu-ir, hivmc of CANN 8.5.0"
    with pytest.raises(BuildError, match="I am a stub"):
        made.card.launch(silu_launch(made, *tensors()))


def test_files_that_cannot_be_built_twice_at_once(target: AscendTarget, recorder: Recorder,
                                                  tmp_path: Path) -> None:
    """A description whose object is another one's is not taken for whole."""
    recorder.kernel("silu_mul", MARK)
    from expertile.targets.ascend.emit import emit

    text = emit(silu_launch(target, *tensors()).program, "device").text
    tools = target.card.tools
    first = load_or_build(text, target.npu, {}, tools, tmp_path)
    assert load_or_build(text, target.npu, {}, tools, tmp_path) == first
    assert first.kinds[0] == "flags" and first.mix_mode == "aiv"
