"""What this CPU can do at most, as kernels that run in the same rounds as what they limit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from ...targets.cpu import CpuTarget
from ...targets.cpu.artifacts import use_threads
from ...targets.cpu.limits import CHAINS, STREAMS
from ...targets.cpu.limits_tvm import fma_kernel, read_kernel
from .data import cache_bytes
from .limits_tvm import copy_kernel, dot_kernel

READ, ONE_STREAM, COPY, TORCH_COPY, FMA, DOT = (
    "read", "read, one stream", "copy", "copy by torch", "FMA float32", "dot bfloat16")
_STEPS = 200_000                     # about a millisecond
_WINDOW = 64 << 20                   # bytes of one call
_WINDOWS = 8                         # one after the other, so that no call finds its bytes cached
MEANING = {
    READ: f"GB/s, {STREAMS} streams a thread, out of the caches",
    ONE_STREAM: "GB/s, one stream a thread", COPY: f"GB/s read and written, {STREAMS} streams",
    TORCH_COPY: "GB/s read and written, torch's copy_ on as many threads",
    FMA: f"GFLOP/s, {CHAINS} independent chains a thread",
    DOT: f"GFLOP/s of bfloat16 pairs, {CHAINS} independent chains a thread"}


@dataclass(frozen=True)
class Limit:
    """A kernel that does nothing but reach a limit."""

    call: Callable[[], Any]
    amount: float                    # bytes or flops of one call


def kernels(target: CpuTarget) -> dict[str, Limit]:
    """Every limit of a target, compiled in this process.

    Calls go through buffers of many caches in turn: one buffer of three caches, read again and
    again, was found in the last-level cache in part (71 GB/s for 60: docs/facts.md).
    """
    import tvm

    threads, lanes = target.threads, target.lanes
    row = max(_WINDOW, 2 * cache_bytes()) // 4 // (threads * STREAMS) // 1024 * 1024
    functions = {"read": read_kernel(threads, STREAMS, row, lanes),
                 "one": read_kernel(threads, 1, row * STREAMS, lanes),
                 "copy": copy_kernel(threads, STREAMS, row, lanes),
                 "fma": fma_kernel(threads, CHAINS, _STEPS, lanes)}
    functions["one"] = functions["one"].with_attr("global_symbol", "one")
    if "bf16" in target.dots:
        functions["dot"] = dot_kernel(threads, CHAINS, _STEPS, lanes)
    llvm = tvm.target.Target(target.level.llvm(threads))
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "limits.so"
        tvm.compile(tvm.IRModule(functions), target=llvm).export_library(str(built))
        library: Any = tvm.runtime.load_module(str(built))
    use_threads(threads)
    data, to = torch.ones(_WINDOWS, threads, STREAMS, row), torch.zeros(
        _WINDOWS, threads, STREAMS, row)
    flat, each = data.view(_WINDOWS, threads, 1, -1), cycle(range(_WINDOWS))
    sums, out = torch.empty(threads, lanes), torch.empty(threads, CHAINS, lanes)
    factors, pairs = torch.tensor([0.999, 0.001]), torch.zeros(2, lanes, dtype=torch.int32)
    vector_flops = 2.0 * threads * CHAINS * lanes * _STEPS

    def copy() -> None:
        at = next(each)
        library["copy"](data[at], to[at])

    def torch_copy() -> None:
        at, before = next(each), torch.get_num_threads()
        torch.set_num_threads(threads)
        to[at].copy_(data[at])
        torch.set_num_threads(before)

    once = data.nbytes // _WINDOWS
    found = {READ: Limit(lambda: library["read"](data[next(each)], sums), once),
             ONE_STREAM: Limit(lambda: library["one"](flat[next(each)], sums), once),
             COPY: Limit(copy, 2 * once),
             TORCH_COPY: Limit(torch_copy, 2 * once),
             FMA: Limit(lambda: library["fma"](factors, out), vector_flops)}
    if "dot" in functions:
        found[DOT] = Limit(lambda: library["dot"](pairs, out), 2 * vector_flops)
    return found
