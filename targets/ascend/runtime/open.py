"""Which card "npu:0" means, and whether this machine can run kernels on it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..devices import Device
from ..devices import find as find_device
from . import cann
from .binary import toolchain
from .cann import NoCann
from .card import Card
from .library import Library
from .npu import Npu

_UNIT = re.compile(r"npu(?::(\d{1,2}))?|(\d{1,2})")


@dataclass(frozen=True)
class Here:
    """A card of this machine."""

    index: int
    chip: Device
    home: Path                       # of CANN
    version: str

    @property
    def torch_device(self) -> str:
        """Where tensors live: on the card with torch_npu, else in this machine's memory."""
        if find_spec("torch_npu") is None:
            return "cpu"
        import_module("torch_npu")   # only then torch knows such a device
        return f"npu:{self.index}"


def index_of(unit: str) -> int | None:
    """The card that "npu", "npu:1" or "1" means; None for other names, 0 without a number."""
    found = _UNIT.fullmatch(unit.lower())
    return int(found[1] or found[2] or 0) if found else None


def detect(index: int, home: Path | None = None, named: str = "") -> Here:
    """The card of an index; NoCann is one line that says what is missing.

    With `named`, what the chip said to another process, the device stays untouched.
    """
    installed = cann.find(home)
    named = named or Npu(Library(installed), index).soc_name()
    try:
        chip = find_device(named)
    except ValueError:
        raise NoCann(f"npu:{index} calls itself {named!r}, which the device table does not have: "
                     "kernels can be made for the 910B, the 910_93 and the 950 families"
                     ) from None
    toolchain(installed, chip)       # says at once when no binary can be made
    return Here(index, chip, installed.home, installed.version)


def open_card(here: Here, cache_dir: Path) -> Card:
    """A card ready to launch; the device is used from the first launch on."""
    installed = cann.find(here.home)
    library, tools = Library(installed), toolchain(installed, here.chip)
    torch_device = here.torch_device
    if torch_device == "cpu":
        return Card(library, here.index, here.chip, tools, cache_dir)
    torch: Any = import_module("torch")
    torch.npu.set_device(here.index)
    return Card(library, here.index, here.chip, tools, cache_dir,
                lambda: int(torch.npu.current_stream().npu_stream), torch_device)
