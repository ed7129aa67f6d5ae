"""Bad candidates are rows; the tune ends, and finds the best config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expertile.opt import Budget, Event, Guard, Outcome, tune
from expertile.opt.candidates import blocklist
from expertile.opt.job import Job
from expertile.tuning_db.key import key_of
from expertile.tuning_db.store import TuningDB
from tests.opt.faulty import EXPECTED, KINDS, OP, FaultyTarget

SHAPE = OP.odd_shapes[0]
OTHER = {**SHAPE, "tokens": int(SHAPE["tokens"]) + 40}
TARGET = FaultyTarget()

Tuned = tuple[Path, Outcome, list[Event]]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A tune over every kind of fault."""
    path, events = tmp_path_factory.mktemp("faults") / "x.sqlite", list[Event]()
    guard = Guard(build_s=10.0, run_s=25.0, prepare_s=120.0, build_gb=8.0, run_gb=8.0)
    (outcome,) = tune(OP, TARGET, [SHAPE], path, Budget(trials=len(KINDS)), guard=guard,
                      progress=events.append)
    return path, outcome, events


def test_every_fault_is_a_row_with_its_status(tuned: Tuned) -> None:
    path, outcome, events = tuned
    with TuningDB(path, read_only=True) as db:
        rows = db.records(key=key_of(OP, TARGET, SHAPE), role="candidate")
    assert {r.config["kind"]: r.status for r in rows} == EXPECTED
    errors = {str(r.config["kind"]): r.error for r in rows}
    assert all(error for kind, error in errors.items() if EXPECTED[kind] != "ok")
    assert "SIGSEGV" in errors["segfault"] and "it wrote 4 bytes or more past" in (
        errors["past the end"]) and "64 bytes or more before" in errors["before the start"]
    assert outcome.record.config == {"kind": "fast"} and outcome.record.decision == "tuned"
    assert outcome.record.speedup is not None and outcome.record.speedup > 2
    assert outcome.record.speedup_ci is not None and outcome.record.speedup_ci[0] > 1
    assert outcome.record.floor_us == pytest.approx(OP.work(SHAPE).bytes / 10e9 * 1e6)
    assert outcome.to_json()["percent_of_floor"] > 0
    assert len([e for e in events if e.kind == "trial"]) == len(KINDS)


def test_what_killed_its_process_is_not_tried_at_another_size(tuned: Tuned) -> None:
    """Crashes are blocked by kernel; what raised, hung or was wrong is tried again."""
    with TuningDB(tuned[0]) as db:
        unused: Any = None
        job = Job(OP, TARGET, OTHER, db, unused, {}, None, None, 0, "", print, 0, 1)
        blocked = {str(r.config["kind"]): r.status for r in blocklist(job).values()}
        assert blocked == {"abort": "run_error", "segfault": "run_error",
                           "build abort": "build_error"}
        assert blocklist(replace(job, shape=SHAPE)) == {}        # its own rows say it already
        assert blocklist(replace(job, target=FaultyTarget(device="other"))) == {}
