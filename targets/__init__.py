"""WHERE it runs: one file or folder a device family; the file name is the registry."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .base import Target

_SHARED = {"__init__", "base", "child"}


def names() -> tuple[str, ...]:
    """All target families, by name."""
    here = Path(__file__).parent
    found = {p.stem for p in here.glob("*.py")}
    found |= {p.parent.name for p in here.glob("*/__init__.py")}
    return tuple(sorted(name for name in found - _SHARED if not name.startswith("_")))


def load(name: str, **options: Any) -> Target:
    """The target called `name`; options go to its `target()`.

    A family ("cpu", "cuda"), one of its units ("cpu:1", "cuda:sm_90"), or the bare name of a device
    that a family's table knows ("sm_90", "h100", "NVIDIA H20").
    """
    family, _, unit = name.partition(":")
    if family not in names():
        family, unit = _family_of(name), name
    if unit:
        options["unit"] = unit
    made: Target = import_module(f".{family}", __package__).target(**options)
    return made


_TORCH_DEVICES = {"npu": "ascend"}   # where torch's name of a device is not the family's


def family_for(torch_device: str) -> str | None:
    """The family that serves tensors of a torch device type, or None."""
    family = _TORCH_DEVICES.get(torch_device, torch_device)
    if family == "cuda" and torch.version.hip is not None:
        family = "hip"               # torch calls AMD's devices cuda too
    return family if family in names() else None


def _family_of(device: str) -> str:
    for family in names():
        knows = getattr(import_module(f".{family}", __package__), "knows", None)
        if knows is not None and knows(device):
            return family
    raise ValueError(f"a device must be one of {', '.join(names())} (as in cpu:2, cuda:0), an arch "
                     f"such as sm_90 or gfx942, or a product such as h100, got {device!r}")
