"""Feature levels of CPUs: what LLVM may assume, and which dot-product instructions there are."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch


@dataclass(frozen=True)
class Level:
    """One feature level: an artifact is the same on every CPU that has all of it."""

    machine: str                     # platform.machine() of such hosts
    mcpu: str                        # LLVM's name of a level, not of this machine
    lanes: int                       # float32 lanes of a vector register
    mattr: tuple[str, ...] = ()      # LLVM features beyond mcpu
    # vnni: u8 x s8; bf16: pairs; amx: tiles; sdot: s8 x s8; madd: pairs of s16, where no vnni is
    dots: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()      # what torch.cpu.get_capabilities() must say
    emulated: str = ""               # qemu's name of a CPU that has this level and no better one

    @property
    def is_ours(self) -> bool:
        """Whether this machine is of the kind, whatever its features."""
        return platform.machine() in (self.machine, _ALSO.get(self.machine))

    @property
    def triple(self) -> str:
        """What compiles and links for it elsewhere."""
        return f"{self.machine}-linux-gnu"

    def llvm(self, threads: int) -> dict[str, Any]:
        """TVM's description of a target of this level."""
        kind: dict[str, Any] = {"kind": "llvm", "mcpu": self.mcpu, "num-cores": threads}
        if self.mattr:
            kind["mattr"] = list(self.mattr)
        if not self.is_ours:
            kind["mtriple"] = self.triple
        return kind

    def runs_here(self) -> bool:
        """Whether this machine has all of it."""
        if not self.is_ours:
            return False
        has = _capabilities()
        return all(has.get(name, False) for name in self.needs)


_ALSO = {"aarch64": "arm64", "x86_64": "AMD64"}
_AVX2 = ("avx2", "fma3", "f16c", "bmi2")
_V4 = (*_AVX2, "avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl")
_VNNI = (*_V4, "avx512_vnni")
_BF16 = (*_VNNI, "avx512_bf16", "avx512_vbmi")   # all that have BF16 but Cooper Lake have VBMI

# Best first within a machine: the first that runs here is the host's.
LEVELS = {
    "x86-amx": Level("x86_64", "x86-64-v4", 16,
                     ("+avx512vnni", "+avx512bf16", "+avx512vbmi", "+amx-tile", "+amx-int8",
                      "+amx-bf16"),
                     ("vnni", "bf16", "amx"), (*_BF16, "amx_tile", "amx_int8", "amx_bf16")),
    "x86-avx512-bf16": Level("x86_64", "x86-64-v4", 16,
                             ("+avx512vnni", "+avx512bf16", "+avx512vbmi"), ("vnni", "bf16"),
                             _BF16),
    "x86-avx512-vnni": Level("x86_64", "x86-64-v4", 16, ("+avx512vnni",), ("vnni",), _VNNI),
    "x86-avx512": Level("x86_64", "x86-64-v4", 16, (), ("madd",), _V4),
    "x86-avx2": Level("x86_64", "x86-64-v3", 8, (), ("madd",), _AVX2),
    "x86": Level("x86_64", "x86-64-v2", 4, (), ("madd",)),
    # ARMv8.2 with the dot products and float16 arithmetic that Kunpeng 920 and Graviton 2 have
    "aarch64-dotprod": Level("aarch64", "generic", 4, ("+v8.2a", "+dotprod", "+fullfp16"),
                             ("sdot",), ("dot", "fp16_arith"), "neoverse-n1"),
    "aarch64": Level("aarch64", "generic", 4, emulated="cortex-a72"),
}


@cache
def _capabilities() -> dict[str, bool]:
    return {name: bool(value) for name, value in torch.cpu.get_capabilities().items()}


@cache
def host_arch() -> str:
    """The best level of this machine."""
    for name, level in LEVELS.items():
        if level.runs_here():
            return name
    raise ValueError(f"CPUs are x86_64 or aarch64 here, this is {platform.machine()}")
