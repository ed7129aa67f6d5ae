"""Which cases are measured: operators at a model's shapes, or a user's own `bench_*` functions."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..ops.models import Load, ModelDims
from ..ops.spec import Shape
from ..opt.check import kernels_of

PREFIX = "bench_"


@dataclass(frozen=True)
class CaseSpec:
    """What a worker is asked to prepare; the same in every environment."""

    name: str
    group: str
    shape: Shape = field(default_factory=dict)
    file: str = ""                   # of a user's own case: relative to the repository
    function: str = ""


@dataclass(frozen=True)
class Suite:
    """Cases and how they are made ready."""

    cases: tuple[CaseSpec, ...]
    device: str = "cpu"
    configs: str = "default"         # or "recorded": what the tuning databases answer
    db: str | None = None
    user_db: str | None = None
    cache_dir: str = ""
    seed: int = 0

    def job(self, case: CaseSpec, root: Path) -> dict[str, Any]:
        """The worker's argument, for a tree."""
        if case.file:
            return {"name": case.name, "file": str(root / case.file), "function": case.function}
        return {"name": case.name, "op": case.group, "shape": dict(case.shape),
                "device": self.device, "cache_dir": self.cache_dir, "seed": self.seed,
                "configs": self.configs, "db": self.db, "user_db": self.user_db}


def case_name(op: str, shape: Mapping[str, Any]) -> str:
    """A name that stays the same from run to run: every axis of the shape is in it."""
    return f"{op}[{','.join(f'{axis}={value}' for axis, value in shape.items())}]"


def operators(model: ModelDims, wanted: Sequence[str], load: Load | None, every: bool = False
              ) -> tuple[CaseSpec, ...]:
    """A model's operators: the ends of the ladder for each kernel, or `every` shape."""
    return tuple(CaseSpec(case_name(op.name, shape), op.name, dict(shape))
                 for op, shape in kernels_of(model, wanted, load, every))


def user_cases(path: Path, root: Path) -> tuple[CaseSpec, ...]:
    """The `bench_*` functions of a file, found without running it."""
    if not path.exists():
        raise ValueError(f"--suite must name a Python file with {PREFIX}* functions, and {path} "
                         "does not exist")
    try:
        tree = ast.parse(path.read_text(), str(path))
    except SyntaxError as e:
        raise ValueError(f"--suite must name a Python file: {e}") from e
    try:
        relative = path.resolve().relative_to(root.resolve())
    except ValueError:
        raise ValueError(f"--suite must stand inside the repository {root}, got {path}") from None
    found = [node.name for node in tree.body
             if isinstance(node, ast.FunctionDef) and node.name.startswith(PREFIX)]
    if not found:
        raise ValueError(f"{path} must define at least one function called {PREFIX}SOMETHING that "
                         "returns the call to time")
    return tuple(CaseSpec(f"{relative}::{name}", str(relative), {}, str(relative), name)
                 for name in found)
