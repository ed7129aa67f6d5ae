"""The tune as a whole, on targets that compute nothing: resume, budgets, decisions."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from expertile import ops, targets
from expertile.ops.space import config_text
from expertile.opt import Budget, plan, tune, tune_many
from expertile.targets.base import Target
from expertile.targets.null import NullTarget, formula_us
from expertile.tuning_db.key import key_of
from expertile.tuning_db.lookup import load_snapshot
from expertile.tuning_db.store import TuningDB

OP = ops.load("per_token_group_quant_fp8")
SHAPE = OP.odd_shapes[0]
BEST = {"tile": 128, "unroll": 4, "split": 1}


def test_exhaustive_finds_the_best_and_the_second_run_measures_nothing(tmp_path: Path) -> None:
    target, path = NullTarget(), tmp_path / "x.sqlite"
    (first,) = tune(OP, target, [SHAPE], path, Budget(trials=100))
    assert dict(first.record.config) == BEST and first.record.decision == "tuned"
    assert first.record.speedup == pytest.approx(1.9) and first.record.us == pytest.approx(100.0)
    assert (first.trials, first.record.kind, first.record.evidence) == (44, "modelled",
                                                                       "L0 described")
    with TuningDB(path) as db:
        rows = db.records(role="candidate")
        assert len({config_text(r.config) for r in rows}) == len(rows) == 44
        assert all(r.us == pytest.approx(formula_us(r.config), rel=1e-5) for r in rows)
    events = []
    (second,) = tune(OP, target, [SHAPE], path, Budget(trials=100), progress=events.append)
    assert second.resumed and second.record == first.record and not events
    answer = load_snapshot(path, shipped=False).answer(OP, target, SHAPE)
    assert answer.config == BEST and (answer.tier, answer.layer) == ("exact", "override")


def test_search_beats_random_chance_without_repeating(tmp_path: Path) -> None:
    (outcome,) = tune(OP, NullTarget(), [SHAPE], tmp_path / "x.sqlite", Budget(trials=30))
    with TuningDB(tmp_path / "x.sqlite") as db:
        assert len(db.records(role="candidate")) == 30 == outcome.trials
    assert outcome.record.us is not None and outcome.record.us <= 110.0   # the two best of 44


def test_equal_configs_keep_the_default(tmp_path: Path) -> None:
    target = NullTarget(flat=True, noise=0.02)
    shapes = [{**SHAPE, "tokens": t} for t in (1, 4, 16)]
    for outcome in tune(OP, target, shapes, tmp_path / "x.sqlite", Budget(trials=12)):
        r = outcome.record
        assert r.decision == "default kept" and r.status == "ok" and r.speedup == 1.0
        assert dict(r.config) == target.space(OP, SHAPE).default()
    answer = load_snapshot(tmp_path / "x.sqlite", shipped=False).answer(OP, target, shapes[0])
    assert answer.config == target.space(OP, SHAPE).default() and "default" in answer.why


def test_time_budget_is_split_over_the_shapes(tmp_path: Path) -> None:
    shapes = [{**SHAPE, "tokens": t} for t in (1, 8, 64)]
    target, start = NullTarget(sleep_s=0.02), time.monotonic()
    outcomes = tune(OP, target, shapes, tmp_path / "x.sqlite", Budget(seconds=9.0))
    assert time.monotonic() - start < 40
    assert [o.record.key.dynamic["tokens"] for o in outcomes] == [1, 8, 64]
    assert all(3 <= o.trials < 44 for o in outcomes)
    again = tune(OP, target, shapes, tmp_path / "x.sqlite", Budget(seconds=9.0))
    assert all(o.resumed for o in again)


def _landscape(path: Path) -> Path:
    knobs = {"m": [16, 32, 64, 128], "n": [16, 32, 64, 128], "k": [1, 2, 4], "stages": [1, 2, 3]}
    entries = []
    for m in knobs["m"]:
        for n in knobs["n"]:
            for k in knobs["k"]:
                for s in knobs["stages"]:
                    config = {"m": m, "n": n, "k": k, "stages": s}
                    us = 50 + abs(m - 64) / 4 + abs(n - 128) / 8 + 6 * abs(k - 2) + 3 * (3 - s)
                    bad = {128: "run_error", 64: "build_error"}.get(m) if n == 16 else None
                    entries.append({"config": config, "status": bad} if bad
                                   else {"config": config, "us": us})
    path.write_text(json.dumps({"format": "expertile-landscape-1", "knobs": knobs,
                                "entries": entries}))
    return path


def test_replayed_landscape(tmp_path: Path) -> None:
    target = targets.load(f"replay:{_landscape(tmp_path / 'land.json')}")
    (outcome,) = tune(OP, target, [SHAPE], tmp_path / "x.sqlite", Budget(trials=60), seed=3)
    r = outcome.record
    assert r.us is not None and r.us <= 50 * 1.1 and r.decision == "tuned"
    with TuningDB(tmp_path / "x.sqlite") as db:
        rows = db.records(role="candidate")
    assert len({config_text(row.config) for row in rows}) == 60
    assert {row.status for row in rows} >= {"ok", "run_error"}


_SCRIPT = """
import sys
from expertile import ops
from expertile.opt import Budget, tune
from expertile.targets.null import NullTarget
op = ops.load("per_token_group_quant_fp8")
tune(op, NullTarget(sleep_s=0.02), [op.odd_shapes[0]], sys.argv[1], Budget(trials=44),
     progress=lambda e: print(e.kind, e.trials, flush=True))
