"""One nest of loops: a tile stored to memory, assigned, reduced, or multiplied on the cube."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import ir, tirx

from .emit_fp8 import decode
from .emit_memory import Memory, Nest, bounds_of
from .emit_scalar import Scalars, choice, kind_of
from .emit_text import FP8, CannotEmit, Text, Value, element, is_float, listed
from .emit_tile import Tiles

CONTROL = "control"                  # annotation of a loop that is no axis of a tile
_COMBINE = {"Add": ("addf", "addi"), "Max": ("maximumf", "maxsi"), "Min": ("minimumf", "minsi")}
_NEUTRAL = {("Add", True): 0.0, ("Add", False): 0, ("Max", True): float("-inf"),
            ("Max", False): -2**31, ("Min", True): float("inf"), ("Min", False): 2**31 - 1}


class Nests:
    """Writes the nests of a function; knows which cores they need and what they write."""

    def __init__(self, text: Text, scalars: Scalars, memory: Memory, tiles: Tiles):
        self.text, self.scalars, self.memory, self.tiles = text, scalars, memory, tiles
        self.cube = False                        # whether the cube core has work
        self.written: set[Any] = set()           # tensor arguments

    def store(self, s: Any) -> None:
        """A nest of axes around the store of one tile, perhaps under a mask."""
        axes: list[Any] = []
        extents: list[int] = []
        while isinstance(s, tirx.For):
            if not isinstance(s.extent, tirx.IntImm):
                raise CannotEmit(f"an axis of a tile needs a fixed extent, got {s.extent}; loops "
                                 f"in time are annotated {CONTROL!r}")
            axes.append(s.loop_var)
            extents.append(int(s.extent))
            if int(s.extent) > 1:        # known to be 0, an axis would vanish from its indices
                self.scalars.bind(s)
            s = s.body
        mask = None
        if isinstance(s, tirx.IfThenElse) and s.else_case is None:
            mask, s = s.condition, s.then_case
        if not isinstance(s, tirx.BufferStore):
            raise CannotEmit(f"a nest of axes must store one tile, got {kind_of(s)}")
        self.tiles.nest, self.tiles.mask = Nest(tuple(axes), tuple(extents)), mask
        self._store(s, mask)

    def _store(self, s: Any, mask: Any) -> None:
        nest, buffer, indices = self.tiles.nest, s.buffer, list(s.indices)
        dims = list(dict.fromkeys(d for i in indices for d in nest.used(i)))
        reduced = [d for d in range(len(nest.axes)) if d not in dims]
        if buffer in self.scalars.tensors:
            if reduced:
                raise CannotEmit("only tiles can be reduced into, not tensors")
            bounds = {} if mask is None else bounds_of(self.scalars, nest, mask)
            order = self.memory.plan(nest, indices)
            value = self.tiles.value(s.value)
            fitted = Value(self.tiles.fit(value, order), tuple(order), value.type)
            self.memory.store(nest, buffer, indices, bounds, fitted)
            if self.memory.loops(nest, indices):
                self.tiles.vector = True
            self.written.add(buffer)
            return
        if [nest.extents[d] for d in dims] != [int(n) for n in buffer.shape]:
            raise CannotEmit(f"a tile is written whole, got {s}")
        self.tiles.held[buffer] = (self._reduce(s, dims, reduced, mask) if reduced
                                   else self._assign(s, dims, mask))

    def _assign(self, s: Any, dims: list[int], mask: Any) -> str:
        tiles, buffer = self.tiles, s.buffer
        literal = isinstance(s.value, tirx.FloatImm | tirx.IntImm) and mask is None
        (tiles.raw.add if literal else tiles.raw.discard)(buffer)
        single = mask is None and not tiles.is_tile(s.value)
        (tiles.fresh.add if single else tiles.fresh.discard)(buffer)
        if mask is None:
            return tiles.fit(tiles.value(s.value), dims)
        if buffer in tiles.held:
            old = tiles.held[buffer]
            keep = Value(old, tuple(dims), element(buffer.dtype))
            condition, new = tiles.value(mask), tiles.value(s.value)
            tiles.vector = True
            ty = tiles.text.tensor(tiles.nest.shape(dims), "i1")
            return tiles.text.op(f"arith.select {tiles.fit(condition, dims)}, "
                                 f"{tiles.fit(new, dims)}, {old} : {ty}, {tiles.type(keep)}")
        if not (isinstance(s.value, ir.TensorLoad) and s.value.source in self.scalars.tensors):
            raise CannotEmit(f"a tile's first value under a mask must be a tensor's, got {s.value}")
        return tiles.fit(tiles.load(s.value), dims)

    def _reduce(self, s: Any, dims: list[int], reduced: list[int], mask: Any) -> str:
        """acc = combine(acc, value) over the axes that acc lacks."""
        tiles, text, nest, kind = self.tiles, self.text, self.tiles.nest, kind_of(s.value)
        first = getattr(s.value, "a", None)
        if mask is not None or kind not in _COMBINE or not isinstance(first, ir.TensorLoad) or \
                not first.source.same_as(s.buffer):
            raise CannotEmit(f"a reduction must read acc = acc + value, max or min, got {s}")
        held = tiles.load(first)
        if product := self._factors(s.value.b, reduced, dims) if kind == "Add" else None:
            tiles.fresh.discard(s.buffer)
            return self._matmul(held, product, dims, reduced[0])
        value = tiles.value(s.value.b)
        tiles.vector = True
        order = sorted([*dims, *reduced])
        source, type_, ty = tiles.fit(value, order), held.type, tiles.type(held)
        combine = f"arith.{_COMBINE[kind][0 if is_float(type_) else 1]}"
        into, shape = held.ssa, nest.shape(order)
        if s.buffer not in tiles.fresh:  # reduced into a value that a loop carries, it crashes the
            into = text.splat(_NEUTRAL[kind, is_float(type_)], nest.shape(dims), type_)  # compiler
        a, b, c = text.name(), text.name(), text.name()
        made = text.op(
            f"linalg.reduce ins({source} : {text.tensor(shape, type_)}) outs({into} : {ty}) "
            f"dimensions = {listed([at for at, d in enumerate(order) if d in reduced])} ({a}: "
            f"{type_}, {b}: {type_}) {{ {c} = {combine} {a}, {b} : {type_} linalg.yield {c} : "
            f"{type_} }}")
        if s.buffer not in tiles.fresh:
            made = text.op(f"{combine} {held.ssa}, {made} : {ty}")
        tiles.raw.discard(s.buffer)
        tiles.fresh.discard(s.buffer)
        return made

    def _factors(self, e: Any, reduced: list[int], dims: list[int]) -> list[Any] | None:
        """The two loads of a matrix product, row operand first, or None."""
        if kind_of(e) != "Mul" or len(reduced) != 1 or len(dims) != 2:
            return None
        loads = [_without_cast(e.a), _without_cast(e.b)]
        axes = [self.tiles.nest.used(x) for x in loads]
        if any(_is_load(x) is False for x in loads) or \
                any(len(a) != 2 or reduced[0] not in a for a in axes):
            return None
        return loads if dims[0] in axes[0] else loads[::-1]

    def _matmul(self, held: Value, factors: Sequence[Any], dims: list[int], inner: int) -> str:
        tiles, text = self.tiles, self.text
        self.cube = True
        inputs, types = [], []
        for factor, want in zip(factors, ((dims[0], inner), (inner, dims[1])), strict=True):
            value = tiles.value(factor)
            if value.type in FP8 and text.mode == "cpu":
                value = decode(text, value, tiles.nest.shape(value.dims))
            inputs.append(tiles.fit(value, want))
            types.append(text.tensor(tiles.nest.shape(want), value.type))
        ty = tiles.type(held)
        return text.op(f"linalg.matmul ins({', '.join(inputs)} : {', '.join(types)}) outs("
                       f"{held.ssa} : {ty}) -> {ty}")


def _is_load(e: Any) -> bool:
    while chosen := choice(e):
        e = chosen[1]
    return isinstance(e, ir.TensorLoad)


def _without_cast(e: Any) -> Any:
    while isinstance(e, tirx.Cast):
        e = e.value
    return e
