"""All blocks of a grid walk the compiled text at once, with a clock for each pipe.

As in the simulator a core's scalar unit hands operations to pipes, and only flags and barriers
order them; here an operation takes time and computes nothing. So whether copies hide behind work is
the artifact's own doing. Of a loop five rounds are walked, the first two, two in the middle and the
last; the middle ones stand for the rest.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .model_costs import ASSUMED, call, product
from .model_views import Known, Tile, Values, first_of, memref, names, negated, scalar
from .simulator.clocks import PIPES
from .simulator.parse import Evaluate, Function, Op

_EVENT = re.compile(r"\[<PIPE_(\w+)>, <PIPE_(\w+)>, (<EVENT_ID\d>|%[\w#-]+)\]")
_BARRIER = re.compile(r"\[<PIPE_(\w+)>\]")
_BLOCK_FLAG = re.compile(r"\[<(?:CUBE|VECTOR)>, <PIPE_(\w+)>, <PIPE_(\w+)>\] flag = (\d+|%[\w#-]+)")
_CALL = re.compile(r"@(\w+)\((.*?)\) : \(")
_FOR = re.compile(r"(\S+) = (\S+) to (\S+) step (\S+)(?: iter_args\((.*?)\) ->)?")
_FREE = frozenset(("hivm.hir.set_mask_norm", "hivm.hir.set_ffts_base_addr", "arith.constant",
                   "memref.cast", "hivm.hir.pointer_cast", "hivm.hir.bitcast"))
_OF_MEMREFS = ("hivm.hir.pointer_cast", "hivm.hir.bitcast")
_ROUNDS = 5                          # of a loop that are walked

Times = NDArray[np.float64]
Walk = Generator[None, None, list[Any]]
Turns = Generator[None, None, None]
Data = Mapping[int, NDArray[np.int64]]           # arguments whose content is known


class Cores:
    """One kind of core of every block: clocks, what was counted, and the values of its function."""

    def __init__(self, function: Function, maps: Mapping[str, Evaluate], arguments: Sequence[Any],
                 blocks: NDArray[np.int64], data: Data, flags: dict[str, deque[Times]],
                 gm_bytes: Callable[[Tile], Any]):
        self.function, self._blocks, self._data = function, blocks, data
        self._flags, self._gm_bytes = flags, gm_bytes
        self.sets = 0                # cross-core flags so far: whether a turn got anywhere
        self._mask: Any = True       # blocks that take part in what is walked
        # "S" ... "FIX": a pipe's clock; "set A B 0": when an event was set; "busy V": cycles of
        # work; "ops V": operations; "gm 3": bytes of an argument; "workspace"; "flops"; "skipped":
        # cycles of rounds that were not walked
        self.state: dict[str, Times] = {p: np.zeros(len(blocks)) for p in PIPES}
        self.values = Values(maps, dict(zip((a.name for a in function.arguments), arguments,
                                            strict=True)))

    def run(self) -> Iterator[None]:
        """Walk the function; yields while it waits for the other kind of core."""
        yield from self._walk(self.function.body)

    @property
    def ended(self) -> Times:
        """When all pipes have ended, in cycles."""
        return self._clock + self._get("skipped")

    @property
    def _clock(self) -> Times:
        clock: Times = np.maximum.reduce([self.state[p] for p in PIPES])
        return clock

    # ---- state

    def _get(self, key: str) -> Times:
        return self.state.setdefault(key, np.zeros(len(self._blocks)))

    def _put(self, key: str, value: Any) -> None:
        self.state[key] = np.where(self._mask, value, self._get(key))

    def _add(self, key: str, amount: Any) -> None:
        self._put(key, self._get(key) + amount)

    def _issue(self, pipe: str, cycles: Any) -> None:
        began = np.maximum(self._get(pipe), self._get("S"))
        self._put(pipe, began + cycles)
        self._add(f"busy {pipe}", cycles)
        self._add(f"ops {pipe}", 1.0)

    def _join(self, pipe: str, when: Any) -> None:
        self._put(pipe, np.maximum(self._get(pipe), when))

    # ---- control

    def _walk(self, ops: Sequence[Op]) -> Walk:
        for op in ops:
            if op.name in ("scf.yield", "return"):
                return [self.values[v] for v in names(op.rest)]
            if op.name == "scf.for":
                yield from self._loop(op)
            elif op.name == "scf.if":
                yield from self._branch(op)
            elif op.name == "hivm.hir.sync_block_wait":
                pipe, flag = self._block_flag(op)[1:]
                queue = self._flags.setdefault(f"{self._other} {flag}", deque())
                while not queue:
                    yield
                self._join(pipe, queue.popleft())
            else:
                self._step(op)
        return []

    def _branch(self, op: Op) -> Turns:
        condition, before = self.values[op.rest.split()[0]], self._mask
        results: list[list[Any]] = []
        for body, taken in ((op.body, condition), (op.otherwise, negated(condition))):
            self._mask = before if taken is None else before & np.asarray(taken, bool)
            results.append((yield from self._walk(body)) if body and np.any(self._mask) else [])
        self._mask = before
        yes, no = (r or [None] * len(op.results) for r in results)
        self.values.set(op.results, [y if n is None or condition is None or isinstance(y, Tile)
                                     or y is None else np.where(condition, y, n)
                                     for y, n in zip(yes, no, strict=False)])

    def _loop(self, op: Op) -> Turns:
        match = _FOR.match(op.rest)
        assert match is not None, op.rest
        index, first, end, step, carried = match.groups()
        pairs = re.findall(r"(%[\w#-]+) = (%[\w#-]+)", carried or "")
        held = [self.values[start] for _, start in pairs]
        low, high, by = (self.values[v] for v in (first, end, step))
        low, by = 0 if low is None else low, 1 if by is None else by
        # a count that nobody knows: once
        count = np.broadcast_to(np.asarray(1 if high is None else np.maximum(
            -(-(high - low) // np.maximum(by, 1)), 0)), self._blocks.shape)
        before = self._mask
        marks: dict[int, dict[str, Times]] = {}
        for n in range(min(_ROUNDS, int(np.max(np.where(before, count, 0), initial=0)))):
            self._mask = before & (n < count)
            self.values.set((index, *(name for name, _ in pairs)),
                            [low + _round(n, count) * by, *held])
            held = yield from self._walk(op.body)
            if n in (1, _ROUNDS - 2):
                marks[n] = dict(self.state)
            if n == _ROUNDS - 2:
                self._skip(marks[1], np.maximum(count - _ROUNDS, 0))
        self._mask = before
        self.values.set(op.results, held)

    def _skip(self, earlier: Mapping[str, Times], rounds: Any) -> None:
        """The rounds that are not walked take what the two in the middle took.

        Their time stands apart: what the other kind of core sees are clocks of walked rounds.
        """
        zero = np.zeros(len(self._blocks))
        clocks = np.maximum.reduce([earlier[p] for p in PIPES])
        changes = {k: self.state[k] - earlier.get(k, zero) for k in self.state
                   if k not in PIPES and not k.startswith("set ")}
        changes["skipped"] = changes.get("skipped", zero) + self._clock - clocks
        for key, change in changes.items():
            self._add(key, change / 2 * rounds)

    # ---- single operations

    @property
    def _other(self) -> str:
        return "AIV" if self.function.core == "AIC" else "AIC"

    def _block_flag(self, op: Op) -> tuple[str, str, str]:
        match = _BLOCK_FLAG.match(op.rest)
        assert match is not None, op.rest
        return match[1], match[2], str(first_of(self.values[match[3]]))

    def _step(self, op: Op) -> None:
        if op.name not in _FREE:
            self._add("S", ASSUMED["scalar_op"])
        if op.name in ("hivm.hir.set_flag", "hivm.hir.wait_flag"):
            event = _EVENT.match(op.rest)
            assert event is not None, op.rest
            number = str(first_of(self.values[event[3]])) if event[3][0] == "%" else event[3][9:-1]
            self._flag(op.name.endswith("set_flag"), event[1], event[2], number)
        elif op.name == "hivm.hir.pipe_barrier":
            barrier = _BARRIER.match(op.rest)
            if barrier is not None and barrier[1] == "ALL":
                self._join("S", self._clock)
        elif op.name == "hivm.hir.sync_block_set":
            pipe, _, flag = self._block_flag(op)
            self.sets += 1
            self._flags.setdefault(f"{self.function.core} {flag}", deque()).append(
                np.maximum(self._get(pipe), self._get("S")))
        elif op.name in ("call", "func.call"):
            self._call(op)
        elif op.name in ("memref.load", "memref.store"):
            self._add("S", ASSUMED["scalar_load"])
            self._add("ops S", 1.0)
            self.values.set(op.results, [self._loaded(op)])
        elif op.name == "hivm.hir.get_block_idx":
            self.values.set(op.results, [self._blocks])
        elif op.name == "hivm.hir.get_sub_block_idx":
            self.values.set(op.results, [0])
        elif op.name.startswith("memref.") or op.name in _OF_MEMREFS:
            made = memref(op, self.values)
            self.values.set(op.results, made if isinstance(made, list) else [made])
        elif op.name.startswith(("arith.", "affine.")):
            self.values.set(op.results, [scalar(op, self.values)])

    def _flag(self, sets: bool, source: str, target: str, number: str) -> None:
        key = f"set {source} {target} {number}"
        if sets:
            self._put(key, np.maximum(self._get(source), self._get("S")))
        else:
            self._join(target, self._get(key))

    def _loaded(self, op: Op) -> Known:
        """What the scalar unit reads, where the argument's content is known."""
        tile = self.values[names(op.rest)[0]]
        text = op.rest[op.rest.index("[") + 1:op.rest.index("]")] if "[" in op.rest else ""
        at = [self.values[v.strip()] for v in text.split(",") if v.strip()]
        if not isinstance(tile, Tile) or tile.array is None or op.name == "memref.store":
            return None
        known = self._data.get(tile.array)
        if known is None or tile.offset is None or any(i is None for i in at):
            return None
        strides = tile.strides or (1,)
        offset = tile.offset + sum(i * s for i, s in zip(at, strides, strict=False))
        return known[np.clip(offset, 0, len(known) - 1)] if len(known) else None

    def _call(self, op: Op) -> None:
        match = _CALL.match(op.rest)
        assert match is not None, op.rest
        args = [self.values[v] for v in names(match[2])]
        if cost := product(match[1], args):
            for event in args[7:9]:  # it waits and sets by itself
                if first_of(event) != -1:
                    self._flag(False, "MTE2", "MTE1", str(first_of(event)))
            began = np.maximum(self._get("MTE1"), self._get("S"))
            self._issue("MTE1", cost.fill)
            for event in args[9:11]:
                if first_of(event) != -1:
                    self._flag(True, "MTE1", "MTE2", str(first_of(event)))
            # the parts of the operands go through two halves of L0
            self._join("M", began + cost.fill / cost.parts)
            self._issue("M", cost.cube)
            self._join("M", self._get("MTE1") + cost.cube / cost.parts)
            self._add("flops", cost.flops)
            return
        other = call(match[1], args, self._gm_bytes)
        self._issue(other.pipe, other.cycles)
        if other.moved is not None:
            array = other.moved.array
            self._add("workspace" if array is None else f"gm {array}",
                      other.moved.elements * other.moved.width)


def _round(n: int, count: NDArray[np.int64]) -> NDArray[np.int64]:
    """The n-th of the rounds that are walked: 0, 1, two in the middle, the last."""
    if n < 2:
        return np.full(count.shape, n)
    middle = (count - 2) // 2 + n - 2
    return np.where(count <= _ROUNDS, n, middle if n < _ROUNDS - 1 else count - 1)
