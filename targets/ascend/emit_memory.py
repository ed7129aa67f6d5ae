"""Tiles between global memory and the chip: views, ragged edges, gathered and scattered rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.sym import detect_linear_equation

from .emit_scalar import Scalars, kind_of, parts
from .emit_text import CannotEmit, Size, Text, Value, element, listed, row_major, strided


@dataclass(frozen=True)
class Nest:
    """The axes of a loop nest that stores one tile."""

    axes: tuple[Any, ...]            # loop variables
    extents: tuple[int, ...]

    def shape(self, dims: Sequence[int]) -> list[int]:
        """Extents of some axes."""
        return [self.extents[d] for d in dims]

    def used(self, e: Any) -> list[int]:
        """The axes that stand in an expression."""
        inside = [x for x in parts(e) if kind_of(x) == "Var"]
        return [d for d, axis in enumerate(self.axes) if any(axis.same_as(x) for x in inside)]

    def linear(self, e: Any) -> tuple[list[int], Any] | None:
        """Coefficients of the axes and the rest, or None where `e` is not affine in them."""
        if kind_of(e) == "TensorLoad":
            return None
        found = detect_linear_equation(e, list(self.axes))
        if not found or self.used(found[-1]):
            return None
        if not all(isinstance(c, tirx.IntImm) for c in found[:-1]):
            return None
        return [int(c) for c in found[:-1]], found[-1]


Bounds = dict[int, Size]             # axis -> how many of its steps take part; absent: all


def bounds_of(scalars: Scalars, nest: Nest, mask: Any) -> Bounds:
    """The rectangle that a mask of comparisons `axis + base < limit` leaves."""
    found: Bounds = {}
    for term in _terms(mask):
        if isinstance(term, tirx.IntImm) and int(term):
            continue
        smaller, larger = {"LT": ("a", "b"), "GT": ("b", "a")}.get(kind_of(term), ("", ""))
        gap = getattr(term, larger) - getattr(term, smaller) if smaller else None
        linear = None if gap is None else nest.linear(scalars.analyzer.simplify(gap))
        axes = [] if linear is None else [d for d, c in enumerate(linear[0]) if c]
        if linear is None or not axes:
            if nest.used(term):
                raise CannotEmit(f"a mask of a copy must be axis + base < limit, got {term}")
            whole = scalars.text.constant(nest.extents[0], "index")
            none = scalars.text.constant(0, "index")
            count: Size = scalars.text.op(f"arith.select {scalars.condition(term)}, {whole}, "
                                          f"{none} : index")
            axes = [0]
        elif len(axes) > 1 or linear[0][axes[0]] != -1:
            raise CannotEmit(f"a mask of a copy must bound one axis from above, got {term}")
        else:
            count = scalars.size(tirx.max(tirx.min(linear[1], nest.extents[axes[0]]), 0))
        if axes[0] in found:
            a, b = (n if isinstance(n, str) else scalars.text.constant(n, "index")
                    for n in (found[axes[0]], count))
            count = scalars.text.op(f"arith.minsi {a}, {b} : index")
        if count != nest.extents[axes[0]]:
            found[axes[0]] = count
    return found


def _terms(mask: Any) -> Iterator[Any]:
    if kind_of(mask) == "And":
        yield from _terms(mask.a)
        yield from _terms(mask.b)
    else:
        yield mask


class Memory:
    """Writes the copies between tensor arguments and tiles."""

    def __init__(self, text: Text, scalars: Scalars):
        self.text, self.scalars = text, scalars

    def load(self, nest: Nest, tensor: Any, indices: list[Any], bounds: Bounds,
             other: str | None = None) -> Value:
        """A tile of a tensor; outside of `bounds` it holds the scalar `other`, or anything."""
        text, kind = self.text, self.text.physical(element(tensor.dtype))
        dims, loops = self._plan(nest, indices)
        shape = nest.shape(dims)
        whole = f"memref<{'x'.join([*map(str, shape), kind])}>"
        tile = text.op(f"memref.alloc() : {whole}")
        if other is not None and bounds:
            text.put(f"linalg.fill ins({other} : {kind}) outs({tile} : {whole})")
        with self._loops(nest, loops, bounds) as at:
            sizes = self._sizes(nest, dims, loops, bounds)
            source, source_type = self._view(nest, tensor, indices, dims, loops, sizes)
            target, target_type = tile, whole
            if sizes != shape:
                target_type = strided(sizes, row_major(shape), kind, "?" if at else "")
                target = text.op(f"memref.subview {tile}{listed([at.get(d, 0) for d in dims])} "
                                 f"{listed(sizes)} {listed([1] * len(dims))} : {whole} to "
                                 f"{target_type}")
            text.put(f"memref.copy {source}, {target} : {source_type} to {target_type}")
        tensor_value = text.op(f"bufferization.to_tensor {tile} restrict writable : {whole}")
        return Value(tensor_value, tuple(dims), element(tensor.dtype))

    def loops(self, nest: Nest, indices: list[Any]) -> list[int]:
        """The axes over which rows are copied one by one."""
        return self._plan(nest, indices)[1]

    def plan(self, nest: Nest, indices: list[Any]) -> list[int]:
        """The axes of a tensor's tile in the order of its memory."""
        return self._plan(nest, indices)[0]

    def store(self, nest: Nest, tensor: Any, indices: list[Any], bounds: Bounds,
              value: Value) -> None:
        """Write a tile whose axes are `plan`'s."""
        text = self.text
        dims, loops = self._plan(nest, indices)
        shape = nest.shape(dims)
        with self._loops(nest, loops, bounds) as at:
            sizes = self._sizes(nest, dims, loops, bounds)
            target, target_type = self._view(nest, tensor, indices, dims, loops, sizes)
            source, source_type = value.ssa, text.tensor(shape, value.type)
            if sizes != shape:
                part = text.tensor(sizes, value.type)
                source = text.op(f"tensor.extract_slice {source}"
                                 f"{listed([at.get(d, 0) for d in dims])} {listed(sizes)} "
                                 f"{listed([1] * len(dims))} : {source_type} to {part}")
                source_type = part
            text.put(f"bufferization.materialize_in_destination {source} in writable {target} : "
                     f"({source_type}, {target_type}) -> ()")

    def _plan(self, nest: Nest, indices: list[Any]) -> tuple[list[int], list[int]]:
        """The axes in order of the indices, and those that the hardware cannot stride over."""
        dims: list[int] = []
        loops: list[int] = []
        for i in indices:
            affine = nest.linear(i)
            for d in nest.used(i):
                if d not in dims:
                    dims.append(d)
                if affine is None and d not in loops:
                    loops.append(d)
        if not dims:
            raise CannotEmit(f"a tile must have an axis, got indices {indices}")
        return dims, loops

    @contextmanager
    def _loops(self, nest: Nest, loops: list[int], bounds: Bounds) -> Iterator[dict[int, str]]:
        """Loops over rows that are copied one by one; yields their counters."""
        at: dict[int, str] = {}
        for d in loops:
            low, step = self.text.constant(0, "index"), self.text.constant(1, "index")
            size = bounds.get(d, nest.extents[d])
            high = size if isinstance(size, str) else self.text.constant(size, "index")
            at[d] = self.text.name()
            self.text.put(f"scf.for {at[d]} = {low} to {high} step {step} {{")
            self.text.indent += 1
            self.scalars.env[nest.axes[d]] = at[d]
        yield at
        for d in loops:
            self.text.indent -= 1
            self.text.put("}")
            del self.scalars.env[nest.axes[d]]

    @staticmethod
    def _sizes(nest: Nest, dims: list[int], loops: list[int], bounds: Bounds) -> list[Size]:
        return [1 if d in loops else bounds.get(d, nest.extents[d]) for d in dims]

    def _view(self, nest: Nest, tensor: Any, indices: list[Any], dims: list[int],
              loops: list[int], sizes: list[Size]) -> tuple[str, str]:
        """The part of a tensor that a tile covers, as a memref."""
        kind = self.text.physical(element(tensor.dtype))
        base, steps = [], dict.fromkeys(dims, 0)
        dynamic: dict[int, str] = {}
        for stride, i in zip(self.scalars.strides(tensor), indices, strict=True):
            affine = nest.linear(i)
            if affine is None:           # its axes are counters of loops around this copy
                base.append(i)
                continue
            counted = [d for d in loops if affine[0][d]]
            base.append(i if counted else affine[1])
            for d, c in enumerate(affine[0]):
                if not c or d in loops:
                    continue
                if isinstance(stride, str):
                    if c != 1 or steps[d]:
                        raise CannotEmit(f"an axis may step once over a stride known at run time "
                                         f"only, got {indices}")
                    dynamic[d] = stride
                else:
                    steps[d] += c * stride
        full = [1 if d in loops else nest.extents[d] for d in dims]
        inner = row_major(full)
        strides: list[Size] = [dynamic.get(d) or steps[d] or inner[at]
                               for at, d in enumerate(dims)]
        at = self.scalars.offset(tensor, base)
        whole = strided(full, strides, kind)
        view = self.text.op(
            f"memref.reinterpret_cast {self.scalars.tensors[tensor]} to offset: [{at}], sizes: "
            f"{listed(full)}, strides: {listed(strides)} : memref<?x{kind}> to {whole}")
        if sizes == full:
            return view, whole
        part = strided(sizes, strides, kind)
        return self.text.op(f"memref.subview {view}{listed([0] * len(dims))} {listed(sizes)} "
                            f"{listed([1] * len(dims))} : {whole} to {part}"), part
