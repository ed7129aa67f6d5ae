"""Small transpositions in registers: log2(rows) interleavings of a vector's halves."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

COLUMNS = 8                          # of a piece; rows are the lanes of a vector


def function(lanes: int, unit: str) -> str:
    """IR of a function that takes [lanes, COLUMNS] as one vector and returns [COLUMNS, lanes]."""
    size = lanes * COLUMNS
    kind = f"<{size} x {'i32' if unit == 'int32' else 'float'}>"
    order = ", ".join(f"i32 {i // 2 + i % 2 * (size // 2)}" for i in range(size))
    text, x = [f"define {kind} @{_name(lanes, unit)}({kind} %x0) alwaysinline {{"], "%x0"
    for i in range(1, lanes.bit_length()):
        text.append(f"%x{i} = shufflevector {kind} {x}, {kind} poison, <{size} x i32> <{order}>")
        x = f"%x{i}"
    return "\n".join([*text, f"ret {kind} {x}", "}"])


def _name(lanes: int, unit: str) -> str:
    return f"expertile_transpose_{unit}_{lanes}"


def transpose(rows: Any, lanes: int, unit: str) -> Any:
    """The piece whose rows stand one after the other in a vector."""
    return T.call_extern(f"{unit}x{lanes * COLUMNS}", _name(lanes, unit), rows)
