"""Tile expressions: TIR's element-wise arithmetic as operations on whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import ir, tirx

from .emit_fp8 import decode, encode
from .emit_memory import Memory, Nest, bounds_of
from .emit_scalar import COMPARE, Scalars, call_name, choice, dtype_of, kind_of, parts
from .emit_text import FP8, WIDTHS, CannotEmit, Text, Value, element, is_float, listed

_BINARY = {"Add": ("addf", "addi"), "Sub": ("subf", "subi"), "Mul": ("mulf", "muli"),
           "Div": ("divf", "divsi"), "Max": ("maximumf", "maxsi"), "Min": ("minimumf", "minsi")}
_BITWISE = {"bitwise_and": "andi", "bitwise_or": "ori", "bitwise_xor": "xori",
            "shift_left": "shli", "shift_right": "shrsi", "BitwiseAnd": "andi",
            "BitwiseOr": "ori", "BitwiseXor": "xori", "LShift": "shli", "RShift": "shrsi"}
_UNARY = {"exp": "math.exp", "sqrt": "math.sqrt", "rsqrt": "math.rsqrt", "fabs": "math.absf",
          "abs": "math.absf", "log": "math.log", "tanh": "math.tanh"}


class Tiles:
    """Writes the value that a nest stores; knows what each tile holds."""

    def __init__(self, text: Text, scalars: Scalars, memory: Memory):
        self.text, self.scalars, self.memory = text, scalars, memory
        self.held: dict[Any, str] = {}           # tile -> SSA tensor
        self.raw: set[Any] = set()               # tiles that only the cube has written
        self.fresh: set[Any] = set()             # tiles that hold one number everywhere
        self.vector = False                      # whether the vector core has work
        self.nest = Nest((), ())
        self.mask: Any = None                    # of the nest: nothing else may be read

    def is_tile(self, e: Any) -> bool:
        """Whether a value differs along the nest: it has an axis, or reads a tile."""
        return any(isinstance(x, ir.TensorLoad) and x.source not in self.scalars.tensors
                   for x in parts(e)) or bool(self.nest.used(e))

    def value(self, e: Any) -> Value:
        """The value of an expression over the nest."""
        if not self.is_tile(e):
            kind = "i1" if dtype_of(e) == "bool" else element(dtype_of(e))
            ssa = self.scalars.condition(e) if kind == "i1" else self.scalars.number(e, kind)
            return Value(ssa, (), kind)
        name = kind_of(e)
        if isinstance(e, ir.TensorLoad):
            return self.load(e)
        if isinstance(e, tirx.Cast):
            return self._cast(e)
        if chosen := choice(e):
            return self._choose(*chosen)
        if name in _BINARY or name in COMPARE or name in ("And", "Or"):
            return self._binary(name, e.a, e.b)
        if name in _BITWISE:
            return self._operate(f"arith.{_BITWISE[name]}", self.value(e.a), self.value(e.b))
        if name == "Not":
            return self._operate("arith.xori", self.value(e.a), Value(
                self.text.op("arith.constant true"), (), "i1"))
        if isinstance(e, ir.Var):
            return self._axis(e)
        return self._call(e)

    def load(self, e: Any, mask: Any = None, other: str | None = None) -> Value:
        """What a load reads: from a tensor argument, or a tile that must be read whole."""
        if e.source in self.scalars.tensors:
            masks = [m for m in (mask, self.mask) if m is not None]
            whole = None if not masks else masks[0] if len(masks) == 1 else tirx.And(*masks)
            bounds = {} if whole is None else bounds_of(self.scalars, self.nest, whole)
            if self.memory.loops(self.nest, list(e.indices)):
                self.vector = True       # rows are gathered through the vector core's buffer
            return self.memory.load(self.nest, e.source, list(e.indices), bounds, other)
        if e.source not in self.held:
            raise CannotEmit(f"{e.source} is read before it is written")
        dims, units = [], []
        for at, (i, extent) in enumerate(zip(e.indices, e.source.shape, strict=True)):
            axes = self.nest.used(i)
            if not axes and int(extent) == 1:
                units.append(at)
            elif len(axes) != 1 or not self.nest.axes[axes[0]].same_as(i) or \
                    self.nest.extents[axes[0]] != int(extent):
                raise CannotEmit(f"a tile is read whole, one axis for each of its own, got {e}")
            else:
                dims.append(axes[0])
        kind, ssa = element(e.source.dtype), self.held[e.source]
        if units:
            ssa = self._without_units(ssa, [int(n) for n in e.source.shape], units, kind)
        return Value(ssa, tuple(dims), kind)

    def _without_units(self, ssa: str, shape: list[int], units: list[int], kind: str) -> str:
        """A tensor without axes of size 1, which follow the last other axis."""
        keep = [at for at in range(len(shape)) if at not in units]
        if not keep or keep != list(range(len(keep))):
            raise CannotEmit(f"axes of size 1 can be dropped from the end only, got {shape}")
        groups = [[at] for at in keep[:-1]] + [list(range(keep[-1], len(shape)))]
        return self.text.op(f"tensor.collapse_shape {ssa} {groups} : "
                            f"{self.text.tensor(shape, kind)} into "
                            f"{self.text.tensor([shape[at] for at in keep], kind)}")

    def fit(self, value: Value, dims: Sequence[int]) -> str:
        """The SSA tensor of a value over exactly these axes: transposed, repeated, filled."""
        text, shape = self.text, self.nest.shape(dims)
        if not value.dims:
            return text.fill(value.ssa, shape, value.type)
        order = tuple(d for d in dims if d in value.dims)
        ssa = value.ssa
        if order != value.dims:
            sorted_shape = self.nest.shape(order)
            into = text.empty(sorted_shape, value.type)
            ssa = text.op(f"linalg.transpose ins({ssa} : {self.type(value)}) outs({into} : "
                          f"{text.tensor(sorted_shape, value.type)}) permutation = "
                          f"{listed([value.dims.index(d) for d in order])}")
        if len(order) < len(dims):
            missing = [at for at, d in enumerate(dims) if d not in order]
            into = text.empty(shape, value.type)
            ssa = text.op(
                f"linalg.broadcast ins({ssa} : {text.tensor(self.nest.shape(order), value.type)}) "
                f"outs({into} : {text.tensor(shape, value.type)}) dimensions = {listed(missing)}")
        return ssa

    def type(self, value: Value) -> str:
        """The tensor type of a value."""
        return self.text.tensor(self.nest.shape(value.dims), value.type)

    def _axis(self, axis: Any) -> Value:
        d = self.nest.used(axis)[0]
        ty = self.text.tensor([self.nest.extents[d]], "i32")
        into = self.text.empty([self.nest.extents[d]], "i32")
        at = self.text.name()
        body = (f"^bb0({at}o: i32): {at} = linalg.index 0 : index {at}i = arith.index_cast {at} : "
                f"index to i32 linalg.yield {at}i : i32")
        return Value(self.text.op(
            "linalg.generic {indexing_maps = [affine_map<(d0) -> (d0)>], iterator_types = "
            f'["parallel"]}} outs({into} : {ty}) {{ {body} }} -> {ty}'), (d,), "i32")

    def _operate(self, name: str, *values: Value, result: str = "") -> Value:
        """An element-wise operation on values of one type."""
        dims = tuple(sorted({d for v in values for d in v.dims}))
        kind = values[-1].type
        inputs = [self.fit(v, dims) for v in values]
        self.vector = True
        ty = self.text.tensor(self.nest.shape(dims), kind)
        return Value(self.text.op(f"{name} {', '.join(inputs)} : {ty}"), dims, result or kind)

    def _binary(self, name: str, left: Any, right: Any) -> Value:
        a, b = self.value(left), self.value(right)
        if name in COMPARE:
            integer, floating = COMPARE[name]
            how = f"arith.cmpf {floating}," if is_float(a.type) else f"arith.cmpi {integer},"
            return self._operate(how, a, b, result="i1")
        if name in ("And", "Or"):
            return self._operate(f"arith.{'andi' if name == 'And' else 'ori'}", a, b)
        return self._operate(f"arith.{_BINARY[name][0 if is_float(a.type) else 1]}", a, b)

    def _choose(self, mask: Any, then: Any, other: Any) -> Value:
        copied = isinstance(then, ir.TensorLoad) and then.source in self.scalars.tensors
        if copied and not self.is_tile(other):
            return self.load(then, mask, self._filler(other, element(then.source.dtype)))
        condition, a, b = self.value(mask), self.value(then), self.value(other)
        if not condition.dims and not (a.dims or b.dims):
            raise CannotEmit(f"a choice between scalars has no tile: {mask}")
        dims = tuple(sorted({*condition.dims, *a.dims, *b.dims}))
        inputs = [self.fit(v, dims) for v in (condition, a, b)]
        self.vector = True
        shape = self.nest.shape(dims)
        return Value(self.text.op(f"arith.select {', '.join(inputs)} : "
                                  f"{self.text.tensor(shape, 'i1')}, "
                                  f"{self.text.tensor(shape, a.type)}"), dims, a.type)

    def _filler(self, other: Any, kind: str) -> str:
        physical = self.text.physical(kind)
        if kind in FP8 and float(getattr(other, "value", 1)) != 0.0:
            raise CannotEmit(f"an fp8 tile is filled with 0 only, got {other}")
        return self.scalars.number(other, kind) if physical == kind else self.text.constant(0, "i8")

    def _cast(self, e: Any) -> Value:
        to, inner, rounded = element(dtype_of(e)), e.value, False
        if call_name(inner) in ("round", "nearbyint") and not is_float(to):
            inner, rounded = inner.args[0], True
        plain = not (isinstance(inner, ir.TensorLoad) and inner.source in self.raw)
        return self.cast(self.value(inner), to, rounded, plain)

    def cast(self, value: Value, to: str, rounded: bool = False, on_vector: bool = True) -> Value:
        """A value in another type; `rounded` to the nearest even integer, else cut off."""
        text, kind = self.text, value.type
        if kind == to:
            return value
        # the cube's own store narrows its float32 results for nothing
        self.vector = self.vector or on_vector or to not in ("f16", "bf16")
        if text.mode == "cpu" and (kind in FP8 or to in FP8):
            shape = self.nest.shape(value.dims)
            if kind in FP8:
                return self.cast(decode(text, value, shape), to, rounded)
            return encode(text, self.cast(value, "f32"), shape, to)
        before = self.type(value)
        after = text.tensor(self.nest.shape(value.dims), to)
        if rounded:
            into = text.empty(self.nest.shape(value.dims), to)
            ssa = text.op(f"hfusion.cast {{round_mode = #hfusion.round_mode<rint>}} ins({value.ssa}"
                          f" : {before}) outs({into} : {after}) -> {after}")
            return Value(ssa, value.dims, to)
        wider = WIDTHS[to] > WIDTHS[kind]
        name = {(True, True): "extf" if wider else "truncf", (True, False): "fptosi",
                (False, True): "uitofp" if kind == "i1" else "sitofp",
                (False, False): ("extui" if kind == "i1" else "extsi") if wider else "trunci",
                }[is_float(kind), is_float(to)]
        return Value(text.op(f"arith.{name} {value.ssa} : {before} to {after}"), value.dims, to)

    def _call(self, e: Any) -> Value:
        name = call_name(e)
        if name in _BITWISE:
            return self._operate(f"arith.{_BITWISE[name]}", *map(self.value, e.args))
        if name in _UNARY:
            return self._operate(_UNARY[name], self.value(e.args[0]))
        if name == "reinterpret":
            value, to = self.value(e.args[0]), element(dtype_of(e))
            after = self.text.tensor(self.nest.shape(value.dims), to)
            self.vector = True
            return Value(self.text.op(f"arith.bitcast {value.ssa} : {self.type(value)} to {after}"),
                         value.dims, to)
        raise CannotEmit(f"{name or kind_of(e)} cannot be emitted: {e}")
