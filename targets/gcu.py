"""EnFlame GCUs through their maker's Triton."""

from __future__ import annotations

from typing import Any

from ._vendor.choose import OPTIONS as OPTIONS
from ._vendor.choose import choose
from ._vendor.target import VendorTarget
from ._vendor.vendor import Chip, Vendor

# fp8e4nv on gcu400 and gcu410, at most 4 warps there: FlagTree, third_party/enflame. The warp size
# comes from the driver (the options' default is 1). No figure of any product was found.
VENDOR = Vendor(
    name="gcu", maker="EnFlame", backend="gcu", torch_module="torch_gcu", torch_device="gcu",
    prefix="", install="install torch_gcu and triton_gcu from EnFlame",
    chips=(Chip("gcu400", 1, "native"), Chip("gcu410", 1, "native"), Chip("gcu300", 1, "bits")))

knows = VENDOR.knows


def target(unit: str = "", **options: Any) -> VendorTarget:
    """A GCU by index ("gcu:0") or arch ("gcu:gcu400"); options as in `choose`."""
    return choose(VENDOR, unit, **options)
