"""Ranking by a model: what is stored, what it may replace, and when it answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from expertile import ops
from expertile.opt import Budget, Outcome, tune
from expertile.opt.job import Method
from expertile.opt.rank import TOP
from expertile.targets.null import formula_us
from expertile.tuning_db.key import key_of
from expertile.tuning_db.lookup import Snapshot
from expertile.tuning_db.record import Provenance, Record
from expertile.tuning_db.store import TuningDB
from tests.opt.modelled import TOO_LARGE, WRONG, ModelledTarget

OP = ops.load("per_token_group_quant_fp8")
SHAPE = OP.odd_shapes[0]
TARGET = ModelledTarget()
RANK = Method(measure=False)


def _rank(path: Path, target: ModelledTarget = TARGET, trials: int = 44) -> Outcome:
    (outcome,) = tune(OP, target, [SHAPE], path, Budget(trials=trials), method=RANK)
    return outcome


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    path = tmp_path_factory.mktemp("rank") / "x.sqlite"
    return path, _rank(path)


def test_the_best_few_are_stored_as_modelled(ranked: tuple[Path, Outcome]) -> None:
    record = ranked[1].record
    assert (record.kind, record.decision, record.evidence) == ("modelled", "ranked", "L1 lowered")
    assert record.is_modelled and record.speedup is None and not record.samples
    times = sorted(formula_us(c) for c in TARGET.space(OP, SHAPE)
                   if c["tile"] != 16 and c != WRONG)
    assert [formula_us(c) for c in record.ranked] == times[:TOP]
    assert record.us == times[0] and record.default_us == formula_us(
        TARGET.space(OP, SHAPE).default())
    assert record.parts == {"k us": record.us, "k bound": "memory"}
    assert record.error == "passed: all"
    assert Record.from_text(record.text) == record


def test_refusals_are_rows_with_their_numbers(ranked: tuple[Path, Outcome]) -> None:
    with TuningDB(ranked[0], read_only=True) as db:
        rows = db.records(role="candidate")
    assert len(rows) == 44 == ranked[1].trials
    refused = [r for r in rows if r.status == "illegal"]
    assert len(refused) == 8 and {r.error for r in refused} == {TOO_LARGE}
    (wrong,) = [r for r in rows if r.status == "wrong"]
    assert wrong.config == WRONG and "too early" in wrong.error and wrong.us is None


def test_a_second_ranking_answers_from_the_database_and_a_larger_one_goes_on(
        tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    first = _rank(path, trials=6)
    again, more = _rank(path, trials=6), _rank(path, trials=10)
    assert (first.resumed, again.resumed, more.resumed) == (False, True, False)
    assert (more.trials, more.known) == (10, 6)


def test_the_default_wins_ties(tmp_path: Path) -> None:
    record = _rank(tmp_path / "x.sqlite", ModelledTarget(flat=True), 9).record
    assert record.decision == "default kept" and record.config == record.ranked[0]
    assert record.config == TARGET.space(OP, SHAPE).default() and len(record.ranked) == TOP


def test_a_target_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no model .* leave out --no-measure"):
        _rank(tmp_path / "x.sqlite", ModelledTarget(has_model=False), 2)


def test_what_was_measured_is_never_replaced(tmp_path: Path) -> None:
    default = TARGET.space(OP, SHAPE).default()
    measured = Record(key_of(OP, TARGET, SHAPE), default, "ok", "candidate", "L4 timed", "measured",
                      Provenance("0.1.0", "2026-11-22T00:00:00Z"), us=7.0, default_us=7.0,
                      samples=(7.0,), default_samples=(7.0,))
    with TuningDB(tmp_path / "x.sqlite") as db:
        db.add(measured)
        tune(OP, TARGET, [SHAPE], db, Budget(trials=3), method=RANK)
        (kept,) = [r for r in db.records(role="candidate") if r.config == default]
        assert kept == measured
        winner = replace(measured, role="winner", decision="default kept")
        db.add(winner)
        (outcome,) = tune(OP, TARGET, [SHAPE], db, Budget(trials=9), method=RANK)
        assert outcome.resumed and db.winner(winner.key) == winner


def test_a_modelled_record_answers_only_where_nothing_can_be_measured_or_when_told_to(
        ranked: tuple[Path, Outcome]) -> None:
    record, here = ranked[1].record, ModelledTarget(is_here=True)
    held, told = Snapshot({"user": [record]}), Snapshot({"user": [record]}, modelled=True)
    assert held.answer(OP, TARGET, SHAPE).record == record
    assert "modelled" in held.answer(OP, TARGET, SHAPE).why
    assert "never measured" in told.answer(OP, here, SHAPE).why
    answer, found = held.answer(OP, here, SHAPE), held.explain(OP, here, SHAPE)
    assert answer.config is None and "EXPERTILE_MODELLED=serve" in answer.why
    assert "the default config answers" in answer.why
    assert "it seeds a tune" in found.candidates[0].why_not


def test_a_measured_record_of_another_size_comes_before_a_modelled_one_of_this(
        ranked: tuple[Path, Outcome]) -> None:
    record = ranked[1].record
    near = {**SHAPE, "tokens": int(SHAPE["tokens"]) + 1}
    measured = Record(key_of(OP, TARGET, near), WRONG, "ok", "winner", "L4 timed", "measured",
                      Provenance("0.1.0", "2026-11-22T00:00:00Z"), decision="tuned", us=7.0,
                      default_us=9.0, samples=(7.0,), default_samples=(9.0,))
    answer = Snapshot({"user": [record, measured]}, modelled=True).answer(OP, TARGET, SHAPE)
    assert answer.record == measured


def test_a_tune_on_the_device_measures_the_best_few_first(ranked: tuple[Path, Outcome]) -> None:
    from expertile.opt.candidates import seeds
    from expertile.opt.job import Job

    with TuningDB(ranked[0]) as db:
        unused = None
        job = Job(OP, TARGET, SHAPE, db, unused, {}, None, None, 0, "",  # type: ignore[arg-type]
                  print, 0, 1)
        assert seeds(job)[:TOP] == list(ranked[1].record.ranked)
