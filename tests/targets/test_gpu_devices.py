"""The GPU tables: names resolve, limits are the vendors', figures say where they are from."""

from __future__ import annotations

from types import ModuleType

import pytest

from expertile.targets._triton.device import Device
from expertile.targets.cuda import devices as cuda
from expertile.targets.hip import devices as hip

ALL = cuda.DEVICES + hip.DEVICES


@pytest.mark.parametrize("text,name", [
    ("sm_90", "h100-sxm"), ("h100", "h100-sxm"), ("NVIDIA_H100", "h100-sxm"),
    ("NVIDIA H100 80GB HBM3", "h100-sxm"), ("NVIDIA_H100_80GB_HBM3", "h100-sxm"),
    ("NVIDIA H100 PCIe", "h100-pcie"), ("h20", "h20"), ("NVIDIA H20-3e", "h20-3e"),
    ("NVIDIA H200", "h200"), ("NVIDIA H800", "h800-sxm"),
    ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
    ("NVIDIA_A100-PCIe-40GB", "a100-pcie-40gb"), ("a800", "a800-sxm-80gb"),
    ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("RTX_4090", "rtx-4090"), ("4090D", "rtx-4090d"),
    ("NVIDIA GeForce RTX 4090 D", "rtx-4090d"), ("NVIDIA GB10", "gb10"), ("sm_121", "gb10"),
    ("NVIDIA_RTX_PRO_6000_Blackwell_Server_Edition", "rtx-pro-6000-server"),
    ("NVIDIA B200", "b200"), ("NVIDIA L40S", "l40s")])
def test_nvidia_names_resolve(text: str, name: str) -> None:
    assert cuda.find(text).name == name


@pytest.mark.parametrize("text,name", [
    ("gfx942", "mi300x"), ("AMD_Instinct_MI300X", "mi300x"), ("AMD Instinct MI308X", "mi308x"),
    ("mi355x", "mi355x"), ("gfx90a", "mi210"), ("gfx906", "mi50")])
def test_amd_names_resolve(text: str, name: str) -> None:
    assert hip.find(text).name == name


