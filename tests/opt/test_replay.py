"""Replay: every format of a recorded landscape is read alike, and damaged ones are refused."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from expertile.opt import replay
from expertile.opt.replay import shares
from expertile.opt.search.landscape import read

KNOBS = {"block": [64, 16, 32, 128, 256], "split": [1, 2, 4, 8], "stages": [2, 1, 3, 4],
         "mode": ["a", "b", "c"]}


def _entries() -> list[tuple[dict[str, Any], float]]:
    entries = []
    for b in KNOBS["block"]:
        for s in KNOBS["split"]:
            for g in KNOBS["stages"]:
                for m in KNOBS["mode"]:
                    if b * g > 768:                  # invalid: not in the file at all
                        continue
                    us = 10 * (1 + abs(math.log2(b / 128)) / 3 + abs(math.log2(s / 2)) / 4
                               + abs(g - 3) / 5 + "bca".index(m) / 10)
                    failed = b == 256 and s == 8
                    entries.append(({"block": b, "split": s, "stages": g, "mode": m},
                                    math.inf if failed else us))
    return entries


def _cache() -> dict[str, Any]:
    cache = {}
    for config, us in _entries():
        time = us if math.isfinite(us) else "RuntimeFailedConfig"
        cache[",".join(map(str, config.values()))] = {**config, "time": time, "times": [us] * 2,
                                                      "compile_time": 3.5}
    return {"device_name": "X", "kernel_name": "k", "problem_size": [64, 64],
            "tune_params_keys": list(KNOBS), "tune_params": KNOBS, "objective": "time",
            "cache": cache}


def _as_kernel_tuner_writes(data: dict[str, Any]) -> str:
    """One entry a line; open until the tuner closes it."""
    head = json.dumps({k: v for k, v in data.items() if k != "cache"}, indent="")[:-2]
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}".replace("Infinity", '"InfeasibleConfig"')
                       for k, v in data["cache"].items())
    return f'{head},\n"cache": {{\n{lines}'


def _t4() -> dict[str, Any]:
    return {"results": [
        {"configuration": config, "invalidity": "correct" if math.isfinite(us) else "runtime",
         "measurements": [{"name": "time", "unit": "",
                           "value": us if math.isfinite(us) else "RuntimeFailedConfig"}],
         "objectives": ["time"]} for config, us in _entries()], "schema_version": "1.0.0"}


def _ours() -> dict[str, Any]:
    return {"format": "expertile-landscape-1", "knobs": KNOBS, "entries": [
        {"config": config, "us": us} if math.isfinite(us) else
        {"config": config, "status": "run_error"} for config, us in _entries()]}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    opened = _as_kernel_tuner_writes(_cache())
    texts = {"closed": opened + "}\n}", "open": opened + ",\n", "t4": json.dumps(_t4()),
             "ours": json.dumps(_ours()), "half": opened + ',\n"64,1,1,a": {"block": 64, "spl'}
    paths = {}
    for name, text in texts.items():
        paths[name] = tmp_path / f"{name}.json"
        paths[name].write_text(text)
    paths["gzip"] = tmp_path / "packed.json.gz"
    paths["gzip"].write_bytes(gzip.compress(texts["open"].encode()))
    return paths


@pytest.mark.parametrize("form", ["closed", "open", "half", "gzip", "t4", "ours"])
def test_every_format_says_the_same(files: dict[str, Path], form: str) -> None:
    landscape = read(files[form])
    assert {json.dumps(c, sort_keys=True): landscape.time(c) for c in landscape.pool.configs} == {
        json.dumps(c, sort_keys=True): us for c, us in _entries()}
    assert len(landscape.pool) == 228 and landscape.failing == 9
    assert landscape.optimum == pytest.approx(10.0)
    assert landscape.has_default == (form == "ours")


def test_one_list_a_seed_of_unique_evaluations(files: dict[str, Path]) -> None:
    times = {us for _, us in _entries()}
    runs = replay(files["closed"], "portfolio", budget=60, seeds=(0, 1, 0))
    assert [len(run) for run in runs] == [60] * 3 and runs[0] == runs[2] != runs[1]
    assert all(t in times for run in runs for t in run)
    full = replay(files["open"], budget=500, seeds=range(2))
    assert all(sorted(run) == sorted(us for _, us in _entries()) for run in full)
    assert all(run.count(math.inf) == 9 for run in full)


def test_ours_begins_with_the_default(files: dict[str, Path]) -> None:
    (default,) = {us for c, us in _entries() if tuple(c.values()) == (64, 1, 2, "a")}
    assert all(run[0] == default for run in replay(files["ours"], budget=3, seeds=range(4)))


def test_guided_needs_less_than_0_6_of_what_chance_needs(files: dict[str, Path]) -> None:
    def median_to_5(sampler: Any) -> float:
        needed = [next((i for i, t in enumerate(run) if t <= 10.5), 228)
                  for run in replay(files["closed"], sampler, 70, range(9))]
        return sorted(needed)[4]

    by_chance = 229 / (1 + sum(us <= 10.5 for _, us in _entries()))
    assert median_to_5("tpe") < 0.6 * by_chance
    assert median_to_5("portfolio") < 0.6 * by_chance


def test_shares() -> None:
    found = shares([[20.0, 10.4] + [30.0] * 98, [math.inf, 10.9] + [30.0] * 98], 10.0, 100)
    assert [(s.evaluations, s.within_5, s.within_10) for s in found] == [
        (25, 0.5, 1.0), (50, 0.5, 1.0), (100, 0.5, 1.0)]
    assert found[0].ratio == pytest.approx(1.065)


@pytest.mark.parametrize(("text", "says"), [
    ("", "Expecting value"), ("[]", "no JSON object"), ("{}", "neither Kernel Tuner"),
    ('{"format": "expertile-landscape-9"}', "neither Kernel Tuner"),
    ('{"tune_params_keys": ["a"], "cache": {}}', "no config in it has a time"),
    ('{"tune_params_keys": ["a"], "cache": {"1": {"b": 1}}}', "KeyError 'a'"),
    ('{"tune_params_keys": ["a"], "cache": {"1": {"a": [1], "time": 2}}}', "TypeError"),
    ('{"tune_params_keys": ["a"],\n"cache": {"1": {"a": 1,\n"2": {"a"', "broken before the last"),
    ('{"format": "expertile-landscape-1", "knobs": {"a": [1, 2]}, "entries": '
     '[{"config": {"a": 2}, "us": 3}]}', "must hold its default config"),
    ('{"format": "expertile-landscape-1", "knobs": {"a": [1]}, "entries": '
     '[{"config": {"a": 7}, "us": 3}, {"config": {"a": 1}, "us": 3}]}', "a must be one of"),
])
def test_damaged_files_are_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="bad.json is no landscape") as error:
        replay(path)
    assert says in str(error.value)


def test_damaged_gzip_and_missing_files_are_named(tmp_path: Path, files: dict[str, Path]) -> None:
    (tmp_path / "cut.gz").write_bytes(files["gzip"].read_bytes()[:200])
    for name in ("cut.gz", "none.json"):
        with pytest.raises(ValueError, match=f"{name} is no landscape"):
            replay(tmp_path / name)
    with pytest.raises(ValueError, match="at least 1 evaluation, got 0"):
        replay(files["t4"], budget=0)


def test_the_command(files: dict[str, Path]) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "expertile", "tune", "replay", *args],
                              capture_output=True, text=True, timeout=120)

    done = run(str(files["gzip"]), "--sampler", "tpe", "--budget", "40", "--seeds", "3", "--json")
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    runs = replay(files["gzip"], "tpe", 40, range(3))
    assert out["runs"] == [[t if math.isfinite(t) else None for t in r] for r in runs]
    assert (out["configs"], out["failing"], out["optimum"]) == (228, 9, pytest.approx(10.0))
    assert [r["evaluations"] for r in out["reached"]] == [25, 40]
    refused = run(str(files["t4"]), "--seeds", "0")
    assert refused.returncode == 2 and "--seeds must be at least 1" in refused.stderr


def test_a_run_stops_when_its_model_expects_no_more(files: dict[str, Path]) -> None:
    """On a smooth landscape soon and at its best; never where a guess has no model."""
    best = min(us for _, us in _entries())
    runs = replay(files["closed"], sampler="portfolio", budget=200, seeds=range(3), stop_gain=0.01)
    assert all(60 <= len(run) < 150 and min(run) == best for run in runs)
    assert all(run == whole[:len(run)] for run, whole in zip(runs, replay(
        files["closed"], sampler="portfolio", budget=200, seeds=range(3)), strict=True))
    random = replay(files["closed"], sampler="random", budget=200, seeds=range(1), stop_gain=0.5)
    assert len(random[0]) == min(200, len(_entries()))
