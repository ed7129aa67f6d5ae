"""WHERE it runs: one file or folder a device family; the file name is the registry."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from .base import Target

_SHARED = {"__init__", "base", "child"}


def names() -> tuple[str, ...]:
    """All target families, by name."""
    here = Path(__file__).parent
    found = {p.stem for p in here.glob("*.py")}
    found |= {p.parent.name for p in here.glob("*/__init__.py")}
    return tuple(sorted(found - _SHARED))


def load(name: str, **options: Any) -> Target:
    """The target called `name` ("cpu", "cpu:1" for one thread); options go to its `target()`."""
    family, _, unit = name.partition(":")
    if family not in names():
        raise ValueError(f"a target must be one of {', '.join(names())}, got {name!r}")
    if unit:
        options["unit"] = unit
    made: Target = import_module(f".{family}", __package__).target(**options)
    return made
