"""MLIR text: fresh names, types, the few forms that several parts of the emitter write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Mode = Literal["device", "cpu"]

# TVM's dtype -> MLIR's element type; the NPU's integers are signed.
ELEMENTS = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "int8": "i8", "int16": "i16",
            "int32": "i32", "int64": "i64", "bool": "i1", "float8_e4m3fn": "f8E4M3FN",
            "float8_e5m2": "f8E5M2"}
E4M3, E5M2 = FP8 = ("f8E4M3FN", "f8E5M2")
WIDTHS = {"f16": 16, "bf16": 16, "f32": 32, E4M3: 8, E5M2: 8, "i1": 1, "i8": 8, "i16": 16,
          "i32": 32, "i64": 64}
Size = int | str                     # a number, or the SSA name of an index


class CannotEmit(ValueError):
    """TIR outside of what the emitter knows; the message names the construct."""


@dataclass(frozen=True)
class Value:
    """A tile as an SSA tensor over some axes of a loop nest; without axes a scalar."""

    ssa: str
    dims: tuple[int, ...]            # axes of the nest, in the tensor's order
    type: str                        # MLIR element type


def element(dtype: object) -> str:
    """The MLIR element type of a TVM dtype."""
    if str(dtype) not in ELEMENTS:
        raise CannotEmit(f"the NPU path takes {', '.join(ELEMENTS)}, got {dtype}")
    return ELEMENTS[str(dtype)]


def is_float(kind: str) -> bool:
    """Whether an MLIR element type is a float."""
    return kind[0] in "fb"


def strided(sizes: Sequence[Size], strides: Sequence[Size], kind: str, offset: str = "?") -> str:
    """A memref type with strides; SSA names become "?"."""
    def mark(size: Size) -> str:
        return "?" if isinstance(size, str) else str(size)

    at = f", offset: {offset}" if offset else ""
    return (f"memref<{'x'.join([*map(mark, sizes), kind])}, "
            f"strided<[{', '.join(map(mark, strides))}]{at}>>")


def row_major(shape: Sequence[int]) -> list[int]:
    """Strides of a contiguous array."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= size
    return strides


def listed(items: Sequence[object]) -> str:
    """[a, b, c] as MLIR writes it."""
    return f"[{', '.join(map(str, items))}]"


class Text:
    """The lines of a function, and how they are written in one of the two modes."""

    def __init__(self, mode: Mode):
        self.mode = mode
        self.lines: list[str] = []
        self.indent = 2
        self._names = 0

    def name(self) -> str:
        """A fresh SSA name."""
        self._names += 1
        return f"%v{self._names}"

    def put(self, line: str) -> None:
        """Write a line."""
        self.lines.append("  " * self.indent + line)

    def op(self, right: str) -> str:
        """Write `name = right` and return the name."""
        name = self.name()
        self.put(f"{name} = {right}")
        return name

    def physical(self, kind: str) -> str:
        """The type as written: bytes stand for fp8 on the CPU, which has no such type."""
        return "i8" if kind in FP8 and self.mode == "cpu" else kind

    def tensor(self, shape: Sequence[Size], kind: str) -> str:
        """A tensor type."""
        sizes = ["?" if isinstance(s, str) else str(s) for s in shape]
        return f"tensor<{'x'.join([*sizes, self.physical(kind)])}>"

    def empty(self, shape: Sequence[int], kind: str) -> str:
        """An uninitialised tensor."""
        return self.op(f"tensor.empty() : {self.tensor(shape, kind)}")

    def constant(self, number: float, kind: str) -> str:
        """A scalar constant; "index" is a type too."""
        if is_float(kind):
            special = {"inf": "0x7F800000", "-inf": "0xFF800000", "nan": "0x7FC00000"}
            literal = special.get(str(float(number)), f"{float(number):.9e}")
        else:
            literal = str(int(number))
        return self.op(f"arith.constant {literal} : {kind}")

    def fill(self, scalar: str, shape: Sequence[int], kind: str) -> str:
        """A tensor of one scalar."""
        kind_ = self.physical(kind)
        ty = self.tensor(shape, kind)
        return self.op(f"linalg.fill ins({scalar} : {kind_}) outs({self.empty(shape, kind)} : {ty})"
                       f" -> {ty}")

    def splat(self, number: float, shape: Sequence[int], kind: str) -> str:
        """A tensor of one constant."""
        return self.fill(self.constant(number, kind), shape, kind)
