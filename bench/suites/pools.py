"""Do torch's threads and our kernels' slow each other down? Alone, and taking turns as in a model.

    python -m expertile.bench.suites.pools        # every policy in a process of its own
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch

from ... import ops, settings
from ...ops.spec import Value
from ...targets.cpu import target as cpu_target
from ...targets.cpu.pools import one_pool

SHAPE: dict[str, Value] = {
    "n": 1408, "k": 2048, "a_dtype": "float32", "w_dtype": "float32", "out_dtype": "float32",
    "block_n": 128, "block_k": 128, "tokens": 24}
# name -> variables of the process, and whether the policy of targets/cpu/pools.py is kept
POLICIES: dict[str, tuple[dict[str, str], bool]] = {
    "nothing": ({}, False), "one pool at a time (ours)": ({}, True),
    "OMP_WAIT_POLICY=PASSIVE": ({"OMP_WAIT_POLICY": "PASSIVE"}, False),
    "GOMP_SPINCOUNT=1000": ({"GOMP_SPINCOUNT": "1000"}, False),
    "TVM_THREAD_POOL_SPIN_COUNT=0": ({"TVM_THREAD_POOL_SPIN_COUNT": "0"}, False)}
_CALLS, _WARM, _PAUSE_S = 200, 20, 0.05


def _us(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e3


def measure(threads: int, keep: bool) -> dict[str, float]:
    """Median microseconds of a kernel and of torch's linear, alone and in turns."""
    op = ops.load("gemm_nt")
    target = cpu_target(str(threads), cache_dir=settings.read().cache_dir)
    kernel = target.build_kernel(op, SHAPE, target.space(op, SHAPE).default())
    args = op.inputs(SHAPE, 0)
    out = op.empty(*args)
    torch.set_num_threads(threads)

    def ours() -> None:
        kernel(*args, out=out)

    def theirs() -> None:
        torch.nn.functional.linear(args[0], args[2])

    def series(*calls: Callable[[], None]) -> list[float]:
        time.sleep(_PAUSE_S)         # until whoever ran before has stopped spinning
        found = [[_us(call) for call in calls] for _ in range(_WARM + _CALLS)][_WARM:]
        return [statistics.median(column) for column in zip(*found, strict=True)]

    alone = {"kernel alone": series(ours)[0], "torch alone": series(theirs)[0]}
    with one_pool() if keep else nullcontext():
        kernel_us, torch_us = series(ours, theirs)
    return {**alone, "kernel in turns": kernel_us, "torch in turns": torch_us}


def main() -> None:
    """Every policy, three times in turns; the median of the three."""
    if len(sys.argv) > 1:
        threads, keep = int(sys.argv[1]), sys.argv[2] == "keep"
        print(json.dumps(measure(threads, keep)))
        return
    threads = len(os.sched_getaffinity(0))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in POLICIES}
    for _ in range(3):
        for name, (variables, keep) in POLICIES.items():
            done = subprocess.run(
                [sys.executable, "-m", __spec__.name, str(threads), "keep" if keep else "leave"],
                env={**os.environ, **variables}, capture_output=True, text=True, check=True)
            found[name].append(json.loads(done.stdout))
    for name, runs in found.items():
        told = ", ".join(f"{what} {statistics.median(r[what] for r in runs):.0f} us"
                         for what in runs[0])
        print(f"{name}: {told}")


if __name__ == "__main__":
    main()
