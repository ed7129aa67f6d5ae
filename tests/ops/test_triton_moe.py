"""The Triton lowerings of routing and the fused MoE: numerics in the interpreter, and binaries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from expertile import ops, targets
from expertile.ops.models import Load, preset
from expertile.targets.child import Child

from ..triton_child import Interpreter, triton_env

ROUTE, MOE = ops.load("moe_route").odd_shapes, ops.load("fused_moe").odd_shapes


@pytest.mark.parametrize("shape", ROUTE, ids=str)
def test_routes(interpreter: Interpreter, shape: dict[str, Any]) -> None:
    assert interpreter("cuda:sm_90", "moe_route", shape) is None


@pytest.mark.parametrize("index, rows", [(1, 4), (2, 2), (6, 8)])
def test_routes_several_tokens_a_program(interpreter: Interpreter, index: int, rows: int) -> None:
    config = {"rows": rows, "warps": 1}
    assert interpreter("hip:gfx942", "moe_route", ROUTE[index], config) is None


# Every way through the launcher and the kernels: float32 and split K; weights on either side of the
# dot; pairs that are sorted; activations cast in GEMM 1 and apart, in its epilogue and behind it;
# FP8 in hardware, as integer bits and as fnuz.
@pytest.mark.parametrize("device, index, changed", [
    ("cuda:sm_90", 0, {"tokens": 24, "align": "sorted"}),
    ("cuda:sm_90", 1, {"align": "sorted", "swap": False, "block_m": 64}),
    ("cuda:sm_90", 2, {"inter": 40, "hidden": 260, "tokens": 24, "align": "sorted", "split_k": 2}),
    ("cuda:sm_90", 4, {}),
    ("cuda:sm_90", 5, {"inter": 70, "hidden": 150, "align": "led", "cast": "fused"}),
    ("hip:gfx942", 5, {"tokens": 40, "align": "sorted", "block_n": 256, "stages": 1}),
    ("cuda:sm_80", 5, {"inter": 150, "hidden": 130, "tokens": 24, "align": "sorted"}),
    ("cuda:sm_80", 6, {}), ("cuda:sm_90", 7, {}),
    ("cuda:sm_90", 7, {"inter": 70, "hidden": 150, "block_k": 128, "align": "led",
                       "cast": "fused"}),
    ("hip:gfx942", 7, {"tokens": 40, "align": "sorted", "block_k": 128, "block_n": 256,
                       "stages": 1}),
], ids=str)
def test_all_paths_agree_with_the_reference(interpreter: Interpreter, device: str, index: int,
                                            changed: dict[str, Any]) -> None:
    axes = ("inter", "hidden", "tokens", "block_k")
    shape = {axis: changed.get(axis, size) if axis in axes else size
             for axis, size in MOE[index].items()}
    space = targets.load(device, mode="compile").space(ops.load("fused_moe"), shape)
    config = {knob: changed.get(knob, value) for knob, value in space.default().items()}
    assert interpreter(device, "fused_moe", shape, config) is None


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """A process that interprets."""
    made = Child(memory_gb=12.0, env=triton_env())
    yield made
    made.close()


@pytest.mark.parametrize("pairs, experts, block_m", [(1, 1, 16), (700, 256, 32), (5000, 7, 128)])
def test_pairs_are_sorted_by_expert(child: Child, pairs: int, experts: int, block_m: int) -> None:
    ids = [(i * i * 7 + i) % (experts + 2) - 1 for i in range(pairs)]    # -1 and E: foreign
    got = child.call(f"{__name__}:sorted_tiles", 120.0, ids=ids, experts=experts, block_m=block_m)
    of = {e: [i for i, x in enumerate(ids) if x == e] for e in range(experts)}
    assert got == [[e, rows[first:first + block_m]] for e, rows in of.items()
                   for first in range(0, len(rows), block_m)]


def sorted_tiles(ids: list[int], experts: int, block_m: int) -> list[list[Any]]:
    """Runs in the child: (expert, pairs) of each tile, as the device's tables have them."""
    target = targets.load("cuda:sm_90", mode="interpret")
    from expertile.ops._triton.moe import Plan, sort_pairs

    plan = Plan(len(ids), experts, block_m)
    made = sort_pairs(target, torch.tensor(ids, dtype=torch.int32), plan).tolist()
    count = made[0]
    assert count <= plan.tiles
    table = [made[plan.table + 3 * t:plan.table + 3 * t + 3] for t in range(count)]
    return [[e, made[plan.order + row:plan.order + row + rows]] for e, row, rows in table]


@pytest.mark.parametrize("w8a8, unit", [(True, "QGMMA"), (False, "HGMMA")])
def test_decode_on_hopper_multiplies_with_wgmma(w8a8: bool, unit: str) -> None:
    op = ops.load("fused_moe")
    shape = {**op.shapes(preset("v3").split(tp=8), Load(tokens=(1,)))[0], "w8a8": w8a8}
    child = Child(memory_gb=12.0)
    facts = child.call(f"{__name__}:binaries", 300.0, shape=shape)
    child.close()
    assert len(facts) == 4           # GEMM 1 split to fill the device, what sums it, GEMM 2, sum
    assert all(spilled == 0 for _, _, spilled in facts)
    assert [list(mma) for name, mma, _ in facts if name.startswith("gemm")] == [[unit]] * 2


def binaries(shape: dict[str, Any]) -> list[tuple[str, dict[str, int], int]]:
    """Runs in a child: name, matrix instructions and spilled bytes of each kernel on sm_90."""
    target, op = targets.load("cuda:sm_90", mode="compile"), ops.load("fused_moe")
    from expertile.targets._triton.static import facts_of

    read = [(launch.name, facts_of(launch))
            for launch in target.launches(op, shape, target.space(op, shape).default())]
    return [(name, dict(facts.mma), facts.stack_bytes) for name, facts in read]