@pytest.mark.parametrize("text", ["h1000", "sm_70", "rtx", "", "NVIDIA H2"])
def test_an_unknown_name_lists_the_choices(text: str) -> None:
    with pytest.raises(ValueError, match=r"sm_80.*sm_120.*h100-sxm") as refused:
        cuda.find(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("table", [cuda, hip], ids=lambda t: t.__name__.split(".")[-2])
def test_no_name_means_two_devices(table: ModuleType) -> None:
    for device in table.DEVICES:
        assert all(table.find(name) is device for name in (device.name, *device.aliases))


@pytest.mark.parametrize("arch,shared,warps,blocks,fp8,mma_bf16,mma_fp8,tma", [
    ("sm_80", 166912, 64, 32, "bits", "HMMA", "", False),
    ("sm_86", 101376, 48, 16, "bits", "HMMA", "", False),
    ("sm_89", 101376, 48, 24, "native", "HMMA", "QMMA", False),
    ("sm_90", 232448, 64, 32, "native", "HGMMA", "QGMMA", True),
    ("sm_100", 232448, 64, 32, "native", "UTCHMMA", "UTCQMMA", True),
    ("sm_120", 101376, 48, 24, "native", "HMMA", "QMMA", True),
    ("sm_121", 101376, 48, 24, "native", "HMMA", "QMMA", True)])
def test_nvidia_limits(arch: str, shared: int, warps: int, blocks: int, fp8: str, mma_bf16: str,
                       mma_fp8: str, tma: bool) -> None:
    device = cuda.find(arch)
    spec = device.spec
    assert (device.shared_bytes, spec.warps_per_sm, spec.blocks_per_sm) == (shared, warps, blocks)
    assert (device.fp8, spec.mma_bf16, spec.mma_fp8, device.has_tma) == (fp8, mma_bf16, mma_fp8,
                                                                         tma)
    assert (spec.registers_per_sm, spec.threads_per_block, device.warp_size) == (65536, 1024, 32)
    assert spec.grid == (2147483647, 65535, 65535)
    assert spec.shared_per_sm == spec.shared_per_block + spec.shared_reserved
    assert bool(spec.fp8_types) == (device.fp8 == "native")


@pytest.mark.parametrize("arch,lds,registers,per_thread,waves,fp8,types", [
    ("gfx906", 65536, 65536, 256, 40, "bits", ()),
    ("gfx90a", 65536, 131072, 512, 32, "bits", ()),
    ("gfx942", 65536, 131072, 512, 32, "fnuz", ("fp8e4b8", "fp8e5b16")),
    ("gfx950", 163840, 131072, 512, 32, "native", ("fp8e4nv", "fp8e5"))])
def test_amd_limits(arch: str, lds: int, registers: int, per_thread: int, waves: int, fp8: str,
                    types: tuple[str, ...]) -> None:
    device = hip.find(arch)
    spec = device.spec
    assert (device.shared_bytes, spec.registers_per_sm, spec.warps_per_sm) == (lds, registers,
                                                                               waves)
    assert (spec.registers_per_thread, device.fp8, spec.fp8_types) == (per_thread, fp8, types)
    assert device.warp_size == 64 and spec.threads_per_axis == 2**32 - 1


@pytest.mark.parametrize("device", ALL, ids=lambda d: d.name)
def test_every_figure_has_a_source(device: Device) -> None:
    limits = device.limits
    assert all(f.source and f.value > 0 for f in limits.values())
    assert limits["shared_per_block"].value == device.shared_bytes
    if device.bandwidth is not None:
        assert limits["bandwidth"].unit == "GB/s" and 200 < limits["bandwidth"].value <= 8000
    if device.bf16 is not None:
        assert limits["bf16"].unit == "GFLOP/s" and 60e3 < limits["bf16"].value <= 2500e3
        peak = limits["fp8" if "fp8" in limits else "bf16"]
        assert limits["flops"] == peak               # a floor for every dtype takes the highest
    if device.fp8_peak is not None:
        assert device.bf16 is not None and device.fp8 != "bits"
        assert 1.9 < device.fp8_peak.value / device.bf16.value < 2.1
    if device.measured_bf16 is not None:
        assert device.bf16 is not None and device.measured_bf16.value < device.bf16.value
        assert limits["bf16_measured"].confidence == "measured"


def test_what_no_source_gives_is_absent() -> None:
    assert "bf16" not in hip.find("mi308x").limits and "flops" not in cuda.find("gb10").limits


def test_fingerprints_tell_capabilities_not_names() -> None:
    assert cuda.find("h100").fingerprint == "sm_90-132-3.4TBs" == cuda.find("h800").fingerprint
    assert cuda.find("h200").fingerprint == "sm_90-132-4.8TBs"
    assert cuda.find("4090").fingerprint != cuda.find("4090D").fingerprint


def test_a_torch_device_is_detected() -> None:
    assert cuda.detect("NVIDIA H100 80GB HBM3", (9, 0), 132) is cuda.find("h100")
    assert hip.detect("AMD Instinct MI300X", "gfx942:sramecc+:xnack-", 304) is hip.find("mi300x")


def test_a_slice_or_a_stranger_has_its_archs_limits_and_no_figures() -> None:
    mig = cuda.detect("NVIDIA H100 80GB HBM3 MIG 1g.10gb", (9, 0), 16)
    assert (mig.cores, mig.shared_bytes, mig.fingerprint) == (16, 232448, "sm_90-16")
    assert "bandwidth" not in mig.limits and "flops" not in mig.limits
    cut = cuda.detect("NVIDIA H100 80GB HBM3", (9, 0), 66)
    assert cut.cores == 66 and cut.bandwidth is None and cut.measured_bandwidth is None
    partition = hip.detect("AMD Radeon Graphics", "gfx942", 38)
    assert partition.fp8 == "fnuz" and partition.bf16 is None
    with pytest.raises(ValueError, match=r"sm_80, sm_86.*'sm_75' \(Tesla T4\)"):
        cuda.detect("Tesla T4", (7, 5), 40)
