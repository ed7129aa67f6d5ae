"""Targets without a device: their fixed times, statuses and recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expertile import ops, targets
from expertile.opt.session import make_target
from expertile.targets.base import BuildError, RunFailed
from expertile.targets.null import NullTarget, formula_us

OPS = [ops.load(name) for name in ops.names()]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_null_serves_every_operator_with_the_formula(op: ops.Operator) -> None:
    target = targets.load("null")
    shape = op.odd_shapes[0]
    for config in target.space(op, shape):
        kernel = target.build_kernel(op, shape, config)
        assert target.time_us(lambda kernel=kernel: kernel(out=()), 3
                              ) == pytest.approx(formula_us(config))


def test_recipes_make_the_same_target_again(tmp_path: Path) -> None:
    null = NullTarget(flat=True, noise=0.1, seed=4)
    assert make_target(null.recipe()) == null
    replay = targets.load(f"replay:{_land(tmp_path)}")
    again = make_target(json.loads(json.dumps(replay.recipe())))
    assert again == replay and replay.name in targets.names()
    cpu = targets.load("cpu:1", cache_dir=tmp_path, arch="x86-avx2")
    assert make_target(json.loads(json.dumps(cpu.recipe()))) == cpu


def _land(tmp_path: Path, **changes: object) -> Path:
    data = {"format": "expertile-landscape-1", "knobs": {"a": [1, 2, 3, 4]}, "entries": [
        {"config": {"a": 1}, "us": 5.0}, {"config": {"a": 2}, "status": "build_error"},
        {"config": {"a": 3}, "status": "wrong", "error": "off by one"}]}
    (tmp_path / "land.json").write_text(json.dumps({**data, **changes}))
    return tmp_path / "land.json"


def test_replay_answers_as_recorded(tmp_path: Path) -> None:
    target, op = targets.load(f"replay:{_land(tmp_path)}"), OPS[0]
    assert [c["a"] for c in target.space(op, {})] == [1, 2, 3]
    kernel = target.build_kernel(op, {}, {"a": 1})
    assert target.time_us(lambda: kernel(out=()), 7) == 5.0
    with pytest.raises(BuildError):
        target.build_kernel(op, {}, {"a": 2})
    with pytest.raises(RunFailed, match="off by one") as e:
        target.build_kernel(op, {}, {"a": 3})(out=())
    assert e.value.status == "wrong"


@pytest.mark.parametrize(("changes", "rule"), [
    ({"format": "other"}, "format"), ({"entries": [{"config": {"a": 1}}]}, "us > 0"),
    ({"entries": [{"config": {"a": 1}, "us": -1}]}, "us > 0"),
    ({"entries": [{"config": {"a": 1}, "status": "odd"}]}, "status must be")], ids=str)
def test_bad_landscapes_are_refused(tmp_path: Path, changes: dict, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        targets.load(f"replay:{_land(tmp_path, **changes)}")
    with pytest.raises(ValueError, match="landscape"):
        targets.load(f"replay:{tmp_path / 'none.json'}")
    with pytest.raises(ValueError, match="needs a landscape"):
        targets.load("replay")
