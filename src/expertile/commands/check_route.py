"""`expertile check --route triton-ascend`: the same operators through another compiler's front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from .. import settings
from ..ops.spec import Operator, Shape
from ..targets.base import Target
from .options import console, short_shape

if TYPE_CHECKING:
    from ..targets.ascend.triton_route.compare import Route

ROUTES = ("triton-ascend",)


def open_route(target: Target, route: str, python: Path | None) -> Route:
    """The other way, ready to be asked; a wrong wish is refused before anything is compiled."""
    from ..targets.ascend.target import AscendTarget
    from ..targets.ascend.triton_route.compare import Route

    if route not in ROUTES:
        raise ValueError(f"--route must be one of {', '.join(ROUTES)}, got {route!r}")
    if not isinstance(target, AscendTarget):
        raise ValueError(f"--route {route} compares kernels for Ascend devices, not for "
                         f"{target.name}")
    found = settings.read()
    return Route(target.npu, str(python) if python else found.worker_python, found.cache_dir)


def add_route(rows: Sequence[dict[str, Any]], tasks: Sequence[tuple[Operator, Shape]],
              there: Route, name: str, done: Callable[[str], None]) -> None:
    """Put the comparison into each row, as `routes[name]`."""
    from ..targets.ascend.triton_route.compare import compare

    try:
        for row, (op, shape) in zip(rows, tasks, strict=True):
            row["routes"] = {name: compare(there, op, shape, row["kernels"])}
            done(op.name)
    finally:
        there.close()


def show_route(rows: Sequence[dict[str, Any]], route: str) -> None:
    """Ours / theirs, for people."""
    table = Table("operator", "shape", "UB B", "L1 B", "L0C B", "workspace B", "blocks",
                  "library functions: both, ours, theirs", title=f"ours / {route}")
    for row in rows:
        other = row["routes"][route]
        head = row["op"], short_shape(row["shape"])
        if "against_ours" not in other:
            table.add_row(*head, "-", "-", "-", "-", "-", escape(
                f"stops at {other['stops_at']}: {other['why']}" if other["stops_at"] else
                "ours did not compile"))
            continue
        both = other["against_ours"]
        table.add_row(*head, *(" / ".join(map(str, both[key])) for key in (
            "ub_bytes", "l1_bytes", "l0c_bytes", "workspace_bytes", "blocks")),
            ", ".join(str(len(both[key])) for key in (
                "calls_shared", "calls_only_ours", "calls_only_theirs")))
    console().print(table)
