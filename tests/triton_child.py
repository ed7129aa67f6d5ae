"""Numerics of Triton kernels without a GPU: every case in the interpreter, in its own process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from expertile import ops, targets
from expertile.ops.numerics import mismatches
from expertile.ops.space import Config
from expertile.ops.spec import Shape
from expertile.opt.checks import run_once
from expertile.targets._triton.target import triton_version
from expertile.targets.child import Child

REPO = Path(__file__).resolve().parents[1]
TIMEOUT_S = 300.0


def triton_env(version: str = "") -> dict[str, str]:
    """Environment of a child that imports our tests, and a triton version other than ours."""
    paths = [str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]
    if version and version != triton_version():
        other = Path(sys.prefix) / f"triton-{version}"
        assert other.is_dir(), f"{other} is missing; `make test` installs triton {version} there"
        paths.insert(0, str(other))
    return {"PYTHONPATH": os.pathsep.join(paths)}


class Interpreter:
    """Runs kernels in one child process, which is started again when it dies."""

    def __init__(self) -> None:
        self._child = Child(memory_gb=12.0, env=triton_env())

    def __call__(self, device: str, op: str, shape: Shape, config: Config | None = None
                 ) -> str | None:
        """The first case of `shape` where a config (by default the default) is not the reference's.

        `device` is a target such as "cuda:sm_90", "cuda:sm_80" or "hip:gfx942".
        """
        answer: str | None = self._child.call(
            f"{__name__}:first_mismatch", TIMEOUT_S, device=device, op_name=op, shape=dict(shape),
            config=None if config is None else dict(config))
        return answer

    def close(self) -> None:
        """Stop the child."""
        self._child.close()


def first_mismatch(device: str, op_name: str, shape: dict[str, Any],
                   config: dict[str, Any] | None) -> str | None:
    """Runs in the child."""
    target = targets.load(device, mode="interpret")
    op = ops.load(op_name)
    space = target.space(op, shape)
    config = space.default() if config is None else config
    if why := space.why_not(config):
        return f"not in the space: {why}"
    kernel = target.build_kernel(op, shape, config)
    for name, args in op.cases(shape, 0):
        got, want = run_once(kernel, op, args), run_once(op.reference, op, args)
        if why := mismatches(got, want, op.rtol):
            return f"{op_name} on {device} {shape} {config} case {name!r}: {why}"
    return None
