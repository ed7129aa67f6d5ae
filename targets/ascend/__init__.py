"""Huawei Ascend NPUs: compiled and checked without the hardware, run where card and CANN are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .devices import DEVICES, find
from .runtime.cann import NoCann
from .runtime.open import Here, detect, index_of
from .target import AscendTarget, Mode

DEFAULT = "Ascend910B3"
OPTIONS = ("cann_home",)             # besides those that every target takes


def knows(name: str) -> bool:
    """Whether it is "npu", "npu:0", or a device of the table."""
    if name.lower().startswith("npu"):
        return index_of(name) is not None
    try:
        find(name)
    except ValueError:
        return False
    return True


def target(unit: str = "", mode: Mode | None = None, cache_dir: str | Path | None = None,
           cann_home: str | Path | None = None, soc: str = "") -> AscendTarget:
    """An NPU by its name ("ascend:910b3", "950PR_9599"), or a card of this machine ("npu:0").

    Args:
        mode: "device" runs on a card: so does "npu:N", and no name at all where there is a card.
            "emulate" executes kernels as MLIR on this CPU, "simulate" what the compiler made of
            it; without a mode a named device is only compiled for.
        cann_home: where CANN stands, if not at a standard place.
        soc: the chip's name, when another process has asked the card.
    """
    if cache_dir is None:
        from platformdirs import user_cache_path

        cache_dir = user_cache_path("expertile")
    cache = Path(cache_dir)
    index = index_of(unit)
    if index is not None or mode == "device":
        named = find(unit) if unit and index is None else None
        here = detect(index or 0, Path(cann_home) if cann_home else None, soc)
        if named is not None and named != here.chip:
            raise ValueError(f"npu:{here.index} is {here.chip.name}, not {named.name}")
        made = AscendTarget(here.chip, "device", cache, here=here)
        return made if mode in (None, "device") else replace(made, mode=mode, here=None)
    if not unit and mode is None and (found := _card(cann_home)) is not None:
        return AscendTarget(found.chip, "device", cache, here=found)
    return AscendTarget(find(unit) if unit else DEVICES[DEFAULT], mode or "compile", cache)


def _card(cann_home: str | Path | None) -> Here | None:
    try:
        return detect(0, Path(cann_home) if cann_home else None)
    except NoCann:
        return None                  # no card here: the default device is described
