"""Which record answers: tiers, sizes, regimes, layers, and why."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expertile.targets.null import NullTarget
from expertile.tuning_db import TuningDBError
from expertile.tuning_db.lookup import Snapshot, load_snapshot
from expertile.tuning_db.record import Record
from expertile.tuning_db.shipped import write_lines
from expertile.tuning_db.store import TuningDB
from tests.tuning_db.records import CONFIG, OP, SHAPE, TARGET, candidate, winner


class Tooled(NullTarget):
    """The null target with a toolchain."""

    def toolchain(self) -> dict[str, str]:
        return {"tvm": "0.27.3", "mcpu": "x86-64-v3"}


TOOLS = {"tvm": "0.27.3", "mcpu": "x86-64-v3"}


def _answer(*records: Record, target: NullTarget = TARGET, op: Any = OP, **axes: Any) -> Any:
    return Snapshot({"user": records}).answer(op, target, {**SHAPE, **axes})


@pytest.mark.parametrize(("tools", "device", "tier", "served"), [
    (TOOLS, "null", "exact", True),
    ({**TOOLS, "tvm": "0.27.0"}, "null", "patch", True),
    ({**TOOLS, "tvm": "0.27.0.post1"}, "null", "patch", True),
    (TOOLS, "nullo 9000", "capabilities", True),
    ({**TOOLS, "tvm": "0.28.0"}, "null", "minor", False),
    ({**TOOLS, "tvm": "1.0.0"}, "null", "family", False),
    ({**TOOLS, "mcpu": "x86-64-v4"}, "null", "family", False),
    ({"tvm": "0.27.3"}, "null", "family", False),
    (TOOLS, "other", "family", False),
], ids=str)
def test_tiers(tools: dict[str, str], device: str, tier: str, served: bool) -> None:
    target = Tooled(aliases=("nullo 9000",))
    answer = _answer(winner(key_toolchain=tools, key_device=device), target=target)
    assert answer.tier == tier and (answer.config == CONFIG) is served
    if served:
        names = [name for name, _, _ in answer.differs]
        assert names == ([] if tier == "exact" else
                         ["device"] if tier == "capabilities" else ["toolchain.tvm"])
        assert answer.expected_loss == (0.0 if tier == "exact" else None)
    else:
        assert answer.record is None and "default config answers" in answer.why


@pytest.mark.parametrize(("key", "value"), [("source", "0" * 16), ("arch", "other"),
                                            ("routing", "zipf")])
def test_other_source_arch_or_routing_is_never_served(key: str, value: str) -> None:
    answer = _answer(winner(**{f"key_{key}": value}))
    assert answer.config is None and answer.tier == {"source": "stale", "arch": "none",
                                                     "routing": "family"}[key]
    assert _answer(winner(), k=512).tier == "none"


@pytest.mark.parametrize(("tokens", "expected"), [
    (64, 64), (60, 64), (33, 64), (32, 64), (65, 128), (100, 128), (128, 128), (200, 128),
    (256, 128), (257, None), (31, None), (1, None)])
def test_untuned_sizes_go_up_within_a_factor_of_two(tokens: int, expected: int | None) -> None:
    records = [winner(shape={**SHAPE, "tokens": t}) for t in (64, 128)]
    answer = _answer(*records, tokens=tokens)
    got = answer.record and answer.record.key.dynamic["tokens"]
    assert got == expected and (answer.config is None) == (expected is None)
    if got not in (None, tokens):
        assert answer.differs == (("dynamic.tokens", got, tokens),)


def test_no_record_crosses_a_regime() -> None:
    op = replace(OP, regime=lambda shape: "decode" if int(shape["tokens"]) < 64 else "prefill")
    assert _answer(winner(), op=op, tokens=48).config is None
    assert _answer(winner(), op=op, tokens=100).config == CONFIG
    small = winner(shape={**SHAPE, "tokens": 32}, config={**CONFIG, "tile": 64})
    assert _answer(winner(), small, op=op, tokens=48).config == {**CONFIG, "tile": 64}


def test_config_outside_the_space_is_refused_and_the_next_record_answers() -> None:
    bad = winner(config={"tile": 999, "unroll": 4, "split": 1})
    answer = _answer(bad)
    assert answer.config is None and "tile must be one of" in answer.why
    answer = Snapshot({"override": [bad], "user": [winner()]}).answer(OP, TARGET, SHAPE)
    assert (answer.config, answer.layer) == (CONFIG, "user")


def test_default_kept_answers_with_the_default_and_says_so() -> None:
    default = TARGET.space(OP, SHAPE).default()
    answer = _answer(winner(config=default, decision="default kept", speedup=1.0))
    assert answer.config == default and "default config was kept" in answer.why


def test_measured_beats_modelled_and_higher_layers_beat_lower_ones() -> None:
    other = {**CONFIG, "tile": 64}
    model = winner(kind="modelled", config=other)
    snapshot = Snapshot({"override": [model], "shipped": [winner()]})
    assert snapshot.answer(OP, TARGET, SHAPE).layer == "shipped"
    for upper, lower in (("override", "project"), ("project", "user"), ("user", "shipped")):
        snapshot = Snapshot({upper: [winner(config=other)], lower: [winner()]})  # type: ignore[dict-item]
        assert snapshot.answer(OP, TARGET, SHAPE).layer == upper


def test_explain_lists_every_record_with_what_differs() -> None:
    records = [winner(shape={**SHAPE, "tokens": 128}), winner(key_source="0" * 16), winner(),
               winner(shape={**SHAPE, "k": 512})]
    found = Snapshot({"user": records}).explain(OP, TARGET, SHAPE)
    assert found.answer.record == records[2] and found.wanted == records[2].key
    assert [(c.tier, c.serves) for c in found.candidates] == [
        ("exact", True), ("exact", False), ("stale", False), ("none", False)]
    assert found.candidates[1].differs == (("dynamic.tokens", 128, 64),)
    assert found.candidates[1].why_not == "another record is nearer"
    assert found.candidates[2].differs[0][0] == "source"
    assert "stale" in found.candidates[2].why_not
    assert found.candidates[3].differs == (("static.k", 512, 256),)


def test_layers_from_files_and_damage_in_one_of_them(tmp_path: Path) -> None:
    user, project = tmp_path / "user.sqlite", tmp_path / "project.jsonl"
    with TuningDB(user) as db:
        db.add(winner(), candidate(1))
    write_lines(project, [winner(config={**CONFIG, "tile": 64})])
    snapshot = load_snapshot(None, user, project, shipped=False)
    assert len(snapshot) == 2 and snapshot.problems == ()
    assert snapshot.answer(OP, TARGET, SHAPE).layer == "project"
    project.write_text("{}\n")
    with pytest.warns(RuntimeWarning, match="line 1 is damaged"):
        snapshot = load_snapshot(None, user, project, shipped=False)
    assert snapshot.answer(OP, TARGET, SHAPE).layer == "user"
    user.write_text("not a database " * 100)
    with pytest.warns(RuntimeWarning, match="user layer is left out"):
        snapshot = load_snapshot(None, user, tmp_path / "none.sqlite", shipped=False)
    assert len(snapshot) == 0 and len(snapshot.problems) == 1
    for path in (user, tmp_path / "none.sqlite", tmp_path / "none.jsonl"):
        with pytest.raises(TuningDBError):
            load_snapshot(path, shipped=False)


def test_thousand_rows_load_fast_and_a_lookup_is_cheap(tmp_path: Path) -> None:
    with TuningDB(tmp_path / "x.sqlite") as db:
        db.add(*(winner(shape={**SHAPE, "k": 128 * (i % 50), "tokens": 2 ** (i // 50)},
                        samples=(1.0,) * 40) for i in range(1000)))

    def load() -> float:
        start = time.process_time()
        assert len(load_snapshot(tmp_path / "x.sqlite", shipped=False)) == 1000
        return time.process_time() - start

    assert min(load() for _ in range(3)) < 0.3        # 0.1 s when nothing else runs
    snapshot = load_snapshot(tmp_path / "x.sqlite", shipped=False)
    start = time.process_time()
    for _ in range(200):
        snapshot.answer(OP, TARGET, SHAPE)
    assert (time.process_time() - start) / 200 < 2e-3
