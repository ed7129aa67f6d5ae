"""WHERE it runs: one file or folder a device family; the file name is the registry."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .base import Target

_SHARED = {"__init__", "base", "child", "examination"}


def names() -> tuple[str, ...]:
    """All target families, by name."""
    here = Path(__file__).parent
    found = {p.stem for p in here.glob("*.py")}
    found |= {p.parent.name for p in here.glob("*/__init__.py")}
    return tuple(sorted(name for name in found - _SHARED if not name.startswith("_")))


def takes(name: str, option: str) -> bool:
    """Whether the family of a target has an option, such as the interpreter of its worker."""
    family = name.partition(":")[0]
    module = import_module(f".{family if family in names() else _family_of(name)}", __package__)
    return option in getattr(module, "OPTIONS", ())


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
_HYGON = ("gfx926", "gfx928", "gfx936")      # ROCm-like; only their maker's Triton compiles them


def family_for(torch_device: str) -> str | None:
    """The family that serves tensors of a torch device type, or None."""
    family = _TORCH_DEVICES.get(torch_device, torch_device)
    if family == "cuda" and torch.version.hip is not None:   # torch calls these devices cuda too
        arch = torch.cuda.get_device_properties().gcnArchName if torch.cuda.is_available() else ""
        family = "dcu" if arch.partition(":")[0] in _HYGON else "hip"
    return family if family in names() else None


def _family_of(device: str) -> str:
    for family in names():
        knows = getattr(import_module(f".{family}", __package__), "knows", None)
        if knows is not None and knows(device):
            return family
    raise ValueError(f"a device must be one of {', '.join(names())} (as in cpu:2, cuda:0), an arch "
                     f"such as sm_90 or gfx942, or a product such as h100, got {device!r}")
