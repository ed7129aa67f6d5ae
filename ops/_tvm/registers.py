"""Registers and other small places of one task."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T


def local(size: int, dtype: str = "float32") -> Any:
    """A place on the stack, below 1024 bytes; with constant indices only LLVM makes it registers.

    Scope "local" would be a call of the allocator at run time, whatever the size. Elements that
    are vectors, which cannot share the stack, take it.
    """
    return T.alloc_buffer((size,), dtype, scope="local" if "x" in dtype else "global")


class Registers:
    """Vectors, each in a buffer of its own: together they may be more than 1024 bytes."""

    def __init__(self, count: int, lanes: int, dtype: str = "float32"):
        self._each = [local(lanes, dtype) for _ in range(count)]
        self._lanes = T.Ramp(0, 1, lanes)

    def __getitem__(self, at: int) -> Any:
        return self._each[at][self._lanes]

    def set(self, at: int, value: Any) -> None:
        """Assign one of them."""
        T.buffer_store(self._each[at], value, [self._lanes])
