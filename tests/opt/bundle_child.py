"""What runs in a child process to see where Triton finds its kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expertile import ops, targets
from expertile.opt.bundle_compile import calls


def compile_all(device: str, folder: str, op_name: str, shape: dict[str, Any],
                configs: list[dict[str, Any]]) -> dict[str, Any]:
    """Compile configs, as a check and a timing call them: how many were found, how many made."""
    import triton

    seen = []
    triton.knobs.compilation.listener = lambda **said: seen.append(said["cache_hit"])
    place = Path(folder)
    target: Any = targets.load(device, mode="compile", cache_dir=place, kernels=place / "triton")
    op = ops.load(op_name)
    launches = [launch for config in configs
                for launch in target.launches_of(op, shape, config, calls(op, shape))]
    return {"found": seen.count(True), "made": seen.count(False),
            "bytes": [len(launch.compiled.kernel) for launch in launches]}
