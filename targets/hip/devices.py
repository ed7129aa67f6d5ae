"""The AMD GPUs that Triton compiles for: limits by arch, figures by product.

A source is what a figure is published in; the figures were taken from tables that quote it, and
the documents themselves were not opened for this file.
"""

from __future__ import annotations

from dataclasses import replace

from .._triton.device import Arch, Device, detect_in, find_in, product

_KIB = 1024
_ROCM = "ROCm hardware specifications and LLVM's AMDGPU user guide"

# A SIMD has 512 vector registers for each of its 64 lanes, an address and an accumulation half of
# 256 that one wave may both use, and 8 wave slots. LDS is shared by a compute unit and nothing of
# it is reserved. 16 workgroups of several waves have barriers at a time. The fp8 MFMA of gfx942
# takes fnuz types alone (e4m3fn is up-cast to f16), that of gfx950 the OCP ones.
_GFX90A = Arch(
    name="gfx90a", source=_ROCM, warp=64, shared_per_block=64 * _KIB, shared_per_sm=64 * _KIB,
    shared_reserved=0, shared_step=512, registers_per_sm=4 * 512 * 64, registers_per_thread=512,
    registers_step=8, warps_per_sm=4 * 8, blocks_per_sm=16, fp8="bits", fp8_types=(),
    mma_bf16="mfma_16", mma_fp8="", threads_per_axis=2**32 - 1)
_GFX942 = replace(
    _GFX90A, name="gfx942", fp8="fnuz", fp8_types=("fp8e4b8", "fp8e5b16"), mma_fp8="mfma_fp8")
_GFX950 = replace(
    _GFX90A, name="gfx950", shared_per_block=160 * _KIB, shared_per_sm=160 * _KIB,
    shared_step=1280, fp8="native", fp8_types=("fp8e4nv", "fp8e5"), mma_fp8="mfma_fp8")
# Older: 256 registers a lane, 10 waves, no matrix unit. Hygon's Z100 class compiles as this arch
# (triton 3.9.0; 3.6.0: "unsupported target") and is detected by it; no figures of one were found.
_GFX906 = replace(
    _GFX90A, name="gfx906", registers_per_sm=4 * 256 * 64, registers_per_thread=256,
    registers_step=4, warps_per_sm=4 * 10, mma_bf16="")


_HALF = "AMD data sheet, half of it: torch sees one of the two dies"

# The first product of an arch answers for the arch alone.
DEVICES: tuple[Device, ...] = (
    product(_GFX90A, "mi210", ("AMD Instinct MI210",), 104, 1638.4, 181,
            source="AMD Instinct MI210 data sheet"),
    product(_GFX90A, "mi250", ("AMD Instinct MI250",), 104, 1638.4, 181.05, source=_HALF),
    product(_GFX90A, "mi250x", ("AMD Instinct MI250X",), 110, 1638.4, 191.5, source=_HALF),
    product(_GFX942, "mi300x", ("AMD Instinct MI300X", "AMD Instinct MI300X OAM"), 304,
            5300, 1307.4, 2614.9, source="AMD Instinct MI300X data sheet"),
    product(_GFX942, "mi325x", ("AMD Instinct MI325X", "AMD Instinct MI325X OAM"), 304,
            6000, 1307.4, 2614.9, source="AMD Instinct MI325X data sheet"),
    product(_GFX942, "mi300a", ("AMD Instinct MI300A",), 228, 5300, 980.6, 1961.2,
            source="AMD Instinct MI300A data sheet"),
    product(_GFX942, "mi308x", ("AMD Instinct MI308X", "AMD Instinct MI308X OAM"), 80,
            source="compute units as users report them; no peak found", confidence="reported"),
    product(_GFX950, "mi355x", ("AMD Instinct MI355X",), 256, 8000, 2500, 5000,
            source="AMD Instinct MI355X data sheet, dense, rounded"),
    product(_GFX950, "mi350x", ("AMD Instinct MI350X",), 256, 8000, 2300, 4600,
            source="AMD Instinct MI350X data sheet, dense, rounded"),
    product(_GFX906, "mi50", ("AMD Instinct MI50", "AMD Instinct MI50/MI60"), 60, 1024,
            source="AMD Radeon Instinct MI50 data sheet"),
    product(_GFX906, "mi60", ("AMD Instinct MI60",), 64, 1024,
            source="AMD Radeon Instinct MI60 data sheet"),
    product(_GFX906, "radeon-vii", ("AMD Radeon VII",), 60, 1024,
            source="AMD Radeon VII product page"),
)


def find(text: str) -> Device:
    """The device called "gfx942", "mi300x", "AMD_Instinct_MI300X" ..."""
    return find_in(DEVICES, text)


def detect(name: str, gcn_arch: str, cores: int) -> Device:
    """The device of torch's get_device_name, gcnArchName ("gfx942:sramecc+") and CU count."""
    return detect_in(DEVICES, name, gcn_arch.split(":")[0], cores)
