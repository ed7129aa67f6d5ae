"""Cambricon MLUs through their maker's Triton."""

from __future__ import annotations

from typing import Any

from ._vendor.choose import OPTIONS as OPTIONS
from ._vendor.choose import choose
from ._vendor.target import VendorTarget
from ._vendor.vendor import Chip, Vendor
from .base import Figure

# Architecture = ISA version; no warps (the driver says 0), num_warps 1 or 4, fp8 from ISA 600 on:
# FlagTree, third_party/cambricon. No bf16 peak of any of them was found.
VENDOR = Vendor(
    name="mlu", maker="Cambricon", backend="mlu", torch_module="torch_mlu", torch_device="mlu",
    prefix="mtp_", install="install torch_mlu and the triton wheel (+mlu) from Cambricon",
    chips=(
        Chip("mtp_592", 1, "bits", ("MLU590",)),
        Chip("mtp_372", 1, "bits", ("MLU370-X8",), {
            "bandwidth": Figure(614.0, "GB/s", "public tables, not the maker's", "reported")})))

knows = VENDOR.knows


def target(unit: str = "", **options: Any) -> VendorTarget:
    """An MLU by index ("mlu:0"), arch ("mlu:mtp_592") or name; options as in `choose`."""
    return choose(VENDOR, unit, **options)
