"""Several processes on one PostgreSQL study: nothing twice, nothing lost, one verdict."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from expertile.opt import Budget, tune
from expertile.opt.job import Method
from expertile.opt.pool import Pool
from expertile.opt.shared import SharedSearch, Storage
from expertile.targets.null import NullTarget
from expertile.tuning_db.key import key_of
from expertile.tuning_db.store import TuningDB
from tests import postgresql
from tests.tuning_db.records import OP, SHAPE, TARGET

pytestmark = pytest.mark.skipif(not postgresql.PROGRAMS,
                                reason="needs a server: apt-get install postgresql")
WORKER = """
import sys
from expertile.opt import Budget, tune
from expertile.opt.job import Method
from expertile.opt.shared import Storage
from expertile.targets.null import NullTarget
from tests.tuning_db.records import OP, SHAPE
url, seed = sys.argv[1], int(sys.argv[2])
storage = Storage(url, heartbeat_s=1, grace_s=4)
(outcome,) = tune(OP, NullTarget(sleep_s=0.002), [SHAPE], url, Budget(trials=1000), seed=seed,
                  progress=lambda e: print(e.kind, flush=True), method=Method(storage=storage))
storage.close()
print("config", sorted(outcome.record.config.items()), flush=True)
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with postgresql.server() as made:
        yield made


def test_four_workers_two_of_them_killed(url: str) -> None:
    """The pool is finished with no config twice and none lost, and the living agree."""
    import optuna

    workers = [subprocess.Popen([sys.executable, "-c", WORKER, url, str(i)], text=True,
                                stdout=subprocess.PIPE) for i in range(4)]
    for worker in workers:           # all have begun, and tried something
        assert worker.stdout is not None
        while worker.stdout.readline().strip() != "trial":
            assert worker.poll() is None
    for victim in workers[:2]:
        victim.kill()
    said = [worker.communicate(timeout=120)[0].splitlines()[-1] for worker in workers[2:]]
    assert [w.returncode for w in workers[2:]] == [0, 0]
    assert said[0] == said[1] and "config" in said[0]
    pool = Pool(TARGET.space(OP, SHAPE))
    (study,) = optuna.get_all_study_summaries(url)
    trials = optuna.load_study(study_name=study.study_name, storage=url).trials
    done = Counter(json.dumps(t.params, sort_keys=True) for t in trials
                   if t.state.name == "COMPLETE")
    assert len(done) == len(pool) and set(done.values()) == {1}
    assert {t.state.name for t in trials} <= {"COMPLETE", "FAIL"}
    with TuningDB(url) as db:
        rows = db.records(key=key_of(OP, TARGET, SHAPE), role="candidate")
        assert len(rows) == len(pool)
        assert len(db.records(key=key_of(OP, TARGET, SHAPE), role="winner")) == 1


def test_a_finished_study_answers_at_once(url: str) -> None:
    storage = Storage(url)
    shape = {**SHAPE, "tokens": 1}
    run = [tune(OP, NullTarget(), [shape], url, Budget(trials=30), method=Method(storage=storage))
           for _ in range(2)]
    storage.close()
    assert [o[0].resumed for o in run] == [False, True]
    assert run[0][0].record.config == run[1][0].record.config


def test_a_dead_askers_config_is_tried_again(url: str) -> None:
    """Killed between asking and the first heartbeat: Optuna alone would wait for it for ever."""
    storage = Storage(url, heartbeat_s=1, grace_s=3600)
    pool = Pool(TARGET.space(OP, SHAPE))
    search = SharedSearch(storage, "dead", pool, 0)
    lost = search.study.ask(pool.distributions)
    first = search.ask()
    assert first is not None and {k: first[k] for k in lost.params} == lost.params
    search.tell(first, 0.0)
    search.close()
    storage.close()


def test_a_tune_ends_when_time_is_over_though_a_dead_workers_default_waits(
        url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has time for what waits; the default is measured all the same, for the verdict."""
    monkeypatch.setattr("expertile.opt.shape.FEWEST_TRIALS", 0)
    shape, storage = {**SHAPE, "tokens": 2}, Storage(url)
    name = f"expertile {key_of(OP, TARGET, shape).hash}"
    search = SharedSearch(storage, name, Pool(TARGET.space(OP, shape)), 0)
    search.study.enqueue_trial({"tile": 32, "unroll": 1, "split": 1})
    search.close()
    (outcome,) = tune(OP, NullTarget(), [shape], url, Budget(seconds=1e-6),
                      method=Method(storage=storage))
    storage.close()
    assert outcome.record.decision == "default kept" and outcome.trials == 1


def test_what_is_no_server_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SQLite is for one process"):
        Storage(f"sqlite:///{tmp_path}/x.db")
    started = time.monotonic()
    with pytest.raises(ValueError, match="does not answer"):
        Storage(f"postgresql://nobody@/none?host={tmp_path}")
    assert time.monotonic() - started < 20
