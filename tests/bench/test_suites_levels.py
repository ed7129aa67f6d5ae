"""Suites at a lower level of the CPU, and what records say of tuned against default."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expertile import bench, ops
from expertile.bench.result import Machine, Result
from expertile.bench.static import points as static_points
from expertile.bench.suites import goals, jobs, ladder, levels, points, runner, table, tuned
from expertile.targets.child import Child
from expertile.targets.cpu import target as cpu_target
from expertile.targets.cpu.levels import LEVELS
from expertile.tuning_db import shipped
from expertile.tuning_db.key import Key, key_of
from expertile.tuning_db.lookup import load_snapshot
from expertile.tuning_db.record import Provenance, Record
from expertile.tuning_db.shipped import write_lines


def test_peers_are_held_to_the_level_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "host_arch", lambda: "x86-avx512-bf16")
    assert levels.environment("x86-avx512-bf16") == {}
    assert levels.environment("x86-avx2")["ATEN_CPU_CAPABILITY"] == "avx2"
    with pytest.raises(ValueError, match="cannot be held to aarch64"):
        levels.environment("aarch64")
    held = {"torch's code": "AVX2", "torch's bfloat16 product": "14.1 times float32's time"}
    assert levels.disobeys("x86-avx2", held) == ""
    assert "uses AVX512" in levels.disobeys("x86-avx2", {**held, "torch's code": "AVX512"})
    fast = {**held, "torch's bfloat16 product": "0.5 times float32's time"}
    assert "faster than float32" in levels.disobeys("x86-avx2", fast)
    about: dict[str, Any] = {"arch": "x86-avx2", "host arch": "x86-avx512-bf16"}
    said = table.notes(Result(Machine("cpu", "x86-avx2-t1", 1, "h"), {}, (), "", "0",
                              settings=about))
    assert "x86-avx2 code on a machine of level x86-avx512-bf16" in said[0]


@pytest.mark.skipif(not LEVELS["x86-avx2"].runs_here(), reason="needs a CPU with AVX2")
def test_a_torch_that_is_held_to_avx2_says_so() -> None:
    child = Child(0, env=levels.environment("x86-avx2"))
    try:
        told = runner.call(child, jobs.hold_torch, arch="x86-avx2", compiles=True)
    finally:
        child.close()
    assert levels.disobeys("x86-avx2", told) == ""
    assert "avx512" not in told["torch.compile's code"]


def record(us: float, decision: str, tokens: int) -> Record:
    shape = {"k": 256, "group_size": 128, "dtype": "bfloat16", "ue8m0": False}
    key = Key("per_token_group_quant_fp8", shape, {"tokens": tokens}, "uniform", "x86-avx2-t1",
              "x86-avx2", "0", {})
    return Record(key, {}, "ok", "winner", "L4 timed", "measured", Provenance("0", "t"),
                  decision, us, 10.0, speedup=10.0 / us)  # type: ignore[arg-type]


def test_tuned_against_default_is_summed_up_from_the_records(tmp_path: Path) -> None:
    write_lines(tmp_path / "x.jsonl", [record(5.0, "tuned", 1), record(8.0, "tuned", 2),
                                       record(10.0, "default kept", 3)])
    lines = [tuned.said(r) for r in tuned.ladder(tmp_path / "x.jsonl")]
    told, holds = tuned.summary(lines, 1.2)
    assert holds and "3 records, 2 tuned" in told[0] and "half of the ladder gains 1.25x" in told[0]
    assert not tuned.summary(lines, 1.3)[1]
    slower = replace(lines[0], again=goals.Spread(0.9, 0.88, 0.95))
    assert slower.loses and not tuned.summary([*lines[1:], slower], 1.0)[1]
    assert not replace(lines[0], again=goals.Spread(0.97, 0.9, 1.05)).loses     # noise


def test_records_are_tuned_for_shapes_of_the_suite() -> None:
    rows = ladder.shapes("x86-avx2")
    in_suite = [dict(s) for p in points.cpu_ops((1,), False, False) for s in p.shapes.values()]
    assert len(rows) > 40 and all(row["shape"] in in_suite for row in rows)
    assert len(ladder.shapes("x86-avx512-bf16")) > len(rows)
    text = (Path(bench.__file__).resolve().parent / "cpu_records.sh").read_text()
    named = [line.split() for line in text.partition("WORK='")[2].partition("'")[0].splitlines()
             if line]
    assert sum(int(share) for share, _ in named) == 100
    covered = {json.dumps(r) for _, row in named if row != "tiny"
               for r in ladder.shapes("x86-avx2", row)}
    assert covered == {json.dumps(r) for r in rows}


def test_an_exported_file_answers_as_the_shipped_layer(tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    op = ops.load("per_token_group_quant_fp8")
    target = cpu_target("x86-avx2:2", cache_dir=tmp_path)
    shape = {"k": 256, "group_size": 128, "dtype": "bfloat16", "ue8m0": False, "tokens": 4}
    config = dict(target.space(op, shape).default())
    exported = replace(record(5.0, "tuned", 4), key=key_of(op, target, shape), config=config)
    write_lines(tmp_path / "x86-avx2.jsonl", [exported])
    monkeypatch.setattr(shipped, "RECORDS_DIR", tmp_path)
    answer = load_snapshot(None).answer(op, target, shape)
    assert (answer.layer, answer.tier, answer.config) == ("shipped", "exact", config)
    assert static_points.records_of(target) == [exported]
