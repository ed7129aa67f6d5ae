"""`expertile db`: list, show, export, import and merge tuning databases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .. import settings
from .options import Db, Json, console, short_shape

app = typer.Typer(no_args_is_help=True, help="Look into tuning databases and move records.")
OneOp = Annotated[str | None, typer.Option("--op", help="Only this operator.")]


def where(db: str | None) -> str:
    """The database that a command means."""
    found = settings.read()
    return db or found.db or str(found.user_db)


def _row(record: Any) -> dict[str, Any]:
    return {
        "op": record.key.op, "shape": record.key.shape, "device": record.key.device,
        "status": record.status, "decision": record.decision, "config": dict(record.config),
        "us": record.us, "default_us": record.default_us, "speedup": record.speedup,
        "evidence": record.evidence, "kind": record.kind, "source": record.key.source,
        "toolchain": dict(record.key.toolchain), "created": record.provenance.time,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("operator", "shape", "device", "decision", "us", "speed-up", "evidence")
    for r in rows:
        table.add_row(r["op"], short_shape(r["shape"]), r["device"],
                      r["decision"] or r["status"], f"{r['us']:.1f}" if r["us"] else "-",
                      f"{r['speedup']:.2f}" if r["speedup"] else "-",
                      f"{r['evidence']}, {r['kind']}")
    console().print(table)


@app.command("ls")
def ls(db: Db = None, op: OneOp = None,
       everything: Annotated[bool, typer.Option("--all", help="Candidates too.")] = False,
       as_json: Json = False) -> None:
    """The winners of a database, one line each."""
    from ..tuning_db.store import TuningDB

    with TuningDB(where(db), read_only=True) as store:
        rows = [_row(r) for r in store.records(op=op, role=None if everything else "winner")]
    if as_json:
        print(json.dumps({"records": rows}, indent=2))
    else:
        _print(rows)


@app.command("show")
def show(op: Annotated[str, typer.Argument()], db: Db = None) -> None:
    """Every record of an operator as JSON lines, raw samples included."""
    from ..tuning_db.store import TuningDB

    with TuningDB(where(db), read_only=True) as store:
        for record in store.records(op=op):
            print(record.text)


@app.command("export")
def export(out: Annotated[Path, typer.Argument(help="JSON-lines file to write.")],
           db: Db = None, op: OneOp = None) -> None:
    """Write the winners as sorted JSON lines: the form that is reviewed and shipped."""
    from ..tuning_db.shipped import write_lines
    from ..tuning_db.store import TuningDB

    with TuningDB(where(db), read_only=True) as store:
        written = write_lines(out, store.records(op=op, role="winner"))
    print(f"{written} records written to {out}")


@app.command("import")
def import_(source: Annotated[Path, typer.Argument(help="JSON-lines file to read.")],
            db: Db = None) -> None:
    """Add the records of a JSON-lines file; a damaged line is refused and nothing is added."""
    from ..tuning_db.shipped import read_lines
    from ..tuning_db.store import TuningDB

    records, problems = read_lines(source)
    if problems:
        raise ValueError(f"{problems[0]}; nothing was imported")
    with TuningDB(where(db)) as store:
        store.add(*records)
    print(f"{len(records)} records added to {where(db)}")


@app.command("merge")
def merge(sources: Annotated[list[Path], typer.Argument(help="Databases to take from.")],
          db: Db = None) -> None:
    """Add other databases' records; a measured one stays before a modelled one, then the later."""
    from ..tuning_db.store import TuningDB, config_hash

    def slot(r: Any) -> tuple[str, str, str]:
        return r.key.hash, r.role, config_hash(r.config) if r.role == "candidate" else ""

    def worth(r: Any) -> tuple[bool, str]:
        return not r.is_modelled, r.provenance.time

    with TuningDB(where(db)) as store:
        kept = {slot(r): worth(r) for r in store.records()}
        added = 0
        for source in sources:
            with TuningDB(source, read_only=True) as other:
                better = [r for r in other.records()
                          if worth(r) > kept.get(slot(r), (False, ""))]
            store.add(*better)
            kept |= {slot(r): worth(r) for r in better}
            added += len(better)
    print(f"{added} records added to {where(db)}")
