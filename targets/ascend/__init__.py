"""Huawei Ascend NPUs: described, compiled to hivmc's input and checked without the hardware."""

from __future__ import annotations

from pathlib import Path

from .devices import DEVICES, find
from .target import AscendTarget, Mode

DEFAULT = "Ascend910B3"


def knows(name: str) -> bool:
    """Whether the table has a device of that name."""
    try:
        find(name)
    except ValueError:
        return False
    return True


def target(unit: str = "", mode: Mode | None = None, cache_dir: str | Path | None = None
           ) -> AscendTarget:
    """An NPU by its name: "ascend:910b3" (the default), "ascend910b3", "950PR_9599".

    `mode="emulate"` executes kernels as MLIR on this CPU, "simulate" what the compiler made of
    it; without a mode they are only compiled.
    """
    if cache_dir is None:
        from platformdirs import user_cache_path

        cache_dir = user_cache_path("expertile")
    return AscendTarget(find(unit) if unit else DEVICES[DEFAULT], mode or "compile",
                        Path(cache_dir))
