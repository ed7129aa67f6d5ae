"""The cores of one block: they walk their function in program order and check each access."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch

from .clocks import Clock, CrossCore, Fault, Pipes
from .library import work
from .memory import Space, View, poison_of
from .operations import Values, memref_op, scalar_op
from .parse import Evaluate, Function, Op
from .work import NotModelled, Work, tiled, untiled

_EVENT = re.compile(r"\[<PIPE_(\w+)>, <PIPE_(\w+)>, (?:<EVENT_ID(\d)>|(%[\w#-]+))\]")
_BARRIER = re.compile(r"\[<PIPE_(\w+)>\]")
_BLOCK_FLAG = re.compile(r"\[<(?:CUBE|VECTOR)>, <PIPE_(\w+)>, <PIPE_(\w+)>\] flag = (\d+|%[\w#-]+)")
_CALL = re.compile(r"@(\w+)\((.*?)\) : \(")
_FOR = re.compile(r"(\S+) = (\S+) to (\S+) step (\S+)(?: iter_args\((.*?)\) ->)?")
_MMA = re.compile(r"mma_tile_\w+_to_(?:float|int32_t)(?P<tb>_tb)?")
# They set up the core; nothing else depends on them here.
_NO_EFFECT = frozenset(("hivm.hir.set_mask_norm", "hivm.hir.set_ffts_base_addr"))
_OF_MEMREFS = ("hivm.hir.pointer_cast", "hivm.hir.bitcast")

Walk = Generator[None, None, list[Any]]


class Core:
    """One core of a block: its memories, pipes and the values of its function."""

    def __init__(self, number: int, cores: int, function: Function, maps: Mapping[str, Evaluate],
                 spaces: Mapping[str, Space], arguments: Sequence[Any], block: int,
                 cross: CrossCore):
        self.number, self.function, self.spaces = number, function, spaces
        self.pipes = Pipes(number, cores)
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
        for op in ops:
            try:
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
        if op.name in _NO_EFFECT:
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
            self._access(self.pipes.issue("S"), (view,), ())
            self.values.set(op.results, [view.read().item()])
        elif op.name == "memref.store":
            view = memref_op(op, self.values, self.spaces, self._owners)
            self._access(self.pipes.issue("S"), (), (view,))
            view.write(torch.tensor(self.values[_names(op.rest)[0]]))
        elif op.name.startswith("memref.") or op.name in _OF_MEMREFS:
            made = memref_op(op, self.values, self.spaces, self._owners)
            self.values.set(op.results, made if isinstance(made, list) else [made])
        else:
            self.values.set(op.results, [scalar_op(op, self.values)])

    def _call(self, op: Op) -> None:
        match = _CALL.match(op.rest)
        assert match is not None, op.rest
        args = [self.values[v] for v in _names(match[2])]
        if mma := _MMA.fullmatch(match[1]):
            self._product(args, bool(mma["tb"]))
        else:
            self._do(work(match[1], args))

    def _do(self, work_: Work) -> None:
        _check_operands(work_)
        result = work_.compute([view.read() for view in work_.reads])
        self._access(self.pipes.issue(work_.pipe), work_.reads, (work_.write,), work_.scratch)
        for view in work_.scratch:   # its content is anybody's guess afterwards
            view.space.data.numpy()[view.span()] = 0xFF
        work_.write.write(result)

    def _product(self, args: Sequence[Any], b_transposed: bool) -> None:
        """mma_tile_*: L1 to L0 on MTE1, which waits and sets by itself, then the product on M."""
        a, b, fresh, m, k, n, c, wait_a, wait_b, free_a, free_b, _, extra, unit, mode = args
        if (extra, unit, mode) != (-1, -1, 0):
            raise NotModelled(f"mma_tile with unit flags: {extra}, {unit}, {mode}")
        for event in (wait_a, wait_b):
            if event >= 0:
                self.pipes.wait_flag("MTE2", "MTE1", event)
        loading = self.pipes.issue("MTE1")
        self._access(loading, (a, b), ())
        for event in (free_a, free_b):
            if event >= 0:
                self.pipes.set_flag("MTE1", "MTE2", event)
        self.pipes.join("M", self.pipes.ended("MTE1"))
        left, right = untiled(a.read()), untiled(b.read())
        left = left[:m, :k]
        right = right[:n, :k].T if b_transposed else right[:k, :n]
        exact = torch.int32 if c.dtype == "i32" else torch.float32
        whole = untiled(c.read()) if not fresh else torch.full(
            (c.sizes[1] * c.sizes[2], c.sizes[0] * c.sizes[3]), poison_of(exact), dtype=exact)
        if fresh:
            whole[:m, :n] = 0
        self._access(self.pipes.issue("M"), () if fresh else (c,), (c,))
        whole[:m, :n] += left.to(exact) @ right.to(exact)
        c.write(tiled(whole, c))

    def _access(self, token: tuple[int, int, Clock], reads: Sequence[View],
                writes: Sequence[View], scratch: Sequence[View] = ()) -> None:
        """Order an operation after all that touched its bytes before."""
        thread, number, began = token
        for view in reads:
            view.space.check_read(view.span(), began)
        # a call orders its scratch after the same scratch of the call before: loops have no barrier
        used = [view for view in scratch
                if (view.space.owner[view.span()] != view.owner).any()]
        for view in (*writes, *used):
            view.space.check_write(view.span(), began)
        for view in reads:
            view.space.note_read(view.span(), thread, number)
        for view in (*scratch, *writes):
            view.space.note_write(view.span(), thread, number, view.owner)


def _check_operands(work_: Work) -> None:
    """A result may stand on a source from its first byte on; scratch on nothing at all."""
    pairs = [(a, work_.write, True) for a in work_.reads]
    pairs += [(a, b, False) for a in (*work_.reads, work_.write) for b in work_.scratch]
    for a, b, in_place in pairs:
        first, second = a.span(), b.span()
        if a.space is not b.space or not isinstance(first, slice) or not isinstance(second, slice):
            continue
        apart = max(first.start, second.start) >= min(first.stop, second.stop)
        # a result with other sizes would overwrite what is still to be read
        in_place = in_place and first.start == second.start and prod(a.sizes) == prod(b.sizes)
        if not apart and not in_place:
            raise Fault(f"{a.space.name}: one call's operands at {first.start} and {second.start} "
                        "overlap")


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


