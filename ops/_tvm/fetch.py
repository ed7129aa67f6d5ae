"""What a cache line needs: asked for before, and read from memory after a write."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

_FETCH, _FENCE = "expertile_prefetch", "expertile_fence"
PREFETCH = f"""
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define void @{_FETCH}(ptr %p, i64 %ahead) alwaysinline {{
  %q = getelementptr i8, ptr %p, i64 %ahead
  call void @llvm.prefetch.p0(ptr %q, i32 0, i32 2, i32 1)
  ret void
}}
"""                                  # what `fetch` calls
_FORGET = f"""
define void @{_FENCE}() alwaysinline {{
  call void asm sideeffect "", "~{{memory}}"()
  ret void
}}
"""


def importing(*functions: str) -> Any:
    """A frame that must enclose every use of what follows, and of other functions in IR, once."""
    return T.attr(T.int32(0), "pragma_import_llvm", "\n".join((PREFETCH, _FORGET, *functions)))


def fetch(element: Any, ahead: Any = 0) -> None:
    """Ask for the line `ahead` bytes behind an element of a buffer, into the second-level cache."""
    T.evaluate(T.call_extern("void", _FETCH, T.address_of(element), T.Cast("int64", ahead)))


def fence() -> None:
    """Nothing is moved over it: LLVM would keep what was written before in registers.

    Elements of a vector that was just written would each take two shuffles, not one load; and of
    columns of which it began all at once it would spill most.
    """
    T.evaluate(T.call_extern("void", _FENCE))
