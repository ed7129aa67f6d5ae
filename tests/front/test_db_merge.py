"""`expertile db merge`: which of two records of one key stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from expertile.cli import app
from expertile.tuning_db.record import Record
from expertile.tuning_db.store import TuningDB
from tests.tuning_db.records import CONFIG, winner


def dated(day: int, us: float, **changes: Any) -> Record:
    made = winner(us=us, **changes)
    return replace(made, provenance=replace(made.provenance, time=f"2026-11-{day:02d}T00:00:00Z"))


def stored(path: Path, *records: Record) -> Path:
    with TuningDB(path) as db:
        db.add(*records)
    return path


def merged(tmp_path: Path, *sources: Record) -> float | None:
    """The winner's time after merging one database a record, in this order."""
    paths = [stored(tmp_path / f"{i}.sqlite", r) for i, r in enumerate(sources)]
    done = CliRunner().invoke(app, ["db", "merge", *map(str, paths[1:]), "--db", str(paths[0])])
    assert done.exit_code == 0, done.output
    with TuningDB(paths[0], read_only=True) as db:
        (found,) = db.records(role="winner")
    return found.us


def test_the_later_of_two_measured_ones_stays_whatever_the_order(tmp_path: Path) -> None:
    for i, order in enumerate(([1, 2, 3], [3, 1, 2], [2, 3, 1])):
        (tmp_path / str(i)).mkdir()
        assert merged(tmp_path / str(i), *(dated(day, float(day)) for day in order)) == 3.0


def test_a_modelled_one_never_replaces_a_measured_one(tmp_path: Path) -> None:
    modelled = dated(9, 1.0, kind="modelled", evidence="L1 lowered", decision="ranked",
                     ranked=(CONFIG,), samples=(), default_samples=())
    for i, order in enumerate(([modelled, dated(1, 2.0)], [dated(1, 2.0), modelled])):
        (tmp_path / str(i)).mkdir()
        assert merged(tmp_path / str(i), *order) == 2.0
