"""Scalars of the 950's modules, which stand in MLIR's LLVM dialect; all are signed here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .memory import DTYPES
from .parse import Op
from .values import Values, constant_of, operands_of
from .work import NotModelled

_BINARY: Mapping[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "sdiv": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    "srem": lambda a, b: abs(a) % abs(b) * (1 if a >= 0 else -1),
    "xor": lambda a, b: a ^ b, "and": lambda a, b: a & b, "or": lambda a, b: a | b,
    "intr.smin": min, "intr.smax": max}
# of numbers that are never negative (sizes, counters): else their bits would count
_UNSIGNED: Mapping[str, Callable[[int, int], int]] = {
    "udiv": lambda a, b: a // b, "urem": lambda a, b: a % b, "intr.umin": min, "intr.umax": max}
_COMPARE: Mapping[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "slt": lambda a, b: a < b,
    "sle": lambda a, b: a <= b, "sgt": lambda a, b: a > b, "sge": lambda a, b: a >= b}
_LITERAL = re.compile(r"\((.*)\) : \w+")


def llvm_op(op: Op, values: Values) -> Any:
    """A number, or of a cast or a selection whatever is cast or selected."""
    what = op.name.partition(".")[2]
    if what == "mlir.constant":
        literal = _LITERAL.match(op.rest)
        assert literal is not None, op.rest
        return constant_of(literal[1])
    given = [values[o] for o in operands_of(op.rest)]
    if what == "unrealized_conversion_cast":
        return given[0]
    if what in _BINARY:
        result = _BINARY[what](int(given[0]), int(given[1]))
        return bool(result) if op.rest.endswith(" i1") else result
    if what in _UNSIGNED and min(given) >= 0:
        return _UNSIGNED[what](*given)
    if what == "icmp":
        return _COMPARE[op.rest.split('"')[1]](*given)
    if what == "select":
        return given[1] if given[0] else given[2]
    if what in ("trunc", "sext", "zext"):
        return bool(given[0] & 1) if op.rest.endswith(" i1") else int(given[0])
    if what == "bitcast":
        before, after = (t.strip() for t in op.rest.split(" : ")[1].split(" to "))
        return torch.tensor([given[0]], dtype=DTYPES[before]).view(DTYPES[after]).item()
    raise NotModelled(f"line {op.line}: {op.name} is not modelled")
