"""Compiles the kernels of static_kernels for sm_90, in a process of its own."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch


def _kernels() -> Any:
    sys.path.insert(0, str(Path(__file__).parent))
    import static_kernels

    return static_kernels


def point(config: dict[str, Any], kernel: str = "gemm", dtype: str = "float8_e4m3fn"
          ) -> dict[str, Any]:
    """The facts of one config as a static point."""
    from expertile import targets
    from expertile.bench.static.points import Point, kernel_of
    from expertile.targets._triton.aot import compile_launch, driver_of
    from expertile.targets._triton.legality import LaunchShape, legal
    from expertile.targets._triton.static import facts_of, operands_of

    target = targets.load("sm_90")
    m, n, k = 4096, 4096, 4096
    a, b = (torch.empty((size, k), dtype=getattr(torch, dtype), device="meta") for size in (m, n))
    out = torch.empty((m, n), dtype=torch.bfloat16, device="meta")
    grid = (m // config["block_m"], n // config["block_n"])
    launch = compile_launch(
        driver_of("cuda", "sm_90", 32), getattr(_kernels(), kernel), grid, (a, b, out, m, n, k),
        {"BLOCK_M": config["block_m"], "BLOCK_N": config["block_n"], "BLOCK_K": config["block_k"],
         "num_warps": config["warps"], "num_stages": config["stages"]})
    facts = facts_of(launch)
    judged = legal(target.gpu, facts, LaunchShape(grid, launch.warps))  # type: ignore[attr-defined]
    raw = {"name": "gemm", "warps": launch.warps, "operands": operands_of(launch), **facts.json(),
           "fill": dict(judged.facts)}
    source = hashlib.sha256(f"{kernel} {dtype}".encode()).hexdigest()[:8]
    return asdict(Point(config, source, judged.legal, judged.reason, (kernel_of(raw),)))
