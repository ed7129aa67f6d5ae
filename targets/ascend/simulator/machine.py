"""The cores of one block: they walk their function in program order and check each access."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import torch

from .clocks import IN_ORDER, IN_ORDER_950, Clock, CrossCore, Fault, Pipes
from .cube import product
from .library import work
from .memory import DTYPES, Space, View, poison_of
from .opaque import VectorFunction
from .operations import memref_op, scalar_op, stack_of
from .parse import Evaluate, Function, Op
from .trace import Access
from .values import Values
from .work import NotModelled, Work, check_operands

_EVENT = re.compile(r"\[<PIPE_(\w+)>, <PIPE_(\w+)>, (?:<EVENT_ID(\d)>|(%[\w#-]+))\]")
_BARRIER = re.compile(r"\[<PIPE_(\w+)>\]")
_BLOCK_FLAG = re.compile(r"\[<(?:CUBE|VECTOR)>, <PIPE_(\w+)>, <PIPE_(\w+)>\] flag = (\d+|%[\w#-]+)")
_CALL = re.compile(r"@(\w+)\((.*?)\)(?: \{.*?\})? : \(")
_FOR = re.compile(r"(\S+) = (\S+) to (\S+) step (\S+)(?: iter_args\((.*?)\) ->)?")
_TARGET = re.compile(r"(\^bb\d+)(?:\((.*?)\))?")
_MMA = re.compile(r"mma_tile_\w+_to_(?:float|int32_t)(?P<tb>_tb)?")
# They set up the core; nothing else depends on them here.
_NO_EFFECT = frozenset(("hivm.hir.set_mask_norm", "hivm.hir.set_ffts_base_addr",
                        "hivm.hir.set_ctrl"))
_OF_MEMREFS = ("hivm.hir.pointer_cast", "hivm.hir.bitcast")

Walk = Generator[None, None, list[Any]]


class Core:
    """One core of a block: its memories, pipes and the values of its function."""

    def __init__(self, number: int, cores: int, function: Function, maps: Mapping[str, Evaluate],
                 spaces: Mapping[str, Space], arguments: Sequence[Any], block: int,
                 cross: CrossCore, trace: list[Access] | None = None,
                 opaque: Mapping[str, VectorFunction] | None = None):
        self._trace, self._block, self._opaque = trace, block, opaque or {}
        self.number, self.function, self.spaces = number, function, spaces
        self.pipes = Pipes(number, cores, IN_ORDER if opaque is None else IN_ORDER_950)
        self._cross = cross
        self._fixed = {"hivm.hir.get_block_idx": block,
                       "hivm.hir.get_sub_block_idx": max(number - 1, 0)}
        names = [a.name for a in function.arguments]
        self.values = Values(maps, dict(zip(names, arguments, strict=True)))
        self._owners: dict[int, int] = {}

    def run(self) -> Iterator[None]:
        """Walk the function; yields while it waits for another core."""
        yield from self._walk(self.function.body)
        self.pipes.check_no_event_is_set()

    def _walk(self, ops: Sequence[Op]) -> Walk:
        at = 0
        while at < len(ops):
            op, at = ops[at], at + 1
            try:
                if op.name in ("cf.br", "cf.cond_br"):
                    at = self._jump(op, ops)
                    continue
                if op.name in ("scf.yield", "return"):
                    return [self.values[v] for v in _names(op.rest)]
                if op.name == "scf.for":
                    yield from self._loop(op)
                elif op.name == "scf.if":
                    taken = op.body if self.values[op.rest.split()[0]] else op.otherwise
                    self.values.set(op.results, (yield from self._walk(taken)))
                elif op.name == "hivm.hir.sync_block_wait":
                    yield from self._await(op)
                else:
                    self._step(op)
            except Fault as fault:
                raise (fault if "line" in str(fault) else Fault(
                    f"line {op.line} of {self.function.name}, core {self.number}: {fault}"
                )) from None
        return []

    def _jump(self, op: Op, ops: Sequence[Op]) -> int:
        """Where a branch leads (the 950's loops are branches); its operands become arguments."""
        targets = _TARGET.findall(op.rest)
        taken = 0 if op.name == "cf.br" or self.values[op.rest.split(",")[0]] else 1
        label, operands = targets[taken]
        at = next(i for i, o in enumerate(ops) if o.name == label)
        self.values.set(ops[at].results, [self.values[v] for v in _names(operands)])
        return at + 1

    def _loop(self, op: Op) -> Walk:
        match = _FOR.match(op.rest)
        assert match is not None, op.rest
        index, first, end, step, carried = match.groups()
        pairs = re.findall(r"(%[\w#-]+) = (%[\w#-]+)", carried or "")
        held = [self.values[start] for _, start in pairs]
        for i in range(*(self.values[v] for v in (first, end, step))):
            self.values.set((index, *(name for name, _ in pairs)), [i, *held])
            held = yield from self._walk(op.body)
        self.values.set(op.results, held)
        return []

    def _await(self, op: Op) -> Iterator[None]:
        pipe, flag = self._block_flag(op)[1:]
        while (clock := self._cross.wait(self.number, flag)) is None:
            yield
        self.pipes.join(pipe, clock)

    def _block_flag(self, op: Op) -> tuple[str, str, int]:
        match = _BLOCK_FLAG.match(op.rest)
        if match is None:
            raise NotModelled(f"{op.name} {op.rest}")
        return match[1], match[2], int(self.values[match[3]])

    def _step(self, op: Op) -> None:
        """One operation without a region."""
        if op.name in _NO_EFFECT or op.name.startswith("^"):
            return
        if op.name in self._fixed:
            self.values.set(op.results, [self._fixed[op.name]])
        elif op.name in ("hivm.hir.set_flag", "hivm.hir.wait_flag"):
            event = _EVENT.match(op.rest)
            assert event is not None, op.rest
            number = int(event[3] if event[3] else self.values[event[4]])
            act = self.pipes.set_flag if op.name.endswith("set_flag") else self.pipes.wait_flag
            act(event[1], event[2], number)
        elif op.name == "hivm.hir.pipe_barrier":
            barrier = _BARRIER.match(op.rest)
            assert barrier is not None, op.rest
            self.pipes.barrier(barrier[1])
        elif op.name == "hivm.hir.sync_block_set":
            pipe, _, flag = self._block_flag(op)
            self._cross.set(self.number, flag, self.pipes.ended(pipe))
        elif op.name in ("call", "func.call"):
            self._call(op)
        elif op.name == "memref.load":
            view = memref_op(op, self.values, self.spaces, self._owners)
            self.access(self.pipes.issue("S"), (view,), ())
            self.values.set(op.results, [view.read().item()])
        elif op.name == "memref.store":
            view = memref_op(op, self.values, self.spaces, self._owners)
            self.access(self.pipes.issue("S"), (), (view,))
            view.write(torch.tensor(self.values[_names(op.rest)[0]]))
        elif op.name == "memref.alloca":
            self.values.set(op.results, [stack_of(op)])
        elif op.name.startswith("memref.") or op.name in _OF_MEMREFS:
            made = memref_op(op, self.values, self.spaces, self._owners)
            self.values.set(op.results, made if isinstance(made, list) else [made])
        else:
            self.values.set(op.results, [scalar_op(op, self.values)])

    def _call(self, op: Op) -> None:
        match = _CALL.match(op.rest)
        assert match is not None, op.rest
        args = [self.values[v] for v in _names(match[2])]
        if match[1] in self._opaque:
            self._vector_function(self._opaque[match[1]], args)
        elif mma := _MMA.fullmatch(match[1]):
            product(self, args, bool(mma["tb"]))
        else:
            self._do(work(match[1], args))

    def _vector_function(self, function: VectorFunction, args: Sequence[Any]) -> None:
        """Its accesses; what it leaves is nobody's guess."""
        loads, stores = ([args[i] for i in which] for which in (function.loads, function.stores))
        self.access(self.pipes.issue("V"), loads, stores)
        for view in stores:
            view.write(torch.full(view.sizes, poison_of(DTYPES[view.dtype]))
                       if view.dtype != "i1" else torch.zeros(view.sizes, dtype=torch.bool))

    def _do(self, work_: Work) -> None:
        check_operands(work_)
        values = [view.read() for view in work_.reads]
        try:
            result = work_.compute(values).expand(work_.write.sizes)
        except RuntimeError as e:    # torch's word for sizes that do not fit
            raise Fault(f"a call's operands do not fit: {e}") from None
        self.access(self.pipes.issue(work_.pipe), work_.reads, (work_.write,), work_.scratch,
                     lambda: work_.write.would_change(result))
        for view in work_.scratch:   # its content is anybody's guess afterwards
            view.space.data.numpy()[view.span()] = 0xFF
        work_.write.write(result)

    def access(self, token: tuple[int, int, Clock], reads: Sequence[View],
                writes: Sequence[View], scratch: Sequence[View] = (),
                changes: Callable[[], bool] = lambda: True) -> None:
        """Order an operation after all that touched its bytes before."""
        thread, number, began = token
        for view in reads:
            view.space.check_read(view.span(), began)
        # a call orders its scratch after the same scratch of the call before: loops have no barrier
        used = [view for view in scratch
                if (view.space.owner[view.span()] != view.owner).any()]
        for view in (*writes, *used):
            view.space.check_write(view.span(), began, changes)
        if self._trace is not None:
            self._trace += self._accesses(token, reads, writes, scratch)
        for view in reads:
            view.space.note_read(view.span(), thread, number)
        for view in (*scratch, *writes):
            view.space.note_write(view.span(), thread, number, view.owner)


    def _accesses(self, token: tuple[int, int, Clock], reads: Sequence[View],
                  writes: Sequence[View], scratch: Sequence[View]) -> Iterator[Access]:
        for views, does_write in ((reads, False), (writes, True), (scratch, True)):
            for view in views:
                core = f" of core {self.number}" if view.space.on_chip else ""
                yield Access((self._block, view.space.name + core), *token, view.span(), does_write,
                             view.owner if views is scratch else -1)


def _names(text: str) -> list[str]:
    """The operands before the types."""
    return re.findall(r"%[\w#-]+", text.split(" : ")[0])


def run_block(cores: Sequence[Core], cross: CrossCore) -> None:
    """Let the cores of a block run until all have ended; a deadlock is a Fault."""
    waiting: dict[int, Iterator[None]] = {core.number: core.run() for core in cores}
    progress = True
    while waiting:
        if not progress:
            raise Fault(f"cores {sorted(waiting)} wait for cross-core flags that nobody sets")
        progress = False
        for number, walk in list(waiting.items()):
            before = cross.sets
            try:
                next(walk)
            except StopIteration:
                del waiting[number]
                progress = True
            progress |= cross.sets != before
    cross.check_no_flag_is_set()


