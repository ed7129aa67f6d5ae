"""Vector functions of the 950: which of their arguments they load and store, not what they compute.

Their bodies are register code (hivm_regbaseintrins) whose immediates no public source spells out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..artifact import functions

_HEAD = re.compile(r"func\.func @\w+\((.*?)\) attributes")
_NAME = re.compile(r"%[\w#-]+")
_STORE = re.compile(r'intr\.hivm\.(?:vst|vsst|pst|pstu|vscatter)')
_LOAD = re.compile(r'intr\.hivm\.(?:vld|vsld|pld|pldu|vgather)')


@dataclass(frozen=True)
class VectorFunction:
    """The positions of the arguments that are loaded and stored."""

    loads: tuple[int, ...]
    stores: tuple[int, ...]


def vector_functions(text: str) -> Mapping[str, VectorFunction]:
    """Those of a module by name."""
    return {name: _uses(lines) for name, lines in functions(text).items()
            if "hivm.vector_function" in lines[0] and "hacc.entry" not in lines[0]}


def _uses(lines: Sequence[str]) -> VectorFunction:
    head = _HEAD.search(lines[0])
    assert head is not None, lines[0]
    origin = {name: i for i, name in enumerate(re.findall(r"(%arg\d+):", head[1]))}
    loads, stores = set(), set()
    for line in lines[1:]:
        text = line.strip()
        left, _, right = text.partition(" = ") if text.startswith("%") else ("", "", text)
        roots = {origin[n] for n in _NAME.findall(right) if n in origin}
        if _STORE.search(right):
            stores |= roots
        elif _LOAD.search(right):
            loads |= roots
        elif len(roots) == 1 and left and not right.startswith(("arith.", '"hivm')):
            root = next(iter(roots))     # a pointer, or a view on the way to one
            for name in _NAME.findall(left):
                origin[name] = root
    return VectorFunction(tuple(sorted(loads)), tuple(sorted(stores)))
