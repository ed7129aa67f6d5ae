"""Loading kernels leaves the process on all its CPUs, with the threads that the target names."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

_CODE = """
import json, os, sys, torch, tvm
from expertile import ops, targets
op = ops.load("silu_mul")
args = op.inputs({"h": 64, "dtype": "float32", "tokens": 3}, 0)
target = targets.load(sys.argv[1])
shape = op.shape_of(*args)
kernel = target.build_kernel(op, shape, target.space(op, shape).default())
kernel(*args, out=op.empty(*args))
threads = tvm.get_global_func("runtime.NumThreads")()
print(json.dumps([threads, sorted(os.sched_getaffinity(0))]))
"""


@pytest.mark.parametrize("threads", [1, len(os.sched_getaffinity(0))])
def test_threads_are_the_target_s_and_nothing_is_pinned(threads: int) -> None:
    out = subprocess.run([sys.executable, "-c", _CODE, f"cpu:{threads}"], capture_output=True,
                         text=True, check=True).stdout
    assert json.loads(out) == [threads, sorted(os.sched_getaffinity(0))]
