"""Bad candidates are rows; the tune ends, and finds the best config."""

from __future__ import annotations

from pathlib import Path

import pytest

from expertile.opt import Budget, Guard, tune
from expertile.tuning_db.key import key_of
from expertile.tuning_db.store import TuningDB
from tests.opt.faulty import EXPECTED, KINDS, OP, FaultyTarget

SHAPE = OP.odd_shapes[0]


def test_every_fault_is_a_row_with_its_status(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    target = FaultyTarget()
    guard = Guard(build_s=10.0, run_s=5.0, prepare_s=60.0, build_gb=8.0, run_gb=8.0)
    events = []
    (outcome,) = tune(OP, target, [SHAPE], path, Budget(trials=len(KINDS)), guard=guard,
                      progress=events.append)
    with TuningDB(path, read_only=True) as db:
        rows = db.records(key=key_of(OP, target, SHAPE), role="candidate")
    assert {r.config["kind"]: r.status for r in rows} == EXPECTED
    assert all(r.error for r in rows if r.status != "ok")
    assert "SIGSEGV" in next(r.error for r in rows if r.config["kind"] == "segfault")
    assert outcome.record.config == {"kind": "fast"} and outcome.record.decision == "tuned"
    assert outcome.record.speedup is not None and outcome.record.speedup > 2
    assert outcome.record.speedup_ci is not None and outcome.record.speedup_ci[0] > 1
    assert outcome.record.floor_us == pytest.approx(OP.work(SHAPE).bytes / 10e9 * 1e6)
    assert outcome.to_json()["percent_of_floor"] > 0
    assert len([e for e in events if e.kind == "trial"]) == len(KINDS)
