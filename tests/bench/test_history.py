"""History: lasting changes are found, noise and new machines are not taken for them."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from expertile.bench.changepoint import change_points
from expertile.bench.history import History, otava_csv, segments
from expertile.bench.outputs.trend import page
from expertile.bench.result import Result
from expertile.tuning_db import TuningDBError
from expertile.tuning_db.store import TuningDB

from .fakes import MACHINE, run_result


def noisy(levels: list[tuple[int, float]], noise: float = 0.01, seed: int = 0) -> list[float]:
    random = np.random.default_rng(seed)
    return [float(us * (1 + abs(random.normal(0, noise)))) for n, us in levels for _ in range(n)]


@pytest.mark.parametrize("step", [1.03, 1.05, 0.9])
def test_a_lasting_change_is_found_where_it_began(step: float) -> None:
    found = change_points(noisy([(20, 100.0), (15, 100.0 * step)]))
    assert len(found) == 1 and abs(found[0].at - 20) <= 1
    assert found[0].ratio == pytest.approx(step, abs=0.01) and found[0].p <= 0.01


def test_several_changes() -> None:
    found = change_points(noisy([(15, 100.0), (15, 110.0), (15, 105.0)]))
    assert [round(c.ratio, 1) for c in found] == [1.1, 1.0]
    assert [abs(c.at - at) <= 1 for c, at in zip(found, (15, 30), strict=True)] == [True, True]


def test_noise_is_no_change() -> None:
    alarms = sum(bool(change_points(noisy([(30, 100.0)], 0.03, seed))) for seed in range(100, 200))
    assert alarms <= 3                   # 1 % is asked for


def test_one_bad_night_is_no_change() -> None:
    series = noisy([(30, 100.0)])
    series[14] *= 1.5
    assert change_points(series) == []
    assert change_points([100.0] * 5) == [] and change_points([]) == []


def night(number: int, us: float, tvm: str = "0.27") -> Result:
    found = run_result({"a": us, "b": 10.0}, seed=number)
    return replace(found, created=f"2026-11-{number:02d}T03:00:00Z",
                   revision={"head": f"{number:040x}"}, toolchain={"head": {"tvm": tvm}})


def test_a_new_compiler_begins_a_new_series(tmp_path: Path) -> None:
    with History(tmp_path / "t.sqlite") as history:
        for number in range(1, 11):
            assert history.append(night(number, 100.0)) == 2
        for number in range(11, 21):
            history.append(night(number, 120.0, tvm="0.28"))
        assert history.append(night(3, 100.0)) == 0          # already there
        parts = segments(history.series("a"))
    assert [len(s.points) for s in parts] == [10, 10]
    assert parts[1].opened_by == "tool tvm 0.27 -> 0.28"
    assert not parts[0].changes and not parts[1].changes


def test_a_slow_down_alarms_while_it_is_recent(tmp_path: Path) -> None:
    with History(tmp_path / "t.sqlite") as history:
        for number in range(1, 21):
            history.append(night(number, 100.0 if number <= 12 else 106.0))
        last = segments(history.series("a"))[-1]
        assert segments(history.series("b"))[-1].regression(10) is None
        names = history.names()
        text, html = otava_csv(history, names), page({n: segments(history.series(n))
                                                      for n in names})
    change = last.regression(recent=10)
    assert change is not None and change.ratio == pytest.approx(1.06, abs=0.01)
    assert last.points[change.at].revision == f"{13:040x}"
    assert last.regression(recent=5) is None
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 20 and float(rows[-1]["a"]) == pytest.approx(106, rel=0.02)
    assert html.count("<circle") == 40 and "#b3261e" in html


def test_it_shares_the_file_with_tuning_records(tmp_path: Path) -> None:
    with TuningDB(tmp_path / "t.sqlite") as db:
        assert db.records() == []
    with History(tmp_path / "t.sqlite") as history:
        history.append(night(1, 100.0))
        assert history.records() == []
    with TuningDB(tmp_path / "t.sqlite", read_only=True) as db:
        assert db.records() == []


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.sqlite").write_text("no database, but longer than a header of one would be")
    with pytest.raises(TuningDBError, match="no SQLite database"):
        History(tmp_path / "t.sqlite")


def test_another_machine_is_another_series(tmp_path: Path) -> None:
    with History(tmp_path / "t.sqlite") as history:
        history.append(night(1, 100.0))
        history.append(replace(night(2, 50.0), machine=replace(MACHINE, host="ffff")))
        parts = segments(history.series("a"))
    assert len(parts) == 2 and "host" in parts[1].opened_by
