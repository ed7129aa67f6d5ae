"""Values of a module for all blocks of a grid at once: integers as arrays, memrefs as their sizes.

None is a value that nobody knows without the data; an upper bound takes its place where one is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .simulator.parse import Evaluate, Op

Numbers = NDArray[np.int64]
Known = int | Numbers | None         # the same for all blocks, one for each, or not known
BYTES = {"i1": 0.125, "i8": 1.0, "f8E4M3FN": 1.0, "f8E5M2": 1.0, "i16": 2.0, "f16": 2.0,
         "bf16": 2.0, "i32": 4.0, "f32": 4.0, "i64": 8.0}

_MEMREF = re.compile(r"memref<([^,>]+)(?:, strided<\[(.*?)\](?:, offset: [^>]*)?>)?"
                     r"(?:, #hivm\.address_space<(\w+)>)?>")
_LISTS = re.compile(r"\[([^\[\]]*)\]")
_INTEGER: Mapping[str, Callable[[Any, Any], Any]] = {
    "addi": lambda a, b: a + b, "subi": lambda a, b: a - b, "muli": lambda a, b: a * b,
    "divsi": lambda a, b: a // np.maximum(b, 1), "remsi": lambda a, b: a % np.maximum(b, 1),
    "ceildivsi": lambda a, b: -(-a // np.maximum(b, 1)),
    "floordivsi": lambda a, b: a // np.maximum(b, 1), "minsi": np.minimum, "maxsi": np.maximum,
    "andi": lambda a, b: a & b, "ori": lambda a, b: a | b, "xori": lambda a, b: a ^ b}
_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "slt": lambda a, b: a < b,
    "sle": lambda a, b: a <= b, "sgt": lambda a, b: a > b, "sge": lambda a, b: a >= b}
_SAME = ("index_cast", "trunci", "extui", "extsi")


@dataclass(frozen=True)
class Tile:
    """A memref: where it stands and how large it is in each block."""

    space: str                       # "gm", "ub", "cbuf", "cc"
    dtype: str
    sizes: tuple[Known, ...]
    strides: tuple[Known, ...] = ()
    offset: Known = 0                # elements; kept for arrays in global memory
    array: int | None = None         # which argument of the launch; None: workspace or on chip

    @property
    def width(self) -> float:
        """Bytes of an element."""
        return BYTES[self.dtype]

    @property
    def elements(self) -> Any:
        """How many, in each block; what is not known counts as one."""
        return _product(self.sizes)

    @property
    def run(self) -> Any:
        """Elements that stand side by side: of the last axis, and of those that continue it."""
        if not self.sizes:
            return 1
        if self.strides and not _is(self.strides[-1], 1):
            return 1
        run: Any = 1
        for i in reversed(range(len(self.sizes))):
            size = self.sizes[i]
            run = run * (1 if size is None else size)
            if i and self.strides and not _is(self.strides[i - 1], run):
                break
        return run


def _product(sizes: Sequence[Known]) -> Any:
    made: Any = 1
    for size in sizes:
        made = made * (1 if size is None else size)
    return made


def _is(value: Known, number: Any) -> bool:
    return value is not None and bool(np.all(value == number))


class Values:
    """The values of a function by name."""

    def __init__(self, maps: Mapping[str, Evaluate], start: Mapping[str, Any]):
        self._maps, self._values = maps, dict(start)

    def __getitem__(self, name: str) -> Any:
        """A value, or a number that is written out; None when it is not known."""
        return self._values.get(name) if name.startswith("%") else int(name)

    def set(self, names: Sequence[str], values: Sequence[Any]) -> None:
        """Name results."""
        self._values.update(zip(names, values, strict=False))

    def map(self, name: str, operands: Sequence[str]) -> tuple[Any, ...] | None:
        """An affine map's results, or None when an operand is not known."""
        given = [self[o] for o in operands]
        return None if any(g is None for g in given) else self._maps[name](given)


def names(text: str) -> list[str]:
    """The operands before the types."""
    return re.findall(r"%[\w#-]+", text.split(" : ")[0])


def scalar(op: Op, values: Values) -> Any:
    """An integer, a condition, or what arith.select selects; None for floats and the unknown."""
    kind, _, what = op.name.partition(".")
    if kind == "affine":
        name, _, rest = op.rest.partition("(")
        results = values.map(name.strip(), names(rest))
        if results is None:
            return None
        return reduce(np.maximum if what == "max" else np.minimum, results)
    if what == "constant":
        literal = op.rest.split(" : ")[0].strip()
        if literal in ("true", "false"):
            return literal == "true"
        return int(literal) if re.fullmatch(r"-?\d+", literal) else None
    given = [values[o] for o in names(op.rest)]
    if what == "select":
        return _selected(*given)
    known = [g for g in given if g is not None]
    if what == "minsi" and known:    # a bound is better than nothing
        return reduce(np.minimum, known)
    if len(known) < max(len(given), 1):
        return None
    if what in _INTEGER:
        return _INTEGER[what](*given)
    if what == "cmpi":
        return _COMPARE[op.rest.split(",")[0]](*given)
    return given[0] if what in _SAME else None


