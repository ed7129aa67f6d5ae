"""Peers held to the feature level that our kernels are compiled for, and whether they obey."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ...targets.cpu.levels import LEVELS, host_arch

# level -> ATen's name, oneDNN's, MKL's, and what torch.compile's compiler is told
_NAMES = {
    "x86": ("default", "SSE41", "SSE4_2", "x86-64-v2"),
    "x86-avx2": ("avx2", "AVX2", "AVX2", "x86-64-v3"),
    "x86-avx512": ("avx512", "AVX512_CORE", "AVX512", "x86-64-v4"),
    "x86-avx512-vnni": ("avx512", "AVX512_CORE_VNNI", "AVX512", "cascadelake"),
    "x86-avx512-bf16": ("avx512", "AVX512_CORE_BF16", "AVX512", "cooperlake")}
_M, _N, _K = 64, 512, 512            # of the product that tells which instructions run
_TURNS = 12


def environment(arch: str) -> dict[str, str]:
    """Variables for a peer's process; none on this machine's own level."""
    if arch == host_arch():
        return {}
    if arch not in _NAMES:
        raise ValueError(f"torch cannot be held to {arch}; measure on such a machine, or take one "
                         f"of {', '.join(_NAMES)}")
    aten, onednn, mkl, _ = _NAMES[arch]
    return {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn,
            "MKL_ENABLE_INSTRUCTIONS": mkl}


def hold(arch: str, compiles: bool) -> dict[str, str]:
    """Runs in torch's process: what torch really uses; torch.compile is told the level as well."""
    told = {"torch's code": str(torch.backends.cpu.get_cpu_capability()),
            "torch's bfloat16 product": f"{bf16_product_costs():.1f} times float32's time"}
    return {**told, **_hold_compiler(arch)} if compiles else told


def _hold_compiler(arch: str) -> dict[str, str]:
    from torch._inductor import config, cpu_vec_isa  # takes seconds

    if arch != host_arch() and hasattr(config.cpp, "march"):     # older ones compile "native"
        config.cpp.march = _NAMES[arch][3]
    return {"torch.compile's code": str(cpu_vec_isa.pick_vec_isa()) or "scalar"}


def disobeys(arch: str, told: dict[str, str]) -> str:
    """Why a held torch's times would not be those of the level; "" when they are."""
    if arch == host_arch():
        return ""
    wanted, used = _NAMES[arch][0].upper(), told["torch's code"]
    if used != wanted:
        return f"torch was to use {wanted} and says that it uses {used}"
    costs = float(told["torch's bfloat16 product"].split()[0])
    if "bf16" in LEVELS[host_arch()].dots and "bf16" not in LEVELS[arch].dots and costs < 1.0:
        return f"torch multiplies bfloat16 faster than float32 ({costs}), which {arch} cannot"
    return ""


def bf16_product_costs() -> float:
    """Time of torch's bfloat16 product over the float32 one's.

    One thread and the least of products in turn: on a busy machine two threads wait for each
    other, and a wait longer than the product made float32 look slower than bfloat16.
    """
    a, b = torch.ones(_M, _K), torch.ones(_K, _N)
    pairs: list[Any] = [(a, b), (a.bfloat16(), b.bfloat16())]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = [[_ns(partial(torch.mm, *pair)) for pair in pairs] for _ in range(_TURNS)]
    finally:
        torch.set_num_threads(threads)
    return min(b for _, b in times) / min(f for f, _ in times)


def _ns(call: Callable[[], Any]) -> int:
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start
