"""Gate c: the very text that hivmc gets, executed on the CPU at the addresses that it states.

It finds what the compiler's memory plan and synchronisation could get wrong: flags that nobody sets
or waits for and accesses that nothing orders are a Fault; data that another buffer overwrote, or
that nobody wrote, reads as NaN or a huge number, so that comparing the result shows it. Time, the
tiling below L1 and the device's rounding of exp and division are not modelled. Of the 950, kernels
for the cube alone are modelled whole; those for vector cores only as to order and addresses, since
their vector code is register code that has no meaning here; those for both not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..artifact import Artifact
from ..devices import find
from .clocks import PIPES, CrossCore, Fault
from .machine import Core, run_block
from .memory import Space, View
from .opaque import vector_functions
from .parse import Argument, Function, parse_functions, parse_maps
from .trace import Access
from .work import NotModelled

__all__ = ["Fault", "NotModelled", "simulate"]

_VECTORS = {"vector": (0,), "cube": (), "mix": (1, 2)}   # numbers of the vector cores of a block


def simulate(artifact: Artifact, arguments: Sequence[Tensor | int],
             grid: tuple[int, int, int], trace: list[Access] | None = None) -> tuple[Tensor, ...]:
    """Run every program of the grid on copies of the arguments; the tensors as they were left.

    `trace` receives every access (trace.py). A Fault says what would go wrong on the device;
    NotModelled, that the simulator cannot tell.
    """
    device = find(artifact.device)
    opaque = vector_functions(artifact.text) if device.family == "c310" else None
    if opaque and artifact.task_type == "mix":
        raise NotModelled(f"{device.name}: how its cube and vector cores share memory")
    functions, maps = parse_functions(artifact.text), parse_maps(artifact.text)
    vectors = _VECTORS[artifact.task_type]
    numbered = [(n, f) for f in functions for n in
                (vectors if f.core == "AIV" else (0,))]
    threads = len(PIPES) * (max(n for n, _ in numbered) + 1)
    blocks = grid[0] * grid[1] * grid[2]
    copies, places = _copies(arguments)
    for block in range(blocks):
        spaces = {at[0]: Space(f"argument {i}", places[at[0]], threads, on_chip=False)
                  for i, (_, at) in enumerate(copies) if at}
        world = [(spaces[at[0]], at[1], a.numel()) if at else a for a, at in copies]
        # each block has its own part of the workspace, and finds it by its number
        size = artifact.workspace_bytes
        shared = (Space("workspace", torch.full((size,), 0xFF, dtype=torch.uint8), threads,
                        on_chip=False), -block * size, size)
        cross = CrossCore(vectors)
        cores = []
        for number, function in numbered:
            chip = {name: Space(name, torch.full((size,), 0xFF, dtype=torch.uint8), threads, align)
                    for name, size, align in (("ub", device.ub, device.ub_align),
                                              ("cbuf", device.l1, device.l1_align),
                                              ("cc", device.l0c, device.l0c_align))}
            bound = _bind(function, world, shared, grid)
            cores.append(Core(number, threads // len(PIPES), function, maps, chip, bound, block,
                              cross, trace, opaque))
        run_block(cores, cross)
    if opaque:
        raise NotModelled(f"{device.name}: what vector functions compute; the order and the "
                          f"addresses of all accesses hold")
    return tuple(a for a, _ in copies if isinstance(a, Tensor))


# A tensor in global memory: its space, the byte where it begins, its elements.
Place = tuple[Space, int, int]


def _copies(arguments: Sequence[Tensor | int]
            ) -> tuple[list[tuple[Any, tuple[int, int] | None]], dict[int, Tensor]]:
    """Copies of the arguments, each with (memory, first byte) there, and the memories.

    Tensors that share a storage share its copy: a kernel may write one cache through three views.
    """
    bounds: dict[int, list[int]] = {}
    for given in arguments:
        if isinstance(given, Tensor):
            start = int(given.storage_offset()) * given.element_size()
            bounds.setdefault(given.untyped_storage().data_ptr(), []).extend(
                (start, start + given.numel() * given.element_size()))
    places: dict[int, Tensor] = {}
    copies: list[tuple[Any, tuple[int, int] | None]] = []
    for number, a in enumerate(arguments):
        if not isinstance(a, Tensor):
            copies.append((a, None))
            continue
        key, size = a.untyped_storage().data_ptr(), a.numel() * a.element_size()
        if len(bounds[key]) == 2:    # it has its storage for itself
            key, start = -number - 1, 0
            places[key] = a.detach().contiguous().reshape(-1).view(torch.uint8).clone()
        else:
            low, high = min(bounds[key]), max(bounds[key])
            start = int(a.storage_offset()) * a.element_size() - low
            if key not in places:
                whole = torch.empty(0, dtype=torch.uint8)
                whole.set_(a.untyped_storage(), low, (high - low,), (1,))
                places[key] = whole.clone()
        copies.append((places[key][start:start + size].view(a.dtype).view(a.shape), (key, start)))
    return copies, places


def _bind(function: Function, world: Sequence[Place | int], workspace: Place,
          grid: tuple[int, int, int]) -> list[object]:
    """The values of a kernel's parameters, in their order."""
    own = [a for a in function.arguments if not a.role]
    if len(own) != len(world) + len(grid):
        raise ValueError(f"{function.name} takes {len(own) - len(grid)} arguments, "
                         f"got {len(world)}")
    values = iter([*world, *grid])

    def value(argument: Argument) -> object:
        if argument.role == "workspace":
            given: Place | int = workspace
        else:
            given = 0 if argument.role else next(values)
        if isinstance(given, int):
            return given
        space, start, elements = given
        return View(space, start, argument.dtype, 0, (elements,), (1,))

    return [value(a) for a in function.arguments]
