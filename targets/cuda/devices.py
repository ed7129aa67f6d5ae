"""The NVIDIA GPUs that Triton compiles for: limits by arch, figures by product.

A source is what a figure is published in; the figures were taken from tables that quote it, and
the documents themselves were not opened for this file.
"""

from __future__ import annotations

from dataclasses import replace

from .._triton.device import Arch, Device, detect_in, find_in, product

_KIB = 1024
_GUIDE = "CUDA C++ Programming Guide, table of technical specifications per compute capability"

# sm_80 and sm_86 have no e4m3 for Triton ("fp8e4nv not supported in this architecture"). The MMA
# names were read from cubins of our own (triton 3.6.0 and 3.9.0, 2026-11-22).
_SM_80 = Arch(
    name="sm_80", source=_GUIDE, warp=32, shared_per_block=163 * _KIB, shared_per_sm=164 * _KIB,
    shared_reserved=1 * _KIB, shared_step=128, registers_per_sm=65536, registers_per_thread=255,
    registers_step=8, warps_per_sm=64, blocks_per_sm=32, fp8="bits", fp8_types=(),
    mma_bf16="HMMA", mma_fp8="")
_SM_86 = replace(
    _SM_80, name="sm_86", shared_per_block=99 * _KIB, shared_per_sm=100 * _KIB, warps_per_sm=48,
    blocks_per_sm=16)
_SM_89 = replace(
    _SM_86, name="sm_89", blocks_per_sm=24, fp8="native", fp8_types=("fp8e4nv", "fp8e5"),
    mma_fp8="QMMA")
_SM_90 = replace(
    _SM_80, name="sm_90", shared_per_block=227 * _KIB, shared_per_sm=228 * _KIB, fp8="native",
    fp8_types=("fp8e4nv", "fp8e5"), mma_bf16="HGMMA", mma_fp8="QGMMA", has_tma=True)
_SM_100 = replace(
    _SM_90, name="sm_100", mma_bf16="UTCHMMA", mma_fp8="UTCQMMA", tmem_columns=512)
_SM_120 = replace(_SM_89, name="sm_120", has_tma=True)        # its binaries hold UTMALDG
_SM_121 = replace(_SM_120, name="sm_121")

_A100 = "NVIDIA A100 data sheet"
_H100 = "NVIDIA H100 data sheet"
_H200 = "NVIDIA H200 data sheet"
_H800 = "H100 data sheet; the H800 has its compute and memory, and less NVLink"
_A800 = "A100 data sheet; the A800 has its compute and memory, and less NVLink"
_TABLES = "tables in public code, no data sheet read"
_ADA = "NVIDIA Ada GPU architecture white paper"
_BLACKWELL = "NVIDIA RTX Blackwell GPU architecture white paper"
_CEILING = "measured before 2026-11 on a test machine of this product: copy and bf16 matrix product"
_UNMEASURED = "SM count and memory as reported by users; no peak found"

