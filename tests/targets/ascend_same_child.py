"""Runs in a process of its own: what the emitter and the compiler make of kernels, as hashes."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from expertile import ops, targets
from expertile.targets.ascend.compiler import compile_module, tool_path
from expertile.targets.ascend.emit import emit

# Kernels whose code followed the names of folders (docs/facts.md).
KERNELS = (("m_grouped_gemm_nt_masked", "float8_e4m3fn"), ("mla_prefill", None),
           ("m_grouped_gemm_nt_contiguous", "float8_e4m3fn"))


def texts(device: str) -> list[str]:
    """The modules that the compiler gets."""
    target = targets.load(device)
    found = []
    for name, weights in KERNELS:
        op = ops.load(name)
        shape = next(s for s in op.odd_shapes
                     if weights is None or s["a_dtype"] == s["w_dtype"] == weights)
        for launch in target.launches(op, shape, target.space(op, shape).default()):
            found.append(emit(launch.program, "device").text)
    return found


if __name__ == "__main__":
    device = targets.load("ascend910b3").npu
    modules = texts("ascend910b3")
    made = [compile_module(module, device) for module in modules]
    json.dump({"compiler": str(tool_path("bishengir-compile")), "folder": str(Path.cwd()),
               "modules": [hashlib.sha256(m.encode()).hexdigest() for m in modules],
               "artifacts": [m.sha256 for m in made]}, sys.stdout)
