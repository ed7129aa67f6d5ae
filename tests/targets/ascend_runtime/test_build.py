"""Binaries: compiled with CANN's tools or the package's, kept, examined, tuned."""

from __future__ import annotations

from pathlib import Path

import pytest

from expertile import ops, targets
from expertile.opt.budget import Budget
from expertile.opt.tune import tune
from expertile.targets.ascend.launches import Launch
from expertile.targets.ascend.runtime.binary import load_or_build
from expertile.targets.ascend.target import AscendTarget
from expertile.targets.base import BuildError
from expertile.tuning_db.store import TuningDB

from ..ascend_card import FLAGS, Recorder, install
from .cases import MARK, SHAPE, SILU, silu_launch, tensors


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
