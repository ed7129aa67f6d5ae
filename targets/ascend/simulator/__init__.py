"""Gate c: the very text that hivmc gets, executed on the CPU at the addresses that it states.

It finds what the compiler's memory plan and synchronisation could get wrong: flags that nobody sets
or waits for and accesses that nothing orders are a Fault; data that another buffer overwrote, or
that nobody wrote, reads as NaN or a huge number, so that comparing the result shows it. Time, the
tiling below L1 and the device's rounding of exp and division are not modelled. 910B only: on the
950 the vector code of the module is register code, which has no meaning here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..artifact import Artifact
from ..devices import find
from .clocks import PIPES, CrossCore, Fault
from .machine import Core, run_block
from .memory import DTYPES, Space, View
from .parse import Argument, Function, parse_functions, parse_maps
from .work import NotModelled

__all__ = ["Fault", "NotModelled", "simulate"]

_VECTORS = {"vector": (0,), "cube": (), "mix": (1, 2)}   # numbers of the vector cores of a block


def simulate(artifact: Artifact, arguments: Sequence[Tensor | int],
             grid: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """Run every program of the grid on copies of the arguments; the tensors as they were left.

    A Fault says what would go wrong on the device; NotModelled, that the simulator cannot tell.
    """
    device = find(artifact.device)
    if device.family != "c220":
        raise NotModelled(f"{device.name}: vector code of the 950 is not modelled")
    functions, maps = parse_functions(artifact.text), parse_maps(artifact.text)
    vectors = _VECTORS[artifact.task_type]
    numbered = [(n, f) for f in functions for n in
                (vectors if f.core == "AIV" else (0,))]
    threads = len(PIPES) * (max(n for n, _ in numbered) + 1)
    blocks = grid[0] * grid[1] * grid[2]
    workspace = torch.full((artifact.workspace_bytes * blocks,), 0xFF, dtype=torch.uint8)
    copies = [a.detach().clone().contiguous() if isinstance(a, Tensor) else a for a in arguments]
    for block in range(blocks):
        world = [Space(f"argument {i}", a.reshape(-1).view(torch.uint8), threads, on_chip=False)
                 if isinstance(a, Tensor) else a for i, a in enumerate(copies)]
        shared = Space("workspace", workspace, threads, on_chip=False)
        cross = CrossCore(vectors)
        cores = []
        for number, function in numbered:
            chip = {name: Space(name, torch.full((size,), 0xFF, dtype=torch.uint8), threads, align)
                    for name, size, align in (("ub", device.ub, device.ub_align),
                                              ("cbuf", device.l1, device.l1_align),
                                              ("cc", device.l0c, device.l0c_align))}
            bound = _bind(function, world, shared, grid)
            cores.append(Core(number, threads // len(PIPES), function, maps, chip, bound, block,
                              cross))
        run_block(cores, cross)
    return tuple(a for a in copies if isinstance(a, Tensor))


def _bind(function: Function, world: Sequence[Space | int], workspace: Space,
          grid: tuple[int, int, int]) -> list[object]:
    """The values of a kernel's parameters, in their order."""
    own = [a for a in function.arguments if not a.role]
    if len(own) != len(world) + len(grid):
        raise ValueError(f"{function.name} takes {len(own) - len(grid)} arguments, "
                         f"got {len(world)}")
    values = iter([*world, *grid])

    def value(argument: Argument) -> object:
        given = workspace if argument.role == "workspace" else (
            0 if argument.role else next(values))
        return _array(given, argument) if isinstance(given, Space) else given

    return [value(a) for a in function.arguments]


def _array(space: Space, argument: Argument) -> object:


    size = space.data.numel() // DTYPES[argument.dtype].itemsize
    return View(space, 0, argument.dtype, 0, (size,), (1,))
