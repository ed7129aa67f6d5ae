"""The operations without effect: numbers, affine maps and the shaping of memrefs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch

from .clocks import Fault
from .llvm import llvm_op
from .memory import DTYPES, Space, View
from .parse import Op
from .values import Values, constant_of, operands_of
from .work import NotModelled

_INTEGER: Mapping[str, Callable[[int, int], int]] = {
    "addi": lambda a, b: a + b, "subi": lambda a, b: a - b, "muli": lambda a, b: a * b,
    "divsi": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    "remsi": lambda a, b: abs(a) % abs(b) * (1 if a >= 0 else -1),
    "ceildivsi": lambda a, b: -(-a // b), "floordivsi": lambda a, b: a // b,
    "minsi": min, "maxsi": max, "andi": lambda a, b: a & b, "ori": lambda a, b: a | b,
    "xori": lambda a, b: a ^ b}
_FLOAT: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "addf": torch.add, "subf": torch.sub, "mulf": torch.mul, "divf": torch.div,
    "maximumf": torch.maximum, "minimumf": torch.minimum}    # the last two keep NaN, as MLIR's do
_MATH: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "exp": torch.exp, "log": torch.log,
    "absf": torch.abs, "floor": torch.floor}
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "slt": lambda a, b: a < b,
    "sle": lambda a, b: a <= b, "sgt": lambda a, b: a > b, "sge": lambda a, b: a >= b}
_MEMREF = re.compile(r"memref<([^,>]+)(?:, strided<\[(.*?)\](?:, offset: [^>]*)?>)?"
                     r"(?:, #hivm\.address_space<(\w+)>)?>")
_LISTS = re.compile(r"\[([^\[\]]*)\]")


def _bitcast(value: float, before: str, after: str) -> float:
    """The same bits as another type of the same width."""
    bits = torch.tensor([value], dtype=DTYPES[before]).view(DTYPES[after.strip()])
    number: float = bits.item()
    return number


def scalar_op(op: Op, values: Values) -> Any:
    """A number, or of arith.select whatever is selected."""
    kind, _, what = op.name.partition(".")
    if kind == "llvm" or op.name == "builtin.unrealized_conversion_cast":
        return llvm_op(op, values)
    if kind == "affine" and what in ("apply", "min", "max"):
        name, _, rest = op.rest.partition("(")
        results = values.apply(name.strip(), operands_of(rest))
        return max(results) if what == "max" else min(results)   # of apply there is one
    if kind == "math" and what in _MATH:
        (operand,), dtype = operands_of(op.rest), DTYPES[op.rest.rsplit(" : ", 1)[1].strip()]
        result: float = _MATH[what](torch.tensor(values[operand], dtype=dtype)).item()
        return result
    if kind == "arith":
        if what == "constant":
            return constant_of(op.rest)
        operands = [values[o] for o in operands_of(op.rest)]
        if what in _INTEGER:
            return _INTEGER[what](*(int(o) for o in operands))
        if what in _FLOAT:           # rounded as its type is
            dtype = DTYPES[op.rest.rsplit(" : ", 1)[1].strip()]
            number: float = _FLOAT[what](*(torch.tensor(o, dtype=dtype) for o in operands)).item()
            return number
        if what == "cmpi":
            return _COMPARE[op.rest.split(",")[0]](*operands)
        if what == "select":
            return operands[1] if operands[0] else operands[2]
        if what == "bitcast":
            return _bitcast(operands[0], *op.rest.split(" : ")[1].split(" to "))
        if what in ("index_cast", "trunci", "extui", "extsi"):
            return bool(operands[0] & 1) if op.rest.endswith(" i1") else int(operands[0])
    raise NotModelled(f"line {op.line}: {op.name} is not modelled")


def stack_of(op: Op) -> View:
    """A variable of the scalar unit."""
    *dims, dtype = _type(op.rest)
    sizes = tuple(int(d) for d in dims)
    data = torch.full((prod(sizes) * DTYPES[dtype].itemsize,), 0xFF, dtype=torch.uint8)
    return View(Space("stack", data, 1, on_chip=False), 0, dtype, 0, sizes, _strides(sizes))


def _list(text: str, values: Values) -> tuple[int, ...]:
    return tuple(int(values[v.strip()]) for v in text.split(",") if v.strip())


def memref_op(op: Op, values: Values, spaces: Mapping[str, Space],
              owners: dict[int, int]) -> Any:
    """The View that a memref operation makes; extract_strided_metadata makes several values."""
    if op.name == "hivm.hir.pointer_cast":
        return _pointer(op, values, spaces, owners)
    source: View = values[operands_of(op.rest)[op.name == "memref.store"]]
    lists = [_list(t, values) for t in _LISTS.findall(op.rest.split(" : ")[0])] \
        if "shape" not in op.name else []
    match op.name:
        case "memref.cast":
            return source
        case "hivm.hir.bitcast":
            return replace(source, dtype=_type(op.rest)[-1])
        case "memref.load" | "memref.store":
            offset = sum(i * s for i, s in zip(lists[0], source.strides, strict=True))
            return source.shaped(source.offset + offset, (), ())
        case "memref.reinterpret_cast":
            return source.shaped(lists[0][0], lists[1], lists[2])
        case "memref.subview":
            return _subview(op, source, *lists)
        case "memref.view":
            *dims, dtype = _type(op.rest)
            given = iter(lists[1])
            sizes = tuple(next(given) if d == "?" else int(d) for d in dims)
            return View(source.space, source.start + lists[0][0], dtype, 0, sizes,
                        _strides(sizes), source.owner)
        case "memref.collapse_shape":
            return _collapse(op, source)
        case "memref.expand_shape":
            return _expand(op, source, values)
        case "memref.extract_strided_metadata":
            base = source.shaped(0, (1,), (1,))
            return [base, source.offset, *source.sizes, *source.strides]
    raise NotModelled(f"line {op.line}: {op.name} is not modelled")


def _type(text: str) -> list[str]:
    """Dimensions and element of the last memref type in a text."""
    return str(_MEMREF.findall(text)[-1][0]).split("x")


def _strides(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(sizes[i + 1:]) for i in range(len(sizes)))


def _pointer(op: Op, values: Values, spaces: Mapping[str, Space], owners: dict[int, int]) -> View:
    *dims, dtype = _type(op.rest)
    space = spaces[_MEMREF.findall(op.rest)[-1][2]]
    addresses = [values[o] for o in operands_of(op.rest)]
    if len(addresses) != 1 or "?" in dims:
        raise NotModelled(f"line {op.line}: a pointer_cast of several addresses or unknown size")
    sizes = tuple(int(d) for d in dims)
    owner = owners.setdefault(op.line, len(owners))
    view = View(space, addresses[0], dtype, 0, sizes, _strides(sizes), owner)
    view.span()                      # the whole buffer must lie in the space
    return view


def _subview(op: Op, source: View, offsets: tuple[int, ...], sizes: tuple[int, ...],
             steps: tuple[int, ...]) -> View:
    # The compiler takes 16 rows of a fractal from any row on and loads fewer: only bytes that are
    # really used are checked.
    start = source.offset + sum(o * s for o, s in zip(offsets, source.strides, strict=True))
    kept = [(size, step * stride)
            for size, step, stride in zip(sizes, steps, source.strides, strict=True)]
    rank = len(_type(op.rest)) - 1   # the result may drop dimensions of one element
    literal = [t.strip() for t in _LISTS.findall(op.rest.split(" : ")[0])[1].split(",")]
    for i in [i for i, t in enumerate(literal) if t == "1"][:len(kept) - rank]:
        kept[i] = (-1, 0)
    kept = [k for k in kept if k[0] != -1]
    return source.shaped(start, tuple(s for s, _ in kept), tuple(t for _, t in kept))


def _groups(op: Op) -> list[list[int]]:
    inner = op.rest[op.rest.index("[["):op.rest.index("]]") + 1]
    return [[int(i) for i in t.split(",")] for t in _LISTS.findall(inner)]


def _collapse(op: Op, source: View) -> View:
    sizes, strides = [], []
    for group in _groups(op):
        real = [i for i in group if source.sizes[i] != 1] or group[-1:]
        for outer, inner in zip(real, real[1:], strict=False):
            if source.strides[outer] != source.sizes[inner] * source.strides[inner]:
                raise Fault("dimensions that do not follow each other are collapsed")
        sizes.append(prod(source.sizes[i] for i in group))
        strides.append(source.strides[real[-1]])
    return source.shaped(source.offset, tuple(sizes), tuple(strides))


def _expand(op: Op, source: View, values: Values) -> View:
    text = op.rest[op.rest.index("output_shape"):]
    shape, strides = _list(_LISTS.findall(text)[0], values), []
    for at, group in enumerate(_groups(op)):
        for i in group:
            later = prod(shape[j] for j in group if j > i)
            strides.append(source.strides[at] * later)
    return source.shaped(source.offset, shape, tuple(strides))
