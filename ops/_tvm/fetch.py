"""What a cache line needs: asked for before, and read from memory after a write."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

_FETCH, _FENCE = "expertile_fetch", "expertile_fence"
_TEXT = f"""
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define void @{_FETCH}(ptr %p) alwaysinline {{
  call void @llvm.prefetch.p0(ptr %p, i32 0, i32 2, i32 1)
  ret void
}}
define void @{_FENCE}() alwaysinline {{
  call void asm sideeffect "", "~{{memory}}"()
  ret void
}}
"""


def importing(*functions: str) -> Any:
    """A frame that must enclose every use of what follows, and of other functions in IR, once."""
    return T.attr(0, "pragma_import_llvm", "\n".join((_TEXT, *functions)))


def fetch(element: Any) -> None:
    """Ask for the line of an element of a buffer, into the second-level cache."""
    T.evaluate(T.call_extern("void", _FETCH, T.address_of(element)))


def fence() -> None:
    """What was written before is in memory for what reads after: else LLVM keeps it in registers.

    Elements of a vector that was just written would each take two shuffles, not one load.
    """
    T.evaluate(T.call_extern("void", _FENCE))
