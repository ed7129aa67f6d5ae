"""Which card is opened, and what is said where none can be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from expertile import targets
from expertile.commands.options import load_target
from expertile.targets.ascend.runtime.cann import NoCann
from expertile.targets.ascend.target import AscendTarget

from ..ascend_card import Recorder, install
from .cases import MARK, silu_launch, tensors


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
