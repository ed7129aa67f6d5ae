"""The anchor: a fixed kernel beside every race, and what its drift may decide."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from expertile import ops, targets
from expertile.opt import Budget, tune
from expertile.opt.anchor import Anchor, anchor_of
from expertile.opt.decide import FINAL_ROUNDS, RACE_ROUNDS, decide
from expertile.opt.noise import noise_of, noise_text
from expertile.opt.stats import low
from expertile.opt.workers import Raced
from expertile.targets.base import Target
from expertile.targets.null import NullTarget
from expertile.tuning_db.record import Record
from tests.tuning_db.records import candidate


@dataclass
class Machine:
    """Rounds on a machine that becomes slower by a factor in the middle of each race."""

    step: float
    gains: tuple[float, float]           # of config 1 over the default, before and after
    rng: np.random.Generator
    asked: list[int]

    def race(self, configs: list, rounds: int) -> Raced:
        self.asked.append(rounds)
        first = np.arange(rounds) < rounds // 2
        speed = np.where(first, 1.0, self.step)
        gain = {0: np.ones(rounds), 1: np.where(first, *self.gains)}

        def noisy(us: np.ndarray) -> list[float]:
            return (us * np.exp(self.rng.normal(0, 0.003, rounds))).tolist()

        return Raced([noisy(100 * speed / gain[c["i"]]) for c in configs], noisy(8.0 * speed))


def _decided(step: float, gains: tuple[float, float]):  # type: ignore[no-untyped-def]
    machine = Machine(step, gains, np.random.default_rng(0), [])
    rows = [candidate(0, us=100.0, default_us=100.0), candidate(1, us=90.0, default_us=100.0)]
    return decide(rows, {"i": 0}, None, machine.race), machine.asked


def test_a_verdict_from_an_anchors_samples() -> None:
    rng = np.random.default_rng(1)
    flat = np.exp(rng.normal(0, 0.002, 80)) * 8
    assert noise_of(flat[:7].tolist()) is None
    quiet = noise_of(flat.tolist())
    assert quiet is not None and quiet.verdict == "quiet" and abs(quiet.drift) < 0.01
    assert quiet.anchor_us == pytest.approx(low(flat.tolist()))
    slower = noise_of(np.where(np.arange(80) < 40, flat, 1.06 * flat).tolist())
    assert slower is not None and slower.verdict == "drifting"
    assert slower.drift == pytest.approx(0.06, abs=0.005)
    often = np.where(rng.random(80) < 0.6, flat * 1.5, flat)
    busy = noise_of(often.tolist())
    assert busy is not None and busy.verdict == "busy"
    assert re.search(r"drifted by \+(5\.\d|6\.\d) % between", noise_text(slower.to_json()))
    assert noise_text({}) == ""


def test_a_quiet_race_is_decided_at_once() -> None:
    verdict, asked = _decided(1.0, (1.1, 1.1))
    assert (verdict.decision, verdict.status) == ("tuned", "ok")
    assert verdict.noise is not None and verdict.noise.verdict == "quiet"
    assert asked == [RACE_ROUNDS, FINAL_ROUNDS] and len(verdict.anchor) == FINAL_ROUNDS


def test_a_drifting_machine_is_timed_twice_as_long_and_a_gain_must_hold_in_both_halves() -> None:
    held, asked = _decided(1.2, (1.1, 1.1))
    assert asked == [RACE_ROUNDS, FINAL_ROUNDS, 2 * FINAL_ROUNDS]
    assert held.decision == "tuned" and held.noise is not None
    assert held.noise.verdict == "drifting" and held.noise.drift == pytest.approx(0.2, abs=0.01)
    only_before, _ = _decided(1.2, (1.25, 1.0))
    assert (only_before.decision, only_before.status) == ("default kept", "noisy")
    assert "not in both halves" in only_before.note


def test_races_keep_their_samples_in_the_record(tmp_path: Path) -> None:
    op = ops.load("silu_mul")
    (outcome,) = tune(op, NullTarget(), [{"h": 64, "dtype": "float32", "tokens": 2}],
                      tmp_path / "x.sqlite", Budget(trials=44))
    record = outcome.record
    assert record.decision == "tuned" and len(record.race) >= 2
    assert max(map(len, record.race.values())) >= 5
    assert record.noise == {} and record.anchor == ()        # a virtual clock has no anchor
    assert Record.from_text(record.text) == record
    assert "anchor" not in record.to_json() and "race" in record.to_json()
    with pytest.raises(ValueError, match="race of x must be finite numbers"):
        Record.from_json({**record.to_json(), "race": {"x": [1.0, -2.0]}})


class Without(NullTarget):
    """A device on which torch computes nothing."""

    computes = True
    torch_device = "meta"

    def time_us(self, fn, inner):  # type: ignore[no-untyped-def]
        raise NotImplementedError


def test_the_anchor_is_fixed_work_and_absent_where_nothing_computes(tmp_path: Path) -> None:
    cpu: Target = targets.load("cpu", cache_dir=tmp_path)
    anchor = anchor_of(cpu)
    assert isinstance(anchor, Anchor)
    samples = [anchor.sample() for _ in range(30)]
    assert 0.1 < low(samples) < 500 and low(samples) <= min(samples) * 1.5
    assert anchor_of(NullTarget()) is None
    assert anchor_of(Without()) is None
