"""Whether a tile program's buffers fit the chip, from its MLIR alone: a guess that errs one way.

The compiler plans memory, and its verdict counts; this says of which programs it is certain before
a second is spent on each. Tiles that live at once are added up as they stand in the text. Of L1 and
L0C the compiler needs just that when it switches its double buffering off; in UB it reuses more
than is assumed here and adds scratch. `python -m expertile.bench.ascend tiles` compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from .devices import Device, Space

_BITS = {"i1": 1, "i8": 8, "f8E4M3FN": 8, "f8E5M2": 8, "i16": 16, "f16": 16, "bf16": 16, "i32": 32,
         "f32": 32, "i64": 64}
# Refused programs needed at most 0.9 of what is counted here in UB (docs/facts.md).
_MORE: Mapping[Space, float] = {"ub": 1.1, "cbuf": 1.0, "cc": 1.0}
_FRACTAL = 16                        # rows of a cube tile are padded to this
_RESULT = re.compile(r"^(%\w+) = ([\w.]+)")
_TENSOR = re.compile(r"tensor<([0-9x]+)x(\w+)>")
_LOADED = re.compile(r"to_tensor (%\w+) restrict writable : memref<([0-9x]+)x(\w+)>")
_APART = re.compile(r"sizes: \[.*?(\w+)\], strides: \[(?:.*, )?(\w+)\]")
# An element that is fetched by itself takes a block of 32 bytes; and 15 such tiles were needed
# where 12 live at once (mla_kv_append's rotation).
_BLOCK = 40
_ALLOC = re.compile(r"^(%\w+) = memref\.alloc\(\)")
_PART = re.compile(r"memref\.subview (%\w+)\[")
_NAME = re.compile(r"%\w+")
_CARRIED = re.compile(r"(%\w+) = (%\w+)")
_NO_BUFFER = ("tensor.empty", "tensor.extract_slice", "tensor.collapse_shape",
              "tensor.expand_shape", "tensor.cast")


@dataclass
class _Tile:
    """A value of the text that needs memory."""

    size: int                        # bytes
    first: int                       # line
    last: int
    spaces: set[Space] = field(default_factory=set)
    dims: str = ""                   # "16x32"
    apart: bool = False              # loaded so that each element stands in a block of its own
    gathered: bool = False           # row by row, which the vector cores do, for a product too


@dataclass(frozen=True)
class Fit:
    """What a program needs of each space at most, in bytes, and whether that is there."""

    need: Mapping[Space, int]
    have: Mapping[Space, int]

    @property
    def fits(self) -> bool:
        """Sure to be accepted."""
        return all(self.need[s] <= self.have[s] for s in self.need)

    @property
    def reason(self) -> str:
        """Which space may be too small, with the numbers; "" when all fit."""
        return "; ".join(f"{s} may overflow: up to {8 * self.need[s]} of {8 * self.have[s]} bits"
                         for s in self.need if self.need[s] > self.have[s])


def fit(text: str, device: Device) -> Fit:
    """Judge the MLIR that a compile would get."""
    live = live_bytes(text)
    return Fit({s: int(_MORE[s] * live[s]) for s in live},
               {s: device.capacity(s) for s in live})


def live_bytes(text: str) -> dict[Space, int]:
    """The most bytes of tiles that are alive at once, for each space."""
    tiles = _tiles(text.splitlines())
    apart = {t.dims for t in tiles if t.apart}
    for tile in tiles:               # what meets such a tile is laid out like it
        if tile.dims in apart and tile.spaces == {"ub"}:
            tile.size = max(tile.size, _BLOCK * _elements(tile.dims))
    found: dict[Space, int] = {"ub": 0}
    spaces: tuple[Space, ...] = ("ub", "cbuf", "cc")
    for space in spaces[1:] if 'mix_mode = "aic"' in text else spaces:   # casts go with the store
        ours = [t for t in tiles if space in t.spaces]
        found[space] = max((sum(t.size for t in ours if t.first <= at <= t.last)
                            for at in {t.first for t in ours}), default=0)
    return found


def _tiles(lines: list[str]) -> list[_Tile]:
    tiles: dict[str, _Tile] = {}
    alias: dict[str, str] = {}
    loops: list[int] = []
    apart = False                    # whether what is being loaded comes element by element
    allocated: dict[str, int] = {}   # memref -> line
    gathered: set[str] = set()
    ends = _loop_ends(lines)

    def root(name: str) -> str:
        while name in alias:
            name = alias[name]
        return name

    for i, raw in enumerate(lines):
        line = raw.strip()
        while loops and ends[loops[-1]] < i:
            loops.pop()
        made = _RESULT.match(line)
        used = [root(n) for n in _NAME.findall(line)]
        for name in dict.fromkeys(used):
            if name in tiles:        # a value from before a loop lives as long as the loop
                outer = next((at for at in loops if at > tiles[name].first), None)
                tiles[name].last = max(tiles[name].last, i if outer is None else ends[outer])
        if line.startswith("scf.for") or " = scf.for" in line:
            loops.append(i)
            starts = _CARRIED.findall(line.partition("iter_args(")[2].partition(")")[0])
            for inner, start in starts:
                alias[inner] = root(start)
            for result, (_, start) in zip(_NAME.findall(line.partition(" = scf.for")[0]), starts,
                                          strict=False):
                alias[result] = root(start)
            continue
        if alloc := _ALLOC.match(line):
            allocated[alloc[1]] = i
        if (part := _PART.search(line)) and loops and loops[-1] > allocated.get(part[1], i):
            gathered.add(part[1])
        if view := _APART.search(line):
            apart |= view[1] != "1" and view[2] != "1"
        if loaded := _LOADED.search(line):
            tiles[made[1] if made else ""] = _Tile(
                _bytes(loaded[2], loaded[3]), i, i, {"ub"}, loaded[2], apart, loaded[1] in gathered)
            apart = False
            continue
        if not made or made[1] in alias:
            continue
        _note(line, i, made[1], made[2], used, tiles, alias)
    return list(tiles.values())


def _note(line: str, i: int, name: str, what: str, used: list[str], tiles: dict[str, _Tile],
          alias: dict[str, str]) -> None:
    """Enter the tile that a line makes, and where its operands must stand."""
    types = _TENSOR.findall(line)
    if not types or what in _NO_BUFFER:
        if types and len(used) > 1 and used[1] in tiles:
            alias[name] = used[1]    # part of a tile, or the same bytes
        return
    dims, element = types[-1]
    tile = _Tile(_bytes(dims, element), i, i, dims=dims)
    if what == "linalg.matmul":
        m, n = (-(-int(d) // _FRACTAL) * _FRACTAL for d in dims.split("x"))
        tile.size = 4 * m * n
        tile.spaces.add("cc")
        for operand in used[1:3]:
            if operand in tiles:
                tiles[operand].spaces.add("cbuf")
                if not tiles[operand].gathered:
                    tiles[operand].spaces.discard("ub")
        if used[3] in tiles and "cc" in tiles[used[3]].spaces:
            alias[name] = used[3]
            return
        if used[3] in tiles:         # the zeros it starts from need nothing
            tiles[used[3]].spaces.discard("ub")
            tiles[used[3]].spaces.add("cc")
            tiles[used[3]].size = tile.size
            alias[name] = used[3]
            return
    elif what == "linalg.transpose" and used[1] in tiles:
        alias[name] = used[1]        # folded into the product
        return
    else:
        tile.spaces.add("ub")
        for operand in used[1:]:
            if operand in tiles and "cc" in tiles[operand].spaces:
                tiles[operand].spaces.add("ub")      # comes back through the workspace
    tiles[name] = tile


def _bytes(dims: str, element: str) -> int:
    return (_elements(dims) * _BITS[element] + 7) // 8


def _elements(dims: str) -> int:
    return prod(int(d) for d in dims.split("x"))


def _loop_ends(lines: list[str]) -> dict[int, int]:
    ends, stack = {}, []
    for i, line in enumerate(lines):
        text = line.strip()
        if text.endswith("{") and "module" not in text:
            stack.append(i)
        elif text.startswith("}") and stack:
            ends[stack.pop()] = i
    return ends
