"""Our own lowering against triton-ascend's of our Triton kernels: memory plan, calls, workspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....ops import has_lowering
from ....ops.spec import Operator, Shape
from ..._vendor.stack import worker
from ...child import Child, ChildCrashed, ChildFailed, ChildTimeout
from ..artifact import Artifact
from ..compiler import compile_module, unusable
from ..devices import Device
from . import worker as there

_ANSWER_S, _LOWER_S = 60.0, 180.0
_FLAGS: Mapping[str, str] = {"enable-auto-bind-sub-block": "true"}   # as its driver has it (A2, A3)
_MOST = 8                            # configs tried until one fits
_SIZES = ("ub_bytes", "l1_bytes", "l0c_bytes")


class NoRoute(ValueError):
    """There is no triton-ascend to compare with; the message says why."""


class Route:
    """triton-ascend in an interpreter of its own, for a chip.

    Args:
        python: that interpreter; it needs torch (any), triton-ascend and pybind11.
        cache_dir: for its Triton's cache: binaries in it are empty, so it must be nobody else's.
    """

    def __init__(self, chip: Device, python: str | None, cache_dir: Path):
        if python is None or not Path(python).is_file():
            raise NoRoute("the route triton-ascend needs the path of an interpreter with torch, "
                          "triton-ascend and pybind11, as --worker-python or "
                          f"EXPERTILE_WORKER_PYTHON, got {python!r}")
        self._chip = chip
        self._child: Child = worker(python, {"TRITON_CACHE_DIR": str(cache_dir / "triton-ascend")})
        try:
            self.version: str = self._child.call(f"{there.__name__}:describe", _ANSWER_S)["triton"]
        except (ChildFailed, ChildCrashed, ChildTimeout) as e:
            raise NoRoute(f"{python} cannot lower through triton-ascend: {e}") from e

    def lowered(self, op: Operator, shape: Shape) -> dict[str, Any]:
        """What its compiler side makes of an operator, or where that stops and why."""
        if not has_lowering(op.name, "triton"):
            return _stop("triton", f"{op.name} has no triton lowering")
        chip = self._chip
        told = {"op_name": op.name, "shape": dict(shape), "arch": chip.name,
                "cores": chip.cube_cores, "shared_bytes": chip.ub}
        tried: list[dict[str, Any]] = []
        try:
            for config in self._child.call(f"{there.__name__}:configs", _ANSWER_S, most=_MOST,
                                           **told):
                tried.append({"config": config, **self._lowered(told, config)})
                if tried[-1]["stops_at"] is None or "overflow" not in tried[-1]["why"]:
                    break                # another tile would not help
        except (ChildFailed, ChildCrashed, ChildTimeout) as e:
            return _stop("triton", _short(str(e)))
        answer = tried[-1] if tried[-1]["stops_at"] is None else tried[0]
        return {**answer, "refused": [{"config": t["config"], "why": t["why"]} for t in tried
                                      if t is not answer]}

    def _lowered(self, told: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        try:
            made = self._child.call(f"{there.__name__}:lower", _LOWER_S, config=dict(config),
                                    **told)
        except (ChildFailed, ChildCrashed, ChildTimeout) as e:
            return _stop("triton-ascend", _short(str(e)))
        kernels = []
        for kernel in made:
            built = compile_module(kernel["text"], self._chip, _FLAGS)
            if not isinstance(built, Artifact):
                return _stop("bishengir-compile", f"{kernel['name']}: {built.reason}")
            kernels.append({
                "name": kernel["name"], "grid": kernel["grid"], "task_type": built.task_type,
                "ub_bytes": built.peak("ub"), "l1_bytes": built.peak("cbuf"),
                "l0c_bytes": built.peak("cc"), "workspace_bytes": built.workspace_bytes,
                "calls": dict(built.calls), "fallbacks": list(built.fallbacks),
                "sha256": built.sha256})
        return {"stops_at": None, "why": "", "kernels": kernels}

    def close(self) -> None:
        """Stop its process."""
        self._child.close()


def compare(route: Route, op: Operator, shape: Shape, ours: Sequence[Mapping[str, Any]]
            ) -> dict[str, Any]:
    """triton-ascend's side, and the differences where both compiled.

    Args:
        ours: the kernels of our own examination (examine.facts).
    """
    if why := unusable():
        return _stop("bishengir-compile", why)
    theirs = route.lowered(op, shape)
    found = {"triton": route.version, **theirs}
    if theirs["stops_at"] is None and ours:
        found["against_ours"] = difference(ours, theirs["kernels"])
    return found


def difference(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
               ) -> dict[str, Any]:
    """Both sides' totals: the largest kernel of each space, workspace of all blocks, functions."""
    calls = [{name for kernel in side for name in kernel["calls"]} for side in (ours, theirs)]
    return {
        "kernels": [len(ours), len(theirs)], "blocks": [_blocks(ours), _blocks(theirs)],
        "task_types": [[k["task_type"] for k in side] for side in (ours, theirs)],
        **{size: [max((k[size] for k in side), default=0) for side in (ours, theirs)]
           for size in _SIZES},
        "workspace_bytes": [_workspace(ours), _workspace(theirs)],
        "calls_shared": sorted(calls[0] & calls[1]), "calls_only_ours": sorted(calls[0] - calls[1]),
        "calls_only_theirs": sorted(calls[1] - calls[0])}


def _blocks(kernels: Sequence[Mapping[str, Any]]) -> int:
    return sum(_product(kernel["grid"]) for kernel in kernels)


def _workspace(kernels: Sequence[Mapping[str, Any]]) -> int:
    return max((k["workspace_bytes"] * _product(k["grid"]) for k in kernels), default=0)


def _product(grid: Sequence[int]) -> int:
    made = 1
    for extent in grid:
        made *= extent
    return made


def _stop(where: str, why: str) -> dict[str, Any]:
    return {"stops_at": where, "why": why, "kernels": []}


def _short(said: str) -> str:
    """The end of a compiler's error: there the reason stands."""
    lines = [line.strip() for line in said.splitlines() if line.strip().strip("^/-[]")]
    return " | ".join(lines[:1] + lines[-2:])[:800] if len(lines) > 3 else " | ".join(lines)
