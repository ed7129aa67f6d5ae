"""Moore Threads MUSA GPUs through their maker's Triton."""

from __future__ import annotations

from typing import Any

from ._vendor.choose import OPTIONS as OPTIONS
from ._vendor.choose import choose
from ._vendor.target import VendorTarget
from ._vendor.vendor import Chip, Vendor
from .base import Figure

# Architecture = compute capability; warps of 128 threads up to 2.x, fp8e4nv from 3.1 on: FlagTree,
# third_party/mthreads/backend/{driver,compiler}.py. Peaks of the S4000 contradict each other in
# public tables (100 and 200 TFLOP/s) and the S5000's is not published, so both are absent.
VENDOR = Vendor(
    name="musa", maker="Moore Threads", backend="musa", torch_module="torch_musa",
    torch_device="musa", prefix="mp_",
    install="install torch_musa and the triton built for MUSA from Moore Threads",
    chips=(
        Chip("mp_31", 32, "native", ("MTT S5000",)),
        Chip("mp_22", 128, "bits", ("MTT S4000",), {
            "bandwidth": Figure(768.0, "GB/s", "public tables, not the maker's", "reported")}),
        Chip("mp_21", 128, "bits", ("MTT S80", "MTT S70"), {
            "shared_per_block": Figure(28672.0, "bytes", "llama.cpp issue 26141", "reported")})))

knows = VENDOR.knows


def target(unit: str = "", **options: Any) -> VendorTarget:
    """A GPU by index ("musa:0"), arch ("musa:mp_31") or name; options as in `choose`."""
    return choose(VENDOR, unit, **options)
