"""Seeded corruptions of compiled Ascend modules: each should make a kernel wrong on the device."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

_FLAG_LINE = re.compile(r"hivm\.hir\.(?P<act>set|wait)_flag\[<PIPE_(\w+)>, <PIPE_(\w+)>")
_EVENT = re.compile(r"EVENT_ID(\d)")
_FLAG = re.compile(r"flag = (\d+)")
# Waits that carry data on, with nothing else to order the two; a wait for a buffer to be free is
# often implied by another one, and moving it then changes nothing.
_DATA = re.compile(r"wait_flag\[<PIPE_(?:MTE2>, <PIPE_V|V>, <PIPE_MTE3|M>, <PIPE_FIX)>")
_POINTER = re.compile(r"(%[\w-]+) = hivm\.hir\.pointer_cast\((%[\w-]+)\) : memref<([^,>]+).*"
                      r"address_space<(\w+)>")
_SIZES = re.compile(r"memref\.(?:reinterpret_cast|subview) %")
_LISTS = re.compile(r"\[([^\[\]]*)\]")
_OTHER_PIPE = {"MTE2": "MTE3", "MTE3": "MTE2", "V": "MTE3", "MTE1": "V", "M": "V", "FIX": "MTE2",
               "S": "V"}
KINDS = ("removed", "cross-core", "no barrier", "event", "pipe", "swapped", "late", "address",
         "size")


@dataclass(frozen=True)
class Mutation:
    """A corrupted text and what was done to it."""

    kind: str
    line: int
    text: str


def mutations(text: str, seed: int) -> list[Mutation]:
    """All corruptions of a module, in random order."""
    lines = text.splitlines()
    found = [*_removed(lines), *_renamed(lines), *_swapped(lines), *_late(lines), *_moved(lines),
             *_resized(lines)]
    random.Random(seed).shuffle(found)
    return found


def some(text: str, seed: int, each: int) -> list[Mutation]:
    """At most `each` corruptions of every kind."""
    found: dict[str, list[Mutation]] = {kind: [] for kind in KINDS}
    for m in mutations(text, seed):
        if len(found[m.kind]) < each:
            found[m.kind].append(m)
    return [m for kind in KINDS for m in found[kind]]


def _with(lines: Sequence[str], i: int, *instead: str) -> str:
    return "\n".join([*lines[:i], *instead, *lines[i + 1:]])


def _removed(lines: list[str]) -> Iterator[Mutation]:
    """A set, a wait or a barrier that is missing."""
    for i, line in enumerate(lines):
        if _FLAG_LINE.search(line):
            yield Mutation("removed", i + 1, _with(lines, i))
        if "sync_block_set[" in line or "sync_block_wait[" in line:
            yield Mutation("cross-core", i + 1, _with(lines, i))
        if "pipe_barrier" in line and "PIPE_ALL" not in line:
            yield Mutation("no barrier", i + 1, _with(lines, i))


def _renamed(lines: list[str]) -> Iterator[Mutation]:
    """A set or wait of another event, or of another pipe."""
    for i, line in enumerate(lines):
        other = _EVENT.sub(lambda m: f"EVENT_ID{(int(m[1]) + 1) % 8}", line)
        if "sync_block" in line:
            other = _FLAG.sub(lambda m: f"flag = {int(m[1]) + 1}", line)
        if other != line:
            yield Mutation("event", i + 1, _with(lines, i, other))
        if flag := _FLAG_LINE.search(line):
            first = f"[<PIPE_{flag[2]}>"
            yield Mutation("pipe", i + 1, _with(lines, i, line.replace(
                first, f"[<PIPE_{_OTHER_PIPE[flag[2]]}>", 1)))


def _swapped(lines: list[str]) -> Iterator[Mutation]:
    """A wait where its set stands and the other way round."""
    for i, line in enumerate(lines):
        flag = _FLAG_LINE.search(line)
        if flag and flag["act"] == "set":
            wait = line.replace("set_flag", "wait_flag", 1)
            j = next((j for j in range(i + 1, len(lines)) if lines[j] == wait), None)
            if j is not None:
                yield Mutation("swapped", i + 1, "\n".join(
                    [*lines[:i], wait, *lines[i + 1:j], line, *lines[j + 1:]]))


def _late(lines: list[str]) -> Iterator[Mutation]:
    """A wait that comes after the call which needs it."""
    for i, line in enumerate(lines):
        if not _DATA.search(line):
            continue
        after = next(j for j in range(i, len(lines)) if "call @" in lines[j]
                     or lines[j].lstrip().startswith("}"))
        if "call @" in lines[after]:
            moved = [*lines[:i], *lines[i + 1:after + 1], line, *lines[after + 1:]]
            yield Mutation("late", i + 1, "\n".join(moved))


def _moved(lines: list[str]) -> Iterator[Mutation]:
    """A buffer that is put on another one that holds data when it is first written."""
    constants = dict(re.findall(r"(%[\w-]+) = arith\.constant (-?\d+) : i64", "\n".join(lines)))
    head = 0
    for end in [i for i, line in enumerate(lines) if line == "  }"]:
        head = next(i for i in range(head, end) if "func.func @" in lines[i])
        buffers, uses = _buffers(lines, head, end)
        for (at, (operand, space)), (other, (target, room)) in product(buffers.items(), repeat=2):
            if at == other or space != room or not uses[at] or not uses[other] or not (
                    uses[other][0] < uses[at][0] < uses[other][-1]):
                continue
            changed = lines[at].replace(f"({operand})", "(%moved)")
            yield Mutation("address", at + 1, "\n".join([
                *lines[:head + 1], f"    %moved = arith.constant {constants[target]} : i64",
                *lines[head + 1:at], changed, *lines[at + 1:]]))
        head = end


def _resized(lines: list[str]) -> Iterator[Mutation]:
    """A view whose last written-out size is halved, or doubled, or whose offset is off."""
    for i, line in enumerate(lines):
        if not _SIZES.search(line) or " : " not in line:
            continue
        body, _, types = line.partition(" : ")
        lists = list(_LISTS.finditer(body))
        sizes = lists[1]
        numbers = [t.strip() for t in sizes[1].split(",")]
        big = [k for k, t in enumerate(numbers) if t.isdigit() and int(t) > 1]
        if not big or not _used_by_call(lines, i):
            continue
        for factor in (0.5, 2.0):
            changed = list(numbers)
            changed[big[-1]] = str(max(1, int(int(changed[big[-1]]) * factor)))
            yield Mutation("size", i + 1, _with(
                lines, i, f"{body[:sizes.start()]}[{', '.join(changed)}]{body[sizes.end():]} : "
                          f"{types}"))


def _used_by_call(lines: list[str], at: int) -> bool:
    """Whether a view goes to a library call as it is, or cast only."""
    name = lines[at].strip().partition(" = ")[0]
    users = [line for line in lines[at + 1:at + 12] if re.search(rf"{re.escape(name)}\b", line)]
    return bool(users) and all("call @" in u or "memref.cast" in u for u in users)


def _buffers(lines: list[str], head: int, end: int
             ) -> tuple[dict[int, tuple[str, str]], dict[int, list[int]]]:
    """The buffers of a function by line, and the lines of the calls that use each."""
    buffers: dict[int, tuple[str, str]] = {}
    uses: dict[int, list[int]] = {}
    roots: dict[str, int] = {}           # names may come again in another region
    unsure: set[int] = set()
    for i in range(head, end):
        line = lines[i]
        if (pointer := _POINTER.search(line)) and "<0x" not in line:
            buffers[i], uses[i] = (pointer[2], pointer[4]), []
            roots[pointer[1]] = i
            continue
        names = re.findall(r"%[\w-]+", line.split(" : ")[0])
        made, _, text = line.strip().partition(" = ")
        if text.startswith("memref."):
            source = re.findall(r"%[\w-]+", text)[0]
            roots.pop(names[0], None)
            if source in roots:
                roots[names[0]] = roots[source]
        elif "call @" in line:
            for root in {roots[name] for name in names if name in roots}:
                uses[root].append(i)
        elif any(word in line for word in ("arith.select", "scf.yield", "iter_args")):
            unsure |= {roots[name] for name in names if name in roots}   # which one, or how long
    return {i: b for i, b in buffers.items() if i not in unsure}, uses
