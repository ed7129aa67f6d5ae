"""Corrupted modules of the real lowerings: the simulator notices, or nothing was to notice."""

from __future__ import annotations

import pytest

pytest.importorskip("ascendnpuir", reason="needs expertile[ascend]")
pytest.importorskip("tvm", reason="needs expertile[ascend]")

from expertile.bench import ascend_corrupt
from expertile.bench.ascend_mutations import KINDS, Mutation
from expertile.targets.ascend.simulator import simulate
from expertile.targets.ascend.simulator.trace import Access, unordered

QUICK, SLOW = (0, 1, 2, 4, 5), (7,)  # products, grouped products, casts; attention


def test_corruptions_are_caught() -> None:
    seen, missed = ascend_corrupt.count(QUICK, each=3, seed=1)
    more, also_missed = ascend_corrupt.count(SLOW, each=1, seed=1)
    seen, missed = seen + more, missed + also_missed
    caught = sum(n for (_, said), n in seen.items() if said in ("fault", "result"))
    assert {kind for kind, _ in seen} == set(KINDS)
    assert sum(seen.values()) >= 100
    assert all(m.equivalent for m in missed), missed
    assert caught + len(missed) == sum(seen.values()) and caught >= 0.95 * sum(seen.values())


@pytest.mark.parametrize("number", (0, 1, 2, 4, 7))
def test_nothing_is_unordered_in_a_clean_run(number: int) -> None:
    """All pairs of accesses, without the simulator's own bookkeeping, agree with it."""
    call, trace = ascend_corrupt.call_of(number), list[Access]()
    simulate(call.artifact, call.arguments, call.grid, trace)
    assert len(trace) > 20 and not unordered(trace)


def test_a_needed_barrier_is_not_called_harmless() -> None:
    """The proof of harmlessness fails where the simulator's check is made blind."""
    call = ascend_corrupt.call_of(4)
    lines = call.artifact.text.splitlines()
    wait = next(i for i, line in enumerate(lines) if "wait_flag[<PIPE_MTE2>, <PIPE_V>" in line)
    first_set = lines[wait].replace("wait_flag", "set_flag")
    at = next(i for i, line in enumerate(lines) if line.strip() == first_set.strip())
    both = [line for i, line in enumerate(lines) if i not in (wait, at)]
    mutation = Mutation("removed", wait + 1, "\n".join(both))
    assert ascend_corrupt.outcome(call, mutation) == "fault"
