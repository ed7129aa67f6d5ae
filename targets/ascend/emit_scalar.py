"""Scalar TIR: offsets, loop bounds, entries of integer tables in global memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm import ir, tirx
from tvm.sym import Analyzer

from .emit_text import CannotEmit, Size, Text, element

_BINARY = {"Add": "addi", "Sub": "subi", "Mul": "muli", "FloorDiv": "divsi", "FloorMod": "remsi",
           "Div": "divsi", "Min": "minsi", "Max": "maxsi"}
COMPARE = {"LT": ("slt", "olt"), "LE": ("sle", "ole"), "GT": ("sgt", "ogt"), "GE": ("sge", "oge"),
           "EQ": ("eq", "oeq"), "NE": ("ne", "une")}


def kind_of(e: Any) -> str:
    """The node's class: "Add", "TensorLoad" ..."""
    return type(e).__name__


def dtype_of(e: Any) -> str:
    """The dtype of an expression."""
    return str(e.ty.dtype)


def call_name(e: Any) -> str:
    """The operator of a Call: "exp", "if_then_else" ...; "" for anything else."""
    return str(e.op.name).split(".")[-1] if isinstance(e, ir.Call) else ""


def choice(e: Any) -> tuple[Any, Any, Any] | None:
    """(condition, then, else) of a Select or if_then_else."""
    if isinstance(e, tirx.Select):
        return e.condition, e.true_value, e.false_value
    return tuple(e.args) if call_name(e) == "if_then_else" else None


def parts(e: Any) -> Iterator[Any]:
    """An expression and all expressions in it."""
    yield e
    inner: list[Any] = []
    if isinstance(e, ir.TensorLoad):
        inner = list(e.indices)
    elif isinstance(e, ir.Call):
        inner = list(e.args)
    elif isinstance(e, tirx.Select):
        inner = [e.condition, e.true_value, e.false_value]
    elif isinstance(e, tirx.Cast):
        inner = [e.value]
    elif hasattr(e, "a"):
        inner = [e.a, e.b] if hasattr(e, "b") else [e.a]
    for x in inner:
        yield from parts(x)


class Scalars:
    """Writes scalar expressions as operations on MLIR's `index`, which has 64 bits."""

    def __init__(self, text: Text):
        self.text = text
        self.analyzer = Analyzer()
        self.env: dict[Any, str] = {}            # TIR variable -> SSA index
        self.tensors: dict[Any, str] = {}        # tensor argument -> SSA memref<?xT>

    def bind(self, loop: Any) -> None:
        """Let the analyzer know the range of a loop's variable."""
        if isinstance(loop.extent, tirx.IntImm):
            self.analyzer.bind(loop.loop_var, ir.Range.from_min_extent(loop.min, loop.extent))

    def index(self, e: Any) -> str:
        """The SSA index of an integer expression without axes of a tile."""
        e = e if isinstance(e, int) else self.analyzer.simplify(e)
        put, name = self.text.op, kind_of(e)
        if isinstance(e, int | tirx.IntImm):
            return self.text.constant(int(e), "index")
        if isinstance(e, ir.Var):
            if e not in self.env:
                raise CannotEmit(f"{e} is no scalar here")
            return self.env[e]
        if isinstance(e, tirx.Cast):
            return self.index(e.value)
        if name in _BINARY:
            a, b = self.index(e.a), self.index(e.b)
            return put(f"arith.{_BINARY[name]} {a}, {b} : index")
        if isinstance(e, ir.TensorLoad):
            kind = element(e.source.dtype)
            return put(f"arith.index_cast {self.entry(e)} : {kind} to index")
        if chosen := choice(e):
            condition = self.condition(chosen[0])
            a, b = self.index(chosen[1]), self.index(chosen[2])
            return put(f"arith.select {condition}, {a}, {b} : index")
        raise CannotEmit(f"a scalar {name} cannot be emitted: {e}")

    def size(self, e: Any) -> Size:
        """A size or stride: a number where it is one."""
        e = e if isinstance(e, int) else self.analyzer.simplify(e)
        return int(e) if isinstance(e, int | tirx.IntImm) else self.index(e)

    def condition(self, e: Any) -> str:
        """The SSA i1 of a comparison of integers, or of several."""
        name = kind_of(e)
        if name in COMPARE:
            a, b = self.index(e.a), self.index(e.b)
            return self.text.op(f"arith.cmpi {COMPARE[name][0]}, {a}, {b} : index")
        if name in ("And", "Or"):
            a, b = self.condition(e.a), self.condition(e.b)
            return self.text.op(f"arith.{'andi' if name == 'And' else 'ori'} {a}, {b} : i1")
        if isinstance(e, tirx.IntImm):
            return self.text.op(f"arith.constant {'true' if int(e) else 'false'}")
        raise CannotEmit(f"a scalar condition {name} cannot be emitted: {e}")

    def entry(self, load: Any) -> str:
        """One element of a tensor argument, in its own type."""
        if load.source not in self.tensors:
            raise CannotEmit(f"scalars are read from tensors only, not from tiles: {load}")
        at = self.offset(load.source, list(load.indices))
        kind = self.text.physical(element(load.source.dtype))
        return self.text.op(f"memref.load {self.tensors[load.source]}[{at}] : memref<?x{kind}>")

    def number(self, e: Any, kind: str) -> str:
        """A scalar of an element type: literal, argument, table entry, or integer arithmetic."""
        if isinstance(e, tirx.FloatImm | tirx.IntImm):
            return self.text.constant(float(e.value), kind)
        if call_name(e) == "reinterpret":
            bits = self.number(e.args[0], "i32")
            return self.text.op(f"arith.bitcast {bits} : i32 to {kind}")
        if isinstance(e, ir.TensorLoad) and element(e.source.dtype) == kind:
            return self.entry(e)
        if kind in ("i16", "i32", "i64"):
            return self.text.op(f"arith.index_cast {self.index(e)} : index to {kind}")
        raise CannotEmit(f"a scalar of type {kind} cannot be computed, only read: {e}")

    def strides(self, tensor: Any) -> list[Size]:
        """Strides in elements of a contiguous tensor argument."""
        found: list[Size] = []
        step: Any = 1
        for size in reversed(list(tensor.shape)):
            found.insert(0, self.size(step))
            step = step * (int(size) if isinstance(size, tirx.IntImm) else size)
        return found

    def offset(self, tensor: Any, indices: list[Any]) -> str:
        """The SSA element offset; multiplied in 64 bits, whatever TIR's indices have."""
        total: str | None = None
        for stride, i in zip(self.strides(tensor), indices, strict=True):
            i = self.analyzer.simplify(i)
            if isinstance(i, tirx.IntImm) and not int(i):
                continue
            at = self.index(i)
            if stride != 1:
                step = stride if isinstance(stride, str) else self.text.constant(stride, "index")
                at = self.text.op(f"arith.muli {at}, {step} : index")
            total = at if total is None else self.text.op(f"arith.addi {total}, {at} : index")
        return total or self.text.constant(0, "index")