def _selected(condition: Any, yes: Any, no: Any) -> Any:
    if isinstance(yes, Tile) or yes is None or no is None:
        return yes if yes is not None else no
    return yes if condition is None else np.where(condition, yes, no)


def memref(op: Op, values: Values) -> Any:
    """The Tile that an operation makes; extract_strided_metadata makes several values."""
    dims, space = _type(op.rest)
    if op.name == "hivm.hir.pointer_cast":
        return Tile(space, dims[-1], tuple(None if d == "?" else int(d) for d in dims[:-1]))
    source = values[names(op.rest)[0]]
    if not isinstance(source, Tile):
        return None
    head = op.rest.split(" : ")[0]
    match op.name:
        case "hivm.hir.bitcast":
            return replace(source, dtype=dims[-1])
        case "memref.reinterpret_cast":
            offset, sizes, strides = (_list(t, values) for t in _LISTS.findall(head))
            return replace(source, offset=offset[0], sizes=sizes, strides=strides)
        case "memref.view":
            given = iter(_list(_LISTS.findall(head)[1], values))
            sizes = tuple(next(given, None) if d == "?" else int(d) for d in dims[:-1])
            return replace(source, sizes=sizes, strides=(), dtype=dims[-1])
        case "memref.subview":
            return _subview(source, len(dims) - 1, _LISTS.findall(head), values)
        case "memref.collapse_shape":
            return _collapse(source, head)
        case "memref.expand_shape":
            wide = _list(_LISTS.findall(op.rest[op.rest.index("output_shape"):])[0], values)
            return replace(source, sizes=wide, strides=())
        case "memref.extract_strided_metadata":
            strides = source.strides or _row_major(source.sizes)
            return [source, source.offset, *source.sizes, *strides]
    return source                    # memref.cast


def _type(text: str) -> tuple[list[str], str]:
    found = _MEMREF.findall(text)
    return (str(found[-1][0]).split("x"), str(found[-1][2])) if found else (["i8"], "")


def _list(text: str, values: Values) -> tuple[Known, ...]:
    return tuple(values[v.strip()] for v in text.split(",") if v.strip())


def _row_major(sizes: Sequence[Known]) -> tuple[Known, ...]:
    return tuple(_product(sizes[i + 1:]) for i in range(len(sizes)))


def _subview(source: Tile, rank: int, lists: Sequence[str], values: Values) -> Tile:
    offsets, sizes, steps = lists[:3]
    strides = source.strides or _row_major(source.sizes)
    kept = [(w if s is None else s, None if t is None else t * (k or 1))    # not known: all of it
            for s, w, t, k in zip(_list(sizes, values), source.sizes, strides,
                                  _list(steps, values), strict=False)]
    literal = [t.strip() for t in sizes.split(",")]
    for i in [i for i, t in enumerate(literal) if t == "1"][:len(kept) - rank][::-1]:
        del kept[i]                  # the result may drop axes of one element
    moves = [(o, t) for o, t in zip(_list(offsets, values), strides, strict=False)]
    offset: Known = None
    if source.offset is not None and not any(o is None or t is None for o, t in moves):
        offset = source.offset + sum(o * t for o, t in moves)  # type: ignore[operator, misc]
    return replace(source, sizes=tuple(s for s, _ in kept), strides=tuple(t for _, t in kept),
                   offset=offset)


def _collapse(source: Tile, head: str) -> Tile:
    inner = head[head.index("[["):head.index("]]") + 1]
    strides = source.strides or _row_major(source.sizes)
    sizes, kept = [], []
    for group in _LISTS.findall(inner):
        axes = [int(i) for i in group.split(",")]
        sizes.append(_product([source.sizes[i] for i in axes]))
        kept.append(strides[axes[-1]])
    return replace(source, sizes=tuple(sizes), strides=tuple(kept))


def negated(condition: Any) -> Any:
    """The opposite condition; None stays unknown."""
    return None if condition is None else ~np.asarray(condition, bool)


def first_of(value: Any) -> int:
    """A flag's number, which is the same in all blocks that are at one place."""
    return 0 if value is None else int(np.asarray(value).flat[0])
