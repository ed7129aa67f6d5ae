"""The model computes the same whatever config the database chooses, and says which it used."""

from __future__ import annotations

import random
from pathlib import Path

from expertile.model.llm import LLM
from expertile.ops.space import config_text
from expertile.tuning_db.key import key_of
from expertile.tuning_db.record import Provenance, Record
from expertile.tuning_db.store import TuningDB

from .conftest import Checkpoints, Models

TOLERANCE = 1e-4


def odd_winners(llm: LLM, seed: int) -> list[Record]:
    """A record with some other config than the default for every call shape that a model made."""
    draw, target, records = random.Random(seed), llm.runtime.target, []
    assert target is not None
    for bound in llm.runtime._by_shape.values():
        space = target.space(bound.op, bound.shape)
        configs = sorted(map(config_text, space))
        configs.remove(config_text(space.default()))
        text = draw.choice(configs)
        config = next(c for c in space if config_text(c) == text)
        records.append(Record(
            key=key_of(bound.op, target, bound.shape), config=config, status="ok", role="winner",
            evidence="L4 timed", kind="measured", decision="tuned", us=1.0, default_us=2.0,
            provenance=Provenance("0.1.0", "2026-11-22T00:00:00Z")))
    return records


def test_logits_do_not_depend_on_the_configs(checkpoint: Checkpoints, load: Models,
                                             tmp_path: Path) -> None:
    made = checkpoint("v3")
    default = load("v3")
    want = default.logits(made.reference.ids[:, :40], prefill=36)
    db = tmp_path / "odd.sqlite"
    with TuningDB(db) as store:
        store.add(*odd_winners(default, seed=1))
    tuned = LLM(made.path, db=db, page_size=16)
    got = tuned.logits(made.reference.ids[:, :40], prefill=36)
    assert float((got - want).abs().max()) <= TOLERANCE
    rows = tuned.op_report()
    assert {(r["answered_by"], r["tier"]) for r in rows} == {("tuned", "exact")}
    assert {r["op"] for r in rows} >= {"fused_moe", "gemm_nt", "mla_decode", "mla_kv_append",
                                       "mla_prefill", "moe_route", "silu_mul"}
