"""What changed in a kernel for an NPU: cores, memory plan, library calls, and what was given up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from .points import Kernel

Change = tuple[Literal["fail", "warn", "info"], str, str, str]     # severity, rule, text, cause
_SPACES = {"ub": "UB", "l1": "L1", "l0c": "L0C"}
_CUBE = ("cube", "mix")
_PRODUCT = "mma"                     # in the names of the library's functions for the cube


def changes(old: Kernel, new: Kernel) -> Iterator[Change]:
    """Each difference of one launch and what it points to."""
    if old.task_type != new.task_type:
        lost = old.task_type in _CUBE and new.task_type not in _CUBE
        yield ("fail" if lost else "warn", "cores",
               f"runs on {old.task_type} cores -> {new.task_type} cores",
               "no product is left for the cube" if lost else "the lowering divides its work anew")
    if added := [why for why in new.fallbacks if why not in old.fallbacks]:
        yield ("fail", "fallback", f"the compiler gave up: {'; '.join(added)}",
               "a pass of the compiler no longer takes the kernel")
    yield from _memory(old, new)
    if new.workspace_bytes != old.workspace_bytes:
        yield ("warn" if new.workspace_bytes > old.workspace_bytes else "info", "workspace",
               f"workspace {old.workspace_bytes} -> {new.workspace_bytes} bytes a block",
               "what cube and vector cores hand to each other")
    yield from _calls(old, new)


def _memory(old: Kernel, new: Kernel) -> Iterator[Change]:
    moved = [s for s in _SPACES if old.memory.get(s, 0) != new.memory.get(s, 0)]
    if moved:
        text = ", ".join(f"{_SPACES[s]} {old.memory.get(s, 0)} -> {new.memory.get(s, 0)} bytes"
                         for s in moved)
        more = any(new.memory.get(s, 0) > old.memory.get(s, 0) for s in moved)
        halved = any(0 < 2 * new.memory.get(s, 0) <= old.memory.get(s, 0) for s in moved)
        yield ("warn" if more or halved else "info", "memory", text,
               "a buffer is no longer held twice, or tiles are smaller" if halved
               else "tiles, buffers or the memory plan")


def _calls(old: Kernel, new: Kernel) -> Iterator[Change]:
    gone, came = sorted({*old.calls} - {*new.calls}), sorted({*new.calls} - {*old.calls})
    if not gone and not came:
        return
    lost = any(_PRODUCT in f for f in old.calls) and not any(_PRODUCT in f for f in new.calls)
    text = "; ".join(filter(None, ("no longer calls " + ", ".join(gone) if gone else "",
                                   "now calls " + ", ".join(came) if came else "")))
    yield ("fail" if lost else "warn" if came else "info", "calls", text,
           "the product is no longer done by the cube" if lost else "the lowering's operations")
