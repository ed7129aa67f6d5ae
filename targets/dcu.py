"""Hygon DCUs through their maker's Triton."""

from __future__ import annotations

from typing import Any

from ._vendor.choose import OPTIONS as OPTIONS
from ._vendor.choose import choose
from ._vendor.target import VendorTarget
from ._vendor.vendor import Chip, Vendor
from .base import Figure

# ROCm-like: the backend is "hip" and torch calls the device cuda. The gfx906 class compiles with
# Triton's own AMD backend and belongs to the target hip; these do not (docs/facts.md). Of fp8 the
# backend lists e5 alone. Sources disagree which product is which arch; these are build scripts'.
_LDS = {"shared_per_block": Figure(65536.0, "bytes", "FlagTree, third_party/hcu, TargetInfo.cpp",
                                   "documented")}
_BENCH = "hblas-bench, DCU-bench.md, not the maker's"
VENDOR = Vendor(
    name="dcu", maker="Hygon", backend="hip", torch_module="", torch_device="cuda", prefix="",
    install="install DTK and its torch and triton (+das) from Hygon", shares_backend=True,
    chips=(
        Chip("gfx936", 64, "bits", ("BW1000",), _LDS),
        Chip("gfx928", 64, "bits", ("K100_AI",), {
            **_LDS, "bandwidth": Figure(896.0, "GB/s", _BENCH, "reported"),
            "bf16": Figure(196e3, "GFLOP/s", _BENCH, "reported")}),
        Chip("gfx926", 64, "bits", ("K100",), {
            **_LDS, "bf16": Figure(100e3, "GFLOP/s", _BENCH, "reported")})))

knows = VENDOR.knows


def target(unit: str = "", **options: Any) -> VendorTarget:
    """A DCU by index ("dcu:0"), arch ("dcu:gfx936") or name; options as in `choose`."""
    return choose(VENDOR, unit, **options)
