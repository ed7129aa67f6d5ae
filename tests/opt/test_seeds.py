"""What a search begins with: the model's favourites, neighbours' winners, few of other devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expertile import ops, targets
from expertile.ops.models import Load, preset
from expertile.ops.space import Config
from expertile.ops.spec import Shape
from expertile.opt import Budget, tune
from expertile.opt.cpu_model import estimate_us, parallel_us, tile_cycles
from expertile.opt.job import Job, Method
from expertile.opt.pool import Pool
from expertile.opt.seeds import DEVICES, MODELLED, NEIGHBOURS, diverse, seeds
from expertile.targets.cpu import CpuTarget
from expertile.tuning_db.key import key_of
from expertile.tuning_db.record import Record
from expertile.tuning_db.store import TuningDB
from tests.tuning_db.records import OP, SHAPE, TARGET, winner

POOL = Pool(TARGET.space(OP, SHAPE))


def _job(db: TuningDB, target: Any = TARGET, op: Any = OP, shape: Shape = SHAPE) -> Job:
    return Job(op, target, shape, db, None, {}, None, None, 0, "",  # type: ignore[arg-type]
               print, 0, 1)


def _seeds(path: Path, rows: list[Record]) -> list[Config]:
    with TuningDB(path) as db:
        db.add(*rows)
        return seeds(_job(db))


def _of(config: Config, **changes: Any) -> Record:
    return winner(config=config, equivalents=(), **changes)


def test_winners_of_the_nearest_sizes_come_first_and_no_more_than_four(tmp_path: Path) -> None:
    rows = [_of(POOL.configs[i], shape={**SHAPE, "tokens": 64 + i}) for i in range(1, 9)]
    assert _seeds(tmp_path / "x.sqlite", rows) == POOL.configs[1:1 + NEIGHBOURS]


def test_other_devices_give_few_that_are_unlike_each_other(tmp_path: Path) -> None:
    configs = [{"tile": t, "unroll": u, "split": 1} for t in (64, 128) for u in (1, 2, 4, 8)]
    far = {"tile": 16, "unroll": 8, "split": 2}
    rows = [_of(c, key_arch=f"other{i}", key_device=f"other{i}")
            for i, c in enumerate([*configs, far, {"tile": 5}])]
    found = _seeds(tmp_path / "x.sqlite", rows)
    assert len(found) == DEVICES and far in found and all(c in POOL.configs for c in found)
    places = [POOL.place(c) for c in found]
    assert min(sum(a != b for a, b in zip(x, y, strict=True))
               for i, x in enumerate(places) for y in places[:i]) >= 1
    assert diverse([configs[0], configs[0], {"tile": 5}], POOL) == [configs[0]]


def test_what_seeds_nothing(tmp_path: Path) -> None:
    kept = _of(POOL.configs[3], decision="default kept", key_arch="other")
    foreign_axes = _of(POOL.configs[4], key_static={"k": 1})
    assert _seeds(tmp_path / "x.sqlite", [kept, foreign_axes]) == []


def _cpu(folder: Path, threads: int = 2) -> CpuTarget:
    made = targets.load(f"x86-avx512:{threads}", cache_dir=folder)
    assert isinstance(made, CpuTarget)
    return made


def test_the_cpus_model_knows_threads_tiles_and_vectors(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    assert parallel_us(4, 10.0, 2) < parallel_us(5, 10.0, 2) == parallel_us(6, 10.0, 2)
    assert tile_cycles(6, 4, 0, 16) / 24 < tile_cycles(1, 4, 0, 16) / 4     # loads amortised
    assert tile_cycles(6, 6, 0, 16) / 36 > tile_cycles(6, 4, 0, 16) / 24    # registers spilled
    gemm, two = ops.load("gemm_nt"), _cpu(tmp_path)
    shape = {"n": 576, "k": 2048, "a_dtype": "float32", "w_dtype": "bfloat16",
             "out_dtype": "float32", "block_n": 128, "block_k": 128, "tokens": 4}

    def modelled(op: Any, at: Shape, target: CpuTarget = two, **knobs: Any) -> float:
        us = estimate_us(op, target, at, {**target.space(op, at).default(), **knobs})
        assert us is not None
        return us

    assert modelled(gemm, shape, chunk=512) > 1.3 * modelled(gemm, shape, chunk=128)
    assert modelled(gemm, shape, _cpu(tmp_path, 4)) < modelled(gemm, shape)
    mla = ops.load("mla_decode")
    long = {"heads": 16, "head_dim_v": 512, "rope": 64, "page": 64, "s_q": 1, "dtype": "float32",
            "kv_dtype": "float32", "causal": True, "batch": 2, "ctx": 512}
    assert modelled(mla, long, workers=1) > 1.5 * modelled(mla, long, workers=2)
    quant = {"k": 2048, "group_size": 128, "dtype": "float32", "ue8m0": False, "tokens": 64}
    assert modelled(OP, quant, rows=64) > 1.5 * modelled(OP, quant, rows=16)
    prefill = ops.load("mla_prefill")
    prompt = {"heads": 4, "d_qk": 192, "d_v": 128, "dtype": "float32", "causal": True,
              "tokens": 512, "ctx": 512, "batch": 1}
    assert modelled(prefill, prompt, _cpu(tmp_path, 4)) < 0.6 * modelled(prefill, prompt)
    assert modelled(prefill, {**prompt, "ctx": 2048}) > 3 * modelled(prefill, prompt)
    assert modelled(prefill, {**prompt, "causal": False}) > 1.4 * modelled(prefill, prompt)
    block = {"k": 1024, "block_n": 128, "block_k": 128, "dtype": "float32", "ue8m0": False,
             "n": 128}
    whole = ops.load("per_block_quant_fp8")
    assert modelled(whole, block, blocks=8) > 1.5 * modelled(whole, block, blocks=4)
    assert estimate_us(OP, TARGET, SHAPE, POOL.configs[0]) is None


def test_the_cpus_model_knows_every_operator(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    cpu, load = _cpu(tmp_path), Load(tokens=(1, 64), batch=(1, 8), ctx=(256,))
    for name in ops.names():
        op = ops.load(name)
        for shape in op.shapes(preset("v2-lite"), load):
            space = cpu.space(op, shape)
            for config in Pool(space).configs[::7]:
                us = estimate_us(op, cpu, shape, config)
                assert us is not None and 0 < us < 1e7, (name, shape, config)


def test_a_cpus_search_begins_with_the_models_favourites(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    cpu = _cpu(tmp_path)
    shape = {"k": 2048, "group_size": 128, "dtype": "float32", "ue8m0": False, "tokens": 64}
    with TuningDB(tmp_path / "x.sqlite") as db:
        found = seeds(_job(db, cpu, OP, shape))
    pool = Pool(cpu.space(OP, shape))
    times = sorted(estimate_us(OP, cpu, shape, c) or 0.0 for c in pool.configs)
    assert len(found) == MODELLED
    assert [estimate_us(OP, cpu, shape, c) for c in found] == times[:MODELLED]


def test_a_cpu_is_ranked_without_measuring_and_the_record_says_so(tmp_path: Path) -> None:
    cpu = targets.load("cpu:1", cache_dir=tmp_path / "cache")
    if cpu.available() is not None:
        pytest.skip("no compiler for this CPU")
    shape = {"k": 128, "group_size": 128, "dtype": "float32", "ue8m0": False, "tokens": 4}
    (outcome,) = tune(OP, cpu, [shape], tmp_path / "x.sqlite", Budget(trials=3),
                      method=Method(measure=False))
    record = outcome.record
    assert record.is_modelled and record.evidence == "L2 native object" and not record.samples
    assert record.us == pytest.approx(estimate_us(OP, cpu, shape, record.config))
    assert record.key == key_of(OP, cpu, shape) and record.decision in ("ranked", "default kept")
    assert replace(record, error="") == Record.from_text(replace(record, error="").text)
