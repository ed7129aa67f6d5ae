"""Which GPU a name means: one that is here, or one of the table to compile or interpret for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .device import Device
from .live import use_device
from .target import Mode, TritonTarget


@dataclass(frozen=True)
class Family:
    """GPUs of one Triton backend."""

    name: str                                    # the target's
    backend: str                                 # Triton's
    default: str                                 # described when none is here and none is named
    here: bool                                   # whether this torch is built for them
    find: Callable[[str], Device]                # by arch or product
    detect: Callable[[int], Device]              # by the index of one that is here

    def knows(self, name: str) -> bool:
        """Whether the table has a device of that name."""
        try:
            self.find(name)
        except ValueError:
            return False
        return True


def choose(family: Family, unit: str, mode: Mode | None, cache_dir: str | Path | None,
           kernels: str | Path | None = None) -> TritonTarget:
    """The target for a unit: "" or an index, an arch ("sm_90") or a product ("h100").

    A GPU that is here runs; any other one is compiled for. `mode="interpret"` runs its kernels in
    Triton's interpreter, in a process of its own. `kernels`: where Triton shall keep binaries.
    """
    index = int(unit) if unit.isdigit() else None
    wanted = None if not unit or unit.isdigit() else family.find(unit)
    meant = mode in (None, "live") or mode == "compile" and wanted is None
    here = _here(family, index) if meant else None
    if here is None and index is not None:
        raise ValueError(f"{family.name}:{unit} is no device of this machine; name one to compile "
                         f"for, for example {family.name}:{family.default}")
    is_wanted = here is not None and (wanted is None or unit == here.arch
                                      or wanted.fingerprint == here.fingerprint)
    live = is_wanted and mode != "compile"
    if mode == "live" and not live:
        raise ValueError(f"no GPU here is {unit or 'of ' + family.name}; leave `mode` out to "
                         "compile for it")
    if mode == "interpret":
        from . import interpreter

        interpreter.enable()
    if live:
        use_device(index)            # without an index the process's current device stays
    if cache_dir is None:
        from platformdirs import user_cache_path

        cache_dir = user_cache_path("expertile")
    gpu = here if is_wanted and here is not None else wanted or family.find(family.default)
    return TritonTarget(family.name, family.backend, gpu, mode or ("live" if live else "compile"),
                        unit, Path(cache_dir), kernels=Path(kernels) if kernels else None)


def _here(family: Family, index: int | None) -> Device | None:
    """The GPU that torch sees under an index (None: its current one), or None."""
    if not family.here or not torch.cuda.is_available():
        return None
    if index is None:
        return family.detect(torch.cuda.current_device())
    return family.detect(index) if index < torch.cuda.device_count() else None
