"""The landscapes that ship: complete, replayable by name, and fairly ordered by the CPU's model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from expertile import ops
from expertile.bench.cpu_ranking import rank_all, totals
from expertile.commands.tune_landscape import landscape
from expertile.opt import Budget, landscapes, replay, tune
from expertile.opt.replay_record import find, landscape_of, load, text_of
from expertile.opt.search.landscape import read
from expertile.targets import load as load_target
from expertile.targets.null import NullTarget, formula_us
from expertile.tuning_db.store import TuningDB

OP = ops.load("silu_mul")
SHAPE = {"h": 64, "dtype": "float32", "tokens": 2}


@pytest.mark.parametrize("name", landscapes())
def test_each_says_what_it_is_of_and_holds_its_default(name: str) -> None:
    path = landscapes()[name]
    data, played = load(path), read(path)
    assert 10 <= len(data["entries"]) == len(played.pool) <= 1000 and played.has_default
    assert set(data) >= {"op", "shape", "device", "machine", "recorded", "command", "versions",
                         "source", "how", "default_us", "knobs"}
    assert data["op"] in ops.names() and ops.load(data["op"]).work(data["shape"]).bytes > 0
    assert played.times[0] == pytest.approx(data["default_us"], rel=1e-3)
    assert path.stat().st_size < 100_000 or path.suffix == ".gz"
    (run,) = replay(name, "exhaustive", budget=2000, seeds=[0])
    assert sorted(run) == sorted(played.times) and run[0] == played.times[0]


def test_a_search_finds_the_best_of_the_largest_sooner_than_chance() -> None:
    name, path = max(landscapes().items(), key=lambda item: len(read(item[1]).pool))
    good = 1.05 * read(path).optimum
    count = sum(t <= good for t in read(path).times)
    needed = [next((i for i, t in enumerate(run) if t <= good), 400)
              for run in replay(name, "tpe", 150, range(7))]
    by_chance = (len(read(path).pool) + 1) / (count + 1)
    assert sorted(needed)[3] < by_chance, (needed, by_chance)


def test_the_models_eight_favourites_beat_eight_random_ones() -> None:
    pytest.importorskip("tvm")
    found = rank_all(landscapes())
    assert len(found) >= 4 and all(r.best <= 1.10 for r in found)
    for within, said in totals(found).items():
        assert said["model"] > said["random"], (within, said)


def test_an_exhaustive_tune_becomes_a_landscape(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    db = tmp_path / "x.sqlite"
    tune(OP, NullTarget(), [SHAPE], db, Budget(trials=44))
    landscape(tmp_path / "out", str(db), ["silu_mul"])
    (path,) = (tmp_path / "out").iterdir()
    assert "44 configs" in capsys.readouterr().out
    data, target = load(path), NullTarget()
    assert len(data["entries"]) == 44
    for entry in data["entries"]:
        assert entry["us"] == pytest.approx(formula_us(entry["config"]), rel=1e-4)
    assert data["entries"][0]["config"] == target.space(OP, SHAPE).default()
    played = load_target(f"replay:{path}")
    assert [dict(c) for c in played.space(OP, SHAPE)][0] == target.space(OP, SHAPE).default()
    assert min(*replay(path, "exhaustive", 100, [0])) == pytest.approx(min(
        formula_us(c) for c in target.space(OP, SHAPE)), rel=1e-4)


def test_what_is_not_exhaustive_is_refused(tmp_path: Path) -> None:
    db = tmp_path / "x.sqlite"
    tune(OP, NullTarget(), [SHAPE], db, Budget(trials=10))
    with TuningDB(db, read_only=True) as store:
        rows = store.records()
    with pytest.raises(ValueError, match="10 of 44 were tried; run tune again with --sampler"):
        landscape_of(rows)
    with pytest.raises(ValueError, match="of an unknown number of"):
        landscape_of([r for r in rows if r.role == "candidate"])
    with pytest.raises(ValueError, match="nothing was written: .* 10 of 44"):
        landscape(tmp_path / "out", str(db), ["silu_mul"])
    with pytest.raises(ValueError, match="has no record of moe_route"):
        landscape(tmp_path / "out", str(db), ["moe_route"])
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"{}")[:9])
    with pytest.raises(ValueError, match="is no landscape"):
        load(tmp_path / "cut.json.gz")
    assert find("no such name") == Path("no such name")


def test_the_file_has_an_entry_a_line() -> None:
    data = load(next(iter(landscapes().values())))
    assert json.loads(text_of(data)) == data
    assert text_of(data).count('\n{"config"') == len(data["entries"])
