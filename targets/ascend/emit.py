"""TIR tile programs as block-level linalg MLIR: the form that bishengir-compile takes.

Two texts come from one program: the device's, and the CPU's, which cpu_run executes. They differ in
fp8 alone (bytes on the CPU). Form and rules: a block's index is an argument, every nest of loops is
one tile operation, tiles are tensors and loops carry those that they change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx

from .emit_memory import Memory
from .emit_nest import CONTROL, Nests
from .emit_scalar import Scalars, kind_of
from .emit_text import Mode, Text, element
from .emit_tile import Tiles


@dataclass(frozen=True)
class Emitted:
    """A kernel as MLIR text."""

    name: str
    text: str
    mix_mode: Literal["aiv", "aic", "mix"]       # vector cores, cube cores, or both
    written: tuple[int, ...]         # positions of the arguments that it writes


def emit(func: Any, mode: Mode) -> Emitted:
    """The text of a tile program (ops/_ascend/tile.py); CannotEmit names what it may not hold."""
    return _Function(func, mode).emit()


class _Function:
    def __init__(self, func: Any, mode: Mode):
        self.func = func
        self.text = Text(mode)
        self.scalars = Scalars(self.text)
        self.memory = Memory(self.text, self.scalars)
        self.tiles = Tiles(self.text, self.scalars, self.memory)
        self.nests = Nests(self.text, self.scalars, self.memory, self.tiles)

    def emit(self) -> Emitted:
        name, head = str(self.func.attrs["global_symbol"]), []
        for i, p in enumerate(self.func.params):
            if _is_tensor(p):
                self.scalars.tensors[p] = f"%a{i}"
                head.append(f"%a{i}: memref<?x{self.text.physical(element(p.dtype))}>")
            else:
                head.append(f"%a{i}: i32")
                self.scalars.env[p] = self.text.op(f"arith.index_cast %a{i} : i32 to index")
        self._statement(self.func.body)
        mix: Literal["aiv", "aic", "mix"] = "aiv" if not self.nests.cube else (
            "mix" if self.tiles.vector else "aic")
        arguments = ", ".join(["%lock: memref<?xi8>", "%workspace: memref<?xi8>", *head,
                               *(f"%{n}: i32" for n in ("gx", "gy", "gz", "px", "py", "pz"))])
        body = "\n".join(self.text.lines)
        return Emitted(name, (
            f"module {{\n  func.func @{name}({arguments}) attributes {{SyncBlockLockArgIdx = 0 : "
            f'i64, WorkspaceArgIdx = 1 : i64, global_kernel = "local", mix_mode = "{mix}", '
            f'parallel_mode = "simd"}} {{\n{body}\n    return\n  }}\n}}\n'),
            mix, tuple(i for i, p in enumerate(self.func.params) if p in self.nests.written))

    def _statement(self, s: Any) -> None:
        if kind_of(s) == "SBlockRealize":
            self._statement(s.block.body)
        elif isinstance(s, tirx.SeqStmt):
            for inner in s.seq:
                self._statement(inner)
        elif isinstance(s, tirx.For) and s.kind == tirx.ForKind.THREAD_BINDING:
            axis = s.thread_binding.thread_tag[-1]
            self.scalars.bind(s)
            self.scalars.env[s.loop_var] = self.text.op(f"arith.index_cast %p{axis} : i32 to index")
            self._statement(s.body)
        elif isinstance(s, tirx.For) and CONTROL in s.annotations:
            self._loop(s)
        else:
            self.nests.store(s)

    def _loop(self, loop: Any) -> None:
        """A loop in time; the tiles that it changes go round with it."""
        text, held = self.text, self.tiles.held
        carried = [b for b in dict.fromkeys(_stored(loop.body)) if b in held]
        self.tiles.raw -= {b for b in carried if b not in _only_cube(loop.body)}
        self.tiles.fresh -= set(carried)
        types = [text.tensor([int(n) for n in b.shape], element(b.dtype)) for b in carried]
        self.scalars.bind(loop)
        low, high = self.scalars.index(loop.min), self.scalars.index(loop.min + loop.extent)
        step, counter = text.constant(1, "index"), text.name()
        results, inner = [text.name() for _ in carried], [text.name() for _ in carried]
        head = f"scf.for {counter} = {low} to {high} step {step}"
        if carried:
            starts = ", ".join(f"{name} = {held[b]}"
                               for name, b in zip(inner, carried, strict=True))
            head = f"{', '.join(results)} = {head} iter_args({starts}) -> ({', '.join(types)})"
        text.put(head + " {")
        text.indent += 1
        self.scalars.env[loop.loop_var] = counter
        before = set(held)
        held.update(zip(carried, inner, strict=True))
        self._statement(loop.body)
        if carried:
            text.put(f"scf.yield {', '.join(held[b] for b in carried)} : {', '.join(types)}")
        text.indent -= 1
        text.put("}")
        held.update(zip(carried, results, strict=True))
        for b in set(held) - before:     # a tile of one round is not known after the loop
            del held[b]


def _is_tensor(parameter: Any) -> bool:
    return hasattr(parameter, "shape") and hasattr(parameter, "dtype") and \
        kind_of(parameter.ty) != "PrimType"


def _stored(s: Any) -> Iterator[Any]:
    """The buffers that a statement stores to."""
    if isinstance(s, tirx.BufferStore):
        yield s.buffer
    elif isinstance(s, tirx.SeqStmt):
        for inner in s.seq:
            yield from _stored(inner)
    elif kind_of(s) == "SBlockRealize":
        yield from _stored(s.block.body)
    else:
        yield from _stored(s.then_case if isinstance(s, tirx.IfThenElse) else s.body)


def _only_cube(s: Any) -> set[Any]:
    """Not known without a second walk: tiles that only matrix products write in a loop."""
    vector: set[Any] = set()
    cube: set[Any] = set()

    def walk(x: Any) -> None:
        if isinstance(x, tirx.BufferStore):
            product = kind_of(x.value) == "Add" and kind_of(x.value.b) == "Mul"
            (cube if product else vector).add(x.buffer)
        elif isinstance(x, tirx.SeqStmt):
            for inner in x.seq:
                walk(inner)
        elif kind_of(x) == "SBlockRealize":
            walk(x.block.body)
        else:
            walk(x.then_case if isinstance(x, tirx.IfThenElse) else x.body)

    walk(s)
    return cube - vector
