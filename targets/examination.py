"""Examinations of configs: made in a child process, kept on disk by all that decides them."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from .. import ops
from ..ops.source import source_hash
from ..ops.space import Config
from ..ops.spec import Operator, Shape
from .base import BuildError, Examined, Target
from .child import Child, ChildCrashed, ChildFailed, ChildTimeout

BUILD_TIMEOUT_S = 300.0              # 30 s is the slowest kernel seen (docs/facts.md)
_MEMORY_GB = 12.0
_mine = threading.local()            # a child dies with the thread that started it


def code_hash(paths: Iterable[Path]) -> str:
    """A hash of the code that judges: a better judge examines again."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def path_of(cache_dir: Path, target: Target, op: Operator, shape: Shape, config: Config,
            judge: str) -> Path:
    """Where the examination of a config is kept: named by all that decides it."""
    identity = [op.name, sorted(shape.items()), sorted(config.items()), target.toolchain(),
                target.device, source_hash(op.name, target.lang), judge]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return cache_dir / "examined" / f"{op.name}-{digest[:24]}.json"


def restored(data: Mapping[str, Any]) -> Examined:
    """An examination from its JSON."""
    return Examined(**{**data, "warnings": tuple(data["warnings"]),
                       "kernels": tuple(data["kernels"])})


def load(path: Path) -> Examined | None:
    """An examination that was kept, or None."""
    try:
        return restored(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(path: Path, examined: Examined) -> None:
    """Write an examination, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(asdict(examined), file)
    Path(file.name).replace(path)


def in_child(target: Target, op: Operator, shape: Shape, config: Config,
             child: Child | None = None, **options: Any) -> Examined:
    """`target.compile_here` in a child, by default this thread's; BuildError says why it fails.

    `options` change the target's recipe: `mode="compile"`, say.
    """
    child = child or getattr(_mine, "child", None)
    if child is None:
        child = _mine.child = Child(_MEMORY_GB)
    recipe, arguments = target.recipe()
    try:
        answer = child.call(f"{__name__}:compile_in_child", BUILD_TIMEOUT_S, recipe=recipe,
                            arguments={**arguments, **options}, op_name=op.name,
                            shape=dict(shape), config=dict(config))
    except ChildTimeout as e:
        raise BuildError(str(e), "timeout") from e
    except ChildCrashed as e:
        raise BuildError(str(e), "build_error") from e
    except ChildFailed as e:
        raise BuildError(str(e), "oom" if e.kind == "MemoryError" else "build_error") from e
    return restored(answer)


def compile_in_child(recipe: str, arguments: dict[str, Any], op_name: str, shape: dict[str, Any],
                     config: dict[str, Any]) -> dict[str, Any]:
    """Runs in the child."""
    module, _, function = recipe.partition(":")
    target = getattr(import_module(module), function)(**arguments)
    return asdict(target.compile_here(ops.load(op_name), shape, config))
