"""NVIDIA GPUs through Triton: the one that is here, or any of the table, compiled for ahead."""

from __future__ import annotations

from pathlib import Path

import torch

from .._triton.choose import Family, choose
from .._triton.device import Device
from .._triton.target import Mode, TritonTarget
from .devices import detect, find


def _detect(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return detect(properties.name, (properties.major, properties.minor),
                  properties.multi_processor_count)


_FAMILY = Family("cuda", "cuda", "sm_90", torch.version.cuda is not None, find, _detect)
knows = _FAMILY.knows
OPTIONS = ("kernels",)               # besides those that every target takes


def target(unit: str = "", mode: Mode | None = None, cache_dir: str | Path | None = None,
           kernels: str | Path | None = None) -> TritonTarget:
    """A GPU by index ("cuda:1"), architecture ("cuda:sm_90") or name ("cuda:h100")."""
    return choose(_FAMILY, unit, mode, cache_dir, kernels)
