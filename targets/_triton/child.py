"""Compile in a child process: Triton's compiler may abort, spin or eat memory."""

from __future__ import annotations

import threading
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ... import ops
from ...ops.space import Config
from ...ops.spec import Operator, Shape
from ..base import BuildError, Examined
from ..child import Child, ChildCrashed, ChildFailed, ChildTimeout

if TYPE_CHECKING:
    from .target import TritonTarget

BUILD_TIMEOUT_S = 180.0              # 30 s is the slowest kernel seen (docs/facts.md)
_MEMORY_GB = 12.0
_mine = threading.local()            # a child dies with the thread that started it


def examine(target: TritonTarget, op: Operator, shape: Shape, config: Config) -> Examined:
    """`target.compile_here` in this thread's child; BuildError says why when it fails."""
    child = getattr(_mine, "child", None)
    if child is None:
        child = _mine.child = Child(_MEMORY_GB)
    recipe, arguments = target.recipe()
    try:
        answer = child.call(f"{__name__}:examine_in_child", BUILD_TIMEOUT_S, recipe=recipe,
                            arguments={**arguments, "mode": "compile"}, op_name=op.name,
                            shape=dict(shape), config=dict(config))
    except ChildTimeout as e:
        raise BuildError(str(e), "timeout") from e
    except ChildCrashed as e:
        raise BuildError(str(e), "build_error") from e
    except ChildFailed as e:
        raise BuildError(str(e), "oom" if e.kind == "MemoryError" else "build_error") from e
    return Examined(**{**answer, "warnings": tuple(answer["warnings"]),
                       "kernels": tuple(answer["kernels"])})


def examine_in_child(recipe: str, arguments: dict[str, Any], op_name: str, shape: dict[str, Any],
                     config: dict[str, Any]) -> dict[str, Any]:
    """Runs in the child."""
    module, _, function = recipe.partition(":")
    target = getattr(import_module(module), function)(**arguments)
    return asdict(target.compile_here(ops.load(op_name), shape, config))
