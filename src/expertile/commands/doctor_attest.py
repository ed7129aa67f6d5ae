"""`expertile doctor --attest`: what a device really does, as a report to send, and its reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from .. import ops, settings, targets
from ..ops.models import ModelDims
from ..ops.space import Config
from ..ops.spec import Operator, Shape
from ..targets.base import Target
from .options import console, load_target, short_shape, wanted_ops
from .shapes import load_of, model_dims

# A card, in the order of looking for one; then what is always here.
_CARDS = ("cuda", "hip", "npu:0", "musa", "mlu", "gcu", "txda", "dcu")


def best_device() -> str:
    """A card that can run kernels here, else the CPU."""
    for name in _CARDS:
        try:
            if load_target(name).available() is None:
                return name
        except (ValueError, OSError, ImportError):
            continue
    return "cpu"


def attest(file: Path | None, device: str | None, preset: str | None, only: list[str] | None,
           others: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Compile, run, check and time every operator on a device; write and print the report."""
    from ..opt.attest import attest as made_of

    name = device or best_device()
    target = load_target(name)
    dims = None if preset is None else model_dims(preset, None, None, None, name)
    tasks = _tasks(dims, only)
    errors = Console(stderr=True)
    with Progress(console=errors, disable=not errors.is_terminal) as progress:
        bar = progress.add_task("operators", total=len(tasks))
        document = made_of(
            target, tasks, [o for o in others if o["target"] != target.name], _answers(target),
            done=lambda row: progress.update(bar, advance=1, description=row.op))
    text = json.dumps(document, indent=2)
    if file is not None:
        file.write_text(text + "\n")
    if as_json:
        print(text)
    else:
        show(document)
        if file is not None:
            console().print(f"written to {file}: send it, or see what it proves with "
                            f"expertile doctor --attest --check {file}")
    if any(row["status"] not in ("ok", "not run", "unsupported") for row in document["operators"]):
        raise typer.Exit(1)          # an operator that does not compile, run or match


def _tasks(dims: ModelDims | None, only: list[str] | None) -> list[tuple[Operator, Shape]]:
    """Small odd shapes, one an operator; with a model, the ends of its ladder."""
    if dims is None:
        loaded = [ops.load(name) for name in wanted_ops(only)]
        return [(op, op.odd_shapes[0]) for op in loaded]
    from ..opt.check import kernels_of

    return kernels_of(dims, wanted_ops(only), load_of(dims, None, None, None))


def _answers(target: Target) -> Callable[[Operator, Shape], tuple[Config, str] | None]:
    """What the tuning database says of a shape, as dispatch would take it."""
    from ..tuning_db.lookup import load_snapshot

    found = settings.read()
    snapshot = load_snapshot(found.db, user=found.user_db, project=found.project_db)

    def answer(op: Operator, shape: Shape) -> tuple[Config, str] | None:
        said = snapshot.answer(op, target, shape)
        if said.record is None or said.config is None or said.record.decision != "tuned":
            return None
        return said.config, f"tuned ({said.tier})"

    return answer


def show(document: Mapping[str, Any]) -> None:
    """The report for people."""
    target, out = document["target"], console()
    table = Table("operator", "shape", "compiles", "runs", "right", "us", "vs default", "evidence",
                  "why", title=f"{target['name']} {target['device']}: at most {target['evidence']}")
    for row in document["operators"]:
        table.add_row(
            row["op"], short_shape(row["shape"]),
            *(_word(row[key]) for key in ("compiles", "runs", "matches")),
            "-" if row["us"] is None else f"{row['us']:.1f}", _against_default(row),
            row["evidence"], escape(row["why"][:160]))
    out.print(table)
    out.print(f"made {document['made']} on {document['machine']}, python {document['python']}, "
              + ", ".join(f"{k} {v}" for k, v in document["packages"].items()))
    out.print("toolchain: " + ", ".join(f"{k} {v}" for k, v in target["toolchain"].items()))
    for other in document["others"]:
        if not other.get("usable"):
            out.print(f"not attested, {other['target']} ({other['evidence']}): "
                      f"{escape(str(other['why_not']))}", highlight=False)
        if other.get("card"):
            out.print(f"  {escape(other['card'])}", highlight=False)


def _word(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "NO"


def _against_default(row: Mapping[str, Any]) -> str:
    if row["speedup"] is None:
        return "-"
    return "is the default" if row["answered_by"] == "default" else f"{row['speedup']:.2f}x"


def check(file: Path | None, as_json: bool) -> None:
    """Say whether a report that was sent may be believed, and how far."""
    from ..opt.attest_check import judge

    if file is None:
        raise ValueError("--check reads a report: expertile doctor --attest --check FILE")
    try:
        document = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{file} must be JSON; {e}") from None
    judged = judge(document)
    if as_json:
        print(json.dumps({"ok": judged.ok, "errors": judged.errors, "notes": judged.notes}))
    else:
        if judged.ok:
            show(document)
        for kind, texts in (("error", judged.errors), ("note", judged.notes)):
            for text in texts:
                console().print(f"{kind}: {escape(text)}", highlight=False)
        console().print("sound: it claims no more than it shows" if judged.ok else
                        "not sound: it proves nothing")
    if not judged.ok:
        raise typer.Exit(1)


def families() -> tuple[str, ...]:
    """The families that a report mentions."""
    return tuple(name for name in targets.names() if name not in ("null", "replay"))


def why_no_card(family: str) -> dict[str, str]:
    """What stands between an Ascend card and this machine; the other families say it themselves."""
    if family != "ascend":
        return {}
    try:
        load_target("npu:0")
    except ValueError as e:
        return {"card": str(e)}
    return {}