# The first product of an arch answers for the arch alone.
DEVICES: tuple[Device, ...] = (
    product(_SM_80, "a100-sxm-80gb", ("A100", "A100-SXM", "NVIDIA A100-SXM4-80GB"), 108, 2039, 312,
            source=_A100),
    product(_SM_80, "a100-sxm-40gb", ("NVIDIA A100-SXM4-40GB",), 108, 1555, 312, source=_A100),
    product(_SM_80, "a100-pcie-80gb", ("A100-PCIe", "NVIDIA A100 80GB PCIe"), 108, 1935, 312,
            source=_A100),
    product(_SM_80, "a100-pcie-40gb", ("NVIDIA A100-PCIE-40GB",), 108, 1555, 312, source=_A100),
    product(_SM_80, "a800-sxm-80gb", ("A800", "NVIDIA A800-SXM4-80GB"), 108, 2039, 312,
            source=_A800, confidence="reported"),
    product(_SM_80, "a800-pcie-80gb", ("NVIDIA A800 80GB PCIe",), 108, 1935, 312,
            source=_A800, confidence="reported"),
    product(_SM_80, "a30", ("NVIDIA A30",), 56, 933, 165, source="NVIDIA A30 data sheet"),
    product(_SM_86, "a10", ("NVIDIA A10",), 72, 600, 125, source="NVIDIA A10 data sheet"),
    product(_SM_86, "a10g", ("NVIDIA A10G",), 80, 600, 70, source=_TABLES, confidence="reported"),
    product(_SM_86, "a40", ("NVIDIA A40",), 84, 696, 149.7, source="NVIDIA A40 data sheet"),
    product(_SM_86, "rtx-a6000", ("A6000", "NVIDIA RTX A6000"), 84, 768, 154.8,
            source="NVIDIA RTX A6000 data sheet"),
    product(_SM_86, "rtx-3090", ("3090", "NVIDIA GeForce RTX 3090"), 82, 936, 71,
            source="NVIDIA Ampere GA102 GPU architecture white paper"),
    product(_SM_89, "l40s", ("NVIDIA L40S",), 142, 864, 362, 733, source="NVIDIA L40S data sheet"),
    product(_SM_89, "l40", ("NVIDIA L40",), 142, 864, 181, 362, source="NVIDIA L40 data sheet"),
    product(_SM_89, "l20", ("NVIDIA L20",), 92, 864, 119.5, 239, source=_TABLES,
            confidence="reported"),
    product(_SM_89, "l4", ("NVIDIA L4",), 58, 300, 121, 242, source="NVIDIA L4 data sheet"),
    product(_SM_89, "rtx-6000-ada", ("NVIDIA RTX 6000 Ada Generation",), 142, 960, 364.2, 728.5,
            source=_TABLES, confidence="reported"),
    product(_SM_89, "rtx-4090", ("4090", "NVIDIA GeForce RTX 4090"), 128, 1008, 165.2, 330.3,
            source=_ADA),
    product(_SM_89, "rtx-4090d", ("4090D", "NVIDIA GeForce RTX 4090 D"), 114, 1008, 147.1, 294.2,
            source=_TABLES, confidence="reported"),
    product(_SM_90, "h100-sxm", ("H100", "NVIDIA H100", "NVIDIA H100 80GB HBM3", "H100 SXM5"),
            132, 3350, 989.4, 1978.9, source=_H100, measured=(3000, 798), measured_how=_CEILING),
    product(_SM_90, "h100-pcie", ("NVIDIA H100 PCIe",), 114, 2000, 756, 1513, source=_H100),
    product(_SM_90, "h100-nvl", ("NVIDIA H100 NVL",), 132, 3938, 835, 1671, source=_H100),
    product(_SM_90, "h200", ("NVIDIA H200", "NVIDIA H200 SXM"), 132, 4800, 989.4, 1978.9,
            source=_H200, measured=(4300, 790), measured_how=_CEILING),
    product(_SM_90, "h200-nvl", ("NVIDIA H200 NVL",), 132, 4800, 836, 1671, source=_H200),
    product(_SM_90, "gh200-96gb", ("GH200", "NVIDIA GH200 480GB"), 132, 4000, 989.4, 1978.9,
            source="NVIDIA GH200 data sheet"),
    product(_SM_90, "h800-sxm", ("H800", "NVIDIA H800", "NVIDIA H800 80GB HBM3"), 132, 3350,
            989.4, 1978.9, source=_H800, confidence="reported"),
    product(_SM_90, "h800-pcie", ("NVIDIA H800 PCIe",), 114, 2000, 756, 1513, source=_H800,
            confidence="reported"),
    product(_SM_90, "h20", ("NVIDIA H20",), 78, 4000, 148, 296, source=_TABLES,
            confidence="reported"),
    product(_SM_90, "h20-3e", ("NVIDIA H20-3e",), 78, 4800, 148, 296, source=_TABLES,
            confidence="reported"),
    product(_SM_100, "b200", ("NVIDIA B200",), 148, 8000, 2250, 4500,
            source="NVIDIA HGX B200 data sheet, dense = half of the sparse figures"),
    product(_SM_100, "gb200", ("NVIDIA GB200",), 152, 8000, 2500, 5000, source="NVIDIA GB200 NVL72 "
            "data sheet, a 72nd, dense = half of the sparse figures; SM count as users report it",
            confidence="reported"),
    product(_SM_120, "rtx-5090", ("5090", "NVIDIA GeForce RTX 5090"), 170, 1792, 209.5, 419,
            source=_BLACKWELL),
    product(_SM_120, "rtx-pro-6000-workstation",
            ("RTX PRO 6000", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"), 188, 1792, 503.8,
            source=_TABLES, confidence="reported"),
    product(_SM_120, "rtx-pro-6000-server",
            ("NVIDIA RTX PRO 6000 Blackwell Server Edition",), 188, 1597,
            source=_UNMEASURED, confidence="reported"),
    product(_SM_120, "rtx-pro-6000-max-q",
            ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",), 188, 1792, 438.9,
            source=_TABLES, confidence="reported"),
    product(_SM_121, "gb10", ("NVIDIA GB10", "DGX Spark"), 48, 273, source=_UNMEASURED,
            confidence="reported"),
)


def find(text: str) -> Device:
    """The device called "sm_90", "h100-pcie", "NVIDIA_H100_80GB_HBM3" ..."""
    return find_in(DEVICES, text)


def detect(name: str, capability: tuple[int, int], cores: int) -> Device:
    """The device of torch.cuda.get_device_name, get_device_capability, multi_processor_count."""
    return detect_in(DEVICES, name, f"sm_{capability[0]}{capability[1]}", cores)
