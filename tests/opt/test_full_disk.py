"""A disk that is full: the tune says so, and goes on later without a loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expertile import ops
from expertile.ops.space import config_text
from expertile.opt import Budget, tune
from expertile.targets.null import NullTarget
from expertile.tuning_db import TuningDBError, store
from expertile.tuning_db.store import TuningDB

OP = ops.load("silu_mul")
PAGES = 18                           # of 4 KiB; a whole tune takes 40


def test_a_full_disk_costs_the_candidate_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                   ) -> None:
    path, shape, settings = tmp_path / "x.sqlite", OP.odd_shapes[0], store._write_settings

    def small(connection: Any, record: Any) -> None:
        settings(connection, record)
        connection.execute(f"PRAGMA max_page_count = {PAGES}")

    said = []
    with monkeypatch.context() as patched:
        patched.setattr(store, "_write_settings", small)
        with pytest.raises(TuningDBError, match="is full.*free some space.*stored before is lost"):
            tune(OP, NullTarget(), [shape], path, Budget(trials=44), progress=said.append)
    tried = sum(e.kind == "trial" for e in said)
    with TuningDB(path) as db:
        before = {config_text(r.config): r.text for r in db.records(role="candidate")}
    assert 0 < tried == len(before) < 44
    (outcome,) = tune(OP, NullTarget(), [shape], path, Budget(trials=44))
    with TuningDB(path) as db:
        after = {config_text(r.config): r.text for r in db.records(role="candidate")}
    assert len(after) == 44 and before.items() <= after.items() and outcome.known == 0
    assert outcome.record.config == {"tile": 128, "unroll": 4, "split": 1}
