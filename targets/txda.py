"""Tsingmicro TX8 processors through their maker's Triton."""

from __future__ import annotations

from typing import Any

from ._vendor.choose import OPTIONS as OPTIONS
from ._vendor.choose import choose
from ._vendor.target import VendorTarget
from ._vendor.vendor import Chip, Vendor
from .base import Figure

# GPUTarget("txda", 1, 16): FlagTree, third_party/tsingmicro/backend/driver.py. Its options name
# fp8e4nv in the fork of 3.3 alone, so what the stack says decides.
VENDOR = Vendor(
    name="txda", maker="Tsingmicro", backend="txda", torch_module="torch_txda",
    torch_device="txda", prefix="txda_",
    install="install torch_txda and the triton built for TX8 from Tsingmicro",
    chips=(
        Chip("txda_1", 16, "bits", ("TX81",), {
            "shared_per_block": Figure(float(3 << 20), "bytes", "FlagGems, _tsingmicro: scratchpad "
                                       "of one of 16 tiles", "reported")}),))

knows = VENDOR.knows


def target(unit: str = "", **options: Any) -> VendorTarget:
    """A processor by index ("txda:0"), arch or name ("txda:TX81"); options as in `choose`."""
    return choose(VENDOR, unit, **options)
