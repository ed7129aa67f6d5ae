"""A kernel's arguments as the one struct that a launch hands over.

Order and alignment are those of triton-ascend's launcher (third_party/ascend/backend/driver.py),
and of the entry that bishengir-compile writes: the address of the cores' hardware flags (c220
only), lock, workspace, the kernel's own in their order, the grid. Pointers are 8 bytes, scalars 4.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Literal

Kind = Literal["flags", "lock", "workspace", "pointer", "i32", "grid"]

_HEAD = re.compile(r"func\.func @(\w+)\((.*?)\)\s*attributes", re.S)
_FIXED = 2                           # lock and workspace stand first
_GRID = 3                            # then, last, grid and program ids: the compiler drops the ids


def name_of(module: str) -> str:
    """The kernel's name in a module that the emitter wrote."""
    return _head(module)[0]


def layout(module: str, flags: bool) -> tuple[Kind, ...]:
    """The members of the struct for a module as bishengir-compile takes it.

    `flags`: the device hands the address of its cores' flags to every kernel (c220).
    """
    types = [part.partition(":")[2].strip() for part in _head(module)[1].split(",")
             if "%" in part]
    own: list[Kind] = []
    for written in types[_FIXED:-2 * _GRID]:
        if written.startswith("memref"):
            own.append("pointer")
        elif written.startswith("i32"):
            own.append("i32")
        else:
            raise ValueError(f"a kernel's arguments must be memrefs and i32, got {written}")
    return (*(("flags",) if flags else ()), "lock", "workspace", *own, *("grid",) * _GRID)


def pack(kinds: Sequence[Kind], flags: int, lock: int, workspace: int, own: Sequence[int],
         grid: Sequence[int]) -> bytes:
    """The struct; `own` are addresses and int32 scalars in the kernel's order."""
    wanted = sum(kind in ("pointer", "i32") for kind in kinds)
    if len(own) != wanted:
        raise ValueError(f"the kernel takes {wanted} arguments, got {len(own)}")
    given = {"flags": iter((flags,)), "lock": iter((lock,)), "workspace": iter((workspace,)),
             "grid": iter(grid)}
    mine, made = iter(own), b""
    for kind in kinds:
        value = next(given.get(kind, mine))
        scalar = kind in ("i32", "grid")
        made += bytes(-len(made) % (4 if scalar else 8))
        made += struct.pack("<i", value) if scalar else struct.pack("<Q", value)
    return made + bytes(-len(made) % 8)          # C rounds a struct up to its widest member


def _head(module: str) -> tuple[str, str]:
    found = _HEAD.search(module)
    if found is None:
        raise ValueError("the module has no kernel: func.func @name(...) attributes {...}")
    return found[1], found[2]
