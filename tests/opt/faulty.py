"""A target whose candidates fail in every way that a compiler and a kernel can."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from expertile import ops
from expertile.ops.space import Config, Space
from expertile.ops.spec import Kernel, Operator, Shape
from expertile.targets._virtual import Virtual
from expertile.targets.base import BuildError, Evidence, Examined, Figure, Recipe, Verdict

KINDS = ("slow", "fast", "wrong", "nan", "raise", "abort", "segfault", "spin", "no memory",
         "build raise", "build abort", "build spin", "illegal", "scribble", "past the end",
         "before the start", "off by one", "wrong dtype", "leak")
EXPECTED = {"slow": "ok", "fast": "ok", "wrong": "wrong", "nan": "wrong", "raise": "run_error",
            "abort": "run_error", "segfault": "run_error", "spin": "timeout", "no memory": "oom",
            "build raise": "build_error", "build abort": "build_error", "build spin": "timeout",
            "illegal": "illegal", "scribble": "wrong", "past the end": "wrong",
            "before the start": "wrong", "off by one": "wrong", "wrong dtype": "wrong",
            "leak": "oom"}


LEAKED: list[torch.Tensor] = []


@dataclass(frozen=True)
class FaultyTarget(Virtual):
    """Kernels are the reference plus a fault."""

    name: str = "faulty"
    lang: str = "faulty"
    arch: str = "faulty"
    device: str = "faulty"
    torch_device: str = "cpu"
    aliases: tuple[str, ...] = ()
    computes: bool = True

    def toolchain(self) -> dict[str, str]:
        return {"cc": "1.2.3"}

    def evidence(self) -> Evidence:
        return "L4 timed"

    def limits(self) -> Mapping[str, Figure]:
        return {"bandwidth": Figure(10.0, "GB/s", "made up", "reported")}

    def legal(self, op: Operator, shape: Shape, config: Config) -> Verdict:
        if config["kind"] == "illegal":
            return Verdict(False, "shared memory: 300 KiB > 227 KiB")
        return Verdict(True)

    def space(self, op: Operator, shape: Shape) -> Space:
        return Space({"kind": KINDS})

    def compile_here(self, op: Operator, shape: Shape, config: Config) -> Examined:
        if config["kind"] == "build raise":
            raise BuildError("no schedule", "build_error")
        if config["kind"] == "build abort":
            os.kill(os.getpid(), signal.SIGABRT)
        while config["kind"] == "build spin":
            pass
        return Examined(True, "", "L2 native object")

    def build_kernel(self, op: Operator, shape: Shape, config: Config) -> Kernel:
        kind = config["kind"]

        def run(*args: Any, out: Any) -> None:
            op.reference(*args, out=out)
            if kind == "slow":
                time.sleep(0.002)
            elif kind == "wrong":
                out[-1].mul_(1.5)
            elif kind == "nan":
                out[-1].fill_(float("nan"))
            elif kind == "raise":
                raise IndexError("tile out of range")
            elif kind == "abort":
                os.abort()
            elif kind == "segfault":
                ctypes.string_at(0)
            elif kind == "no memory":
                bytearray(1 << 60)
            elif kind == "leak":
                LEAKED.append(torch.empty(1 << 29))
            elif kind == "off by one":   # the last row is never written
                out[0][-1:] = out[0][:1] if len(out[0]) else out[0]
            elif kind == "wrong dtype":  # the first half of the bytes, in another format
                half = out[-1].to(torch.bfloat16).flatten()
                out[-1].view(torch.bfloat16).flatten()[:half.numel()] = half
            elif kind == "past the end" and out[-1].numel():
                ctypes.memset(out[-1].data_ptr() + out[-1].nbytes, 0, 4)
            elif kind == "before the start":
                ctypes.memset(out[-1].data_ptr() - 64, 0, 1)
            elif kind == "scribble":
                args[0].fill_(3.0)       # its own input, which later candidates read too
                out[-1].mul_(1.5)
            while kind == "spin":
                pass

        return run

    def recipe(self) -> Recipe:
        return f"{__name__}:target", {}

    def time_us(self, fn: Any, inner: int) -> float:
        start = time.perf_counter_ns()
        for _ in range(inner):
            fn()
        return (time.perf_counter_ns() - start) / inner / 1e3


def target() -> FaultyTarget:
    return FaultyTarget()


OP = ops.load("per_token_group_quant_fp8")
