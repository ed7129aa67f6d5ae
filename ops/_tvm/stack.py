"""Where a kernel's vectors lie on the stack: at multiples of their size.

LLVM aligns spilled vectors beyond the ABI's 16 bytes only in functions that need the alignment
before registers are given out, and TVM's own stack buffers never do. A slot across two pages costs
its loop 20 ns a turn, and where the stack begins is drawn anew for each process (docs/facts.md).
"""

from __future__ import annotations

from tvm.script import tirx as T


def functions(lanes: int) -> str:
    """The IR that `align` calls: a byte at a multiple of a vector, which has to exist."""
    return "\n".join(("define void @expertile_stack() alwaysinline {",
                      f"%place = alloca i8, align {4 * lanes}",
                      'call void asm sideeffect "", "r"(ptr %place)', "ret void", "}"))


def align() -> None:
    """Align the frame of the function that this stands in: each parallel body is one."""
    T.evaluate(T.call_extern("void", "expertile_stack"))