"""


def test_killed_tune_continues_and_measures_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    process = subprocess.Popen([sys.executable, "-c", _SCRIPT, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[:2] == [b"trial", b"9"]:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    key = key_of(OP, NullTarget(), SHAPE)
    with TuningDB(path) as db:
        before = {config_text(r.config): r.text for r in db.records(key=key, role="candidate")}
        assert 9 <= len(before) < 44 and db.winner(key) is None
    tried = Counter(e.trials for e in _resumed(path) if e.kind == "trial")
    assert sorted(tried) == list(range(len(before) + 1, 45))
    with TuningDB(path) as db:
        after = {config_text(r.config): r.text for r in db.records(key=key, role="candidate")}
        winner = db.winner(key)
    assert len(after) == 44 and before.items() <= after.items()
    assert winner is not None and dict(winner.config) == BEST


def _resumed(path: Path) -> list:
    events: list = []
    tune(OP, NullTarget(), [SHAPE], path, Budget(trials=44), progress=events.append)
    return events


def test_interrupt_leaves_the_database_sound(tmp_path: Path) -> None:
    def stop(event) -> None:
        if event.kind == "trial" and event.trials == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(OP, NullTarget(), [SHAPE], tmp_path / "x.sqlite", Budget(trials=44), progress=stop)
    with TuningDB(tmp_path / "x.sqlite") as db:
        assert len(db.records()) == 5


@pytest.mark.parametrize("kwargs", [{"seconds": 0}, {"seconds": -5.0}, {"seconds": float("nan")},
                                    {"trials": 0}, {"trials": -1}, {"trials": 2.5}, {},
                                    {"seconds": 1.0, "trials": 1}], ids=str)
def test_bad_budgets_name_the_rule(kwargs: dict) -> None:
    with pytest.raises(ValueError, match="a budget must be"):
        Budget(**kwargs)


def test_plan_says_what_would_be_covered() -> None:
    (p,) = plan(OP, NullTarget(), [SHAPE])
    assert (p.configs, p.product) == (44, 48)
    assert p.to_json()["key"] == key_of(OP, NullTarget(), SHAPE).hash


def test_cpu_end_to_end(cpu: Target, tmp_path: Path) -> None:
    if why := cpu.available():
        pytest.skip(why)
    shape = {"k": 256, "group_size": 128, "dtype": "float32", "ue8m0": False, "tokens": 64}
    path = tmp_path / "x.sqlite"
    (outcome,) = tune_many([(OP, shape)], cpu, path, Budget(trials=4))
    r = outcome.record
    assert r.status in ("ok", "noisy") and r.decision in ("tuned", "default kept")
    assert (r.evidence, r.kind) == ("L4 timed", "measured") and r.samples
    assert outcome.trials == 4 and r.floor_us is not None and r.us is not None
    with TuningDB(path) as db:
        rows = db.records(role="candidate")
    assert [row.status for row in rows] == ["ok"] * 4
    assert all(len(row.anchor) == len(row.samples) for row in rows)
    assert r.anchor and outcome.to_json()["noise"]["verdict"] in ("quiet", "busy", "drifting")
    answer = load_snapshot(path, shipped=False).answer(OP, cpu, shape)
    assert answer.config == r.config and answer.tier == "exact"
