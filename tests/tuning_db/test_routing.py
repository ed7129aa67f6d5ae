"""Which record answers a model whose tokens spread unevenly over experts."""

from __future__ import annotations

import pytest

from expertile import Runtime, ops
from expertile.tuning_db.key import key_of
from expertile.tuning_db.lookup import Answer, Snapshot

from .records import CONFIG, TARGET, winner

MOE = ops.load("fused_moe")
SHAPE = MOE.odd_shapes[0]
SKEWED = {**CONFIG, "split": 2}
UNIFORM, ZIPF = winner(MOE, SHAPE), winner(MOE, SHAPE, key_routing="zipf-1.2", config=SKEWED)


def answer(*records: object, routing: str) -> Answer:
    return Snapshot({"user": records}).answer(MOE, TARGET, SHAPE, routing)  # type: ignore[dict-item]


@pytest.mark.parametrize(("wanted", "config", "tier"), [
    ("uniform", CONFIG, "exact"), ("zipf-1.2", SKEWED, "exact"),
    ("recorded-01234567", CONFIG, "capabilities")])
def test_the_wanted_routing_answers_and_a_uniform_record_stands_in(
        wanted: str, config: dict[str, int], tier: str) -> None:
    found = answer(ZIPF, UNIFORM, routing=wanted)
    assert (found.config, found.tier) == (config, tier)
    assert found.differs == (() if tier == "exact" else (("routing", "uniform", wanted),))


def test_another_models_routing_never_answers() -> None:
    assert answer(ZIPF, routing="uniform").config is None
    assert answer(ZIPF, routing="zipf-2").tier == "family"


def test_an_operator_without_experts_has_no_routing() -> None:
    op = ops.load("gemm_nt")
    assert key_of(op, TARGET, op.odd_shapes[0], "zipf-2").routing == "uniform"


def test_a_runtime_wants_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Runtime().routing == "uniform"
    monkeypatch.setenv("EXPERTILE_ROUTING", "zipf-1.20")
    assert Runtime().routing == "zipf-1.2"
    assert Runtime(routing="recorded-01234567").routing == "recorded-01234567"
    with pytest.raises(ValueError, match="zipf-S"):
        Runtime(routing="skewed")
