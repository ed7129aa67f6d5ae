"""`expertile explain`: which record answers an operator's calls, and why no other one does."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .. import settings
from ..ops.routing import name_of
from ..ops.spec import Operator, Shape
from ..targets.base import Target
from .grouped import grouped
from .options import Db, Device, Json, load_target, shape_text
from .shapes import Sizes
from .tune_method import RoutingOption


def _row(snapshot: Any, op: Operator, target: Target, shape: Shape, routing: str
         ) -> dict[str, Any]:
    found = snapshot.explain(op, target, shape, routing)
    answer, record = found.answer, found.answer.record
    return {
        "op": op.name, "shape": dict(shape), "tier": answer.tier, "layer": answer.layer,
        "answered_by": "default" if record is None else
        "modelled" if record.is_modelled else "tuned",
        "config": dict(answer.config or target.space(op, shape).default()),
        "why": answer.why, "expected_loss": answer.expected_loss,
        "decision": record.decision if record else None,
        "speedup": record.speedup if record else None,
        "evidence": record.evidence if record else None,
        "kind": record.kind if record else None,
        "noise": dict(record.noise) if record else {},
        "us": record.us if record else None, "parts": dict(record.parts) if record else {},
        "provenance": dict(vars(record.provenance)) if record else None,
        "differs": [list(d) for d in answer.differs],
        "others": [{"layer": c.layer, "tier": c.tier, "shape": c.record.key.shape,
                    "config": dict(c.record.config), "why_not": c.why_not,
                    "differs": [list(d) for d in c.differs]}
                   for c in found.candidates if not c.serves],
    }


def _print(rows: list[dict[str, Any]], others: int) -> None:
    from ..opt.noise import noise_text

    console = Console()
    for row in rows:
        console.print(f"[bold]{row['op']}[/bold] {shape_text(row['shape'])}")
        console.print(f"  answer: {row['why']}")
        console.print(f"  config: {row['config']}")
        if row["evidence"]:
            console.print(f"  evidence: {row['evidence']}, {row['kind']}, "
                          f"{row['provenance']['time']}")
        if said := noise_text(row["noise"]):
            console.print(f"  noise: {said}")
        if not row["others"] or not others:
            continue
        table = Table("layer", "tier", "its shape", "differs in", "why not")
        for other in row["others"][:others]:
            differs = ", ".join(f"{n}: {have} / {want}" for n, have, want in other["differs"])
            table.add_row(str(other["layer"]), other["tier"], shape_text(other["shape"]), differs,
                          other["why_not"])
        console.print(table)


@grouped
def explain(
    sizes: Sizes, op: Annotated[str, typer.Argument(help="The operator.")],
    device: Device = "cpu", db: Db = None, routing: RoutingOption = None,
    others: Annotated[int, typer.Option("--others", min=0,
                                        help="Other records to show per shape.")] = 3,
    as_json: Json = False,
) -> None:
    """Which record answers, which key fields differ, and why no other record answers."""
    from ..tuning_db.lookup import load_snapshot

    found = settings.read()
    target = load_target(device)
    snapshot = load_snapshot(db or found.db, user=found.user_db, project=found.project_db,
                             modelled=found.modelled)
    wanted = name_of(routing or found.routing)
    rows = [_row(snapshot, o, target, s, wanted)
            for o, shapes in sizes.shapes(device, [op]) for s in shapes]
    if as_json:
        print(json.dumps({"device": target.device, "answers": rows}, indent=2))
    else:
        _print(rows, others)
