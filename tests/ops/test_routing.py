"""Routings: how the experts' load is drawn, named and read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from expertile import ops
from expertile.ops.routing import Routing, draw, parse, recorded


def loads(routing: Routing, experts: int, tokens: int = 20_000, top_k: int = 1) -> torch.Tensor:
    """Sorted shares of drawn tokens."""
    ids = draw(tokens, top_k, experts, 1, routing.shares(experts))
    return ids.flatten().bincount(minlength=experts).sort(descending=True).values / ids.numel()


def test_uniform_is_even() -> None:
    assert loads(parse("uniform"), 16).max() < 1.1 / 16


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_zipf_has_its_shares(exponent: float) -> None:
    want = parse(f"zipf-{exponent}").shares(16)
    assert want is not None
    assert (loads(parse(f"zipf-{exponent}"), 16) - want).abs().max() < 0.01


def test_a_recorded_load_is_drawn_again_and_named_by_what_it_is() -> None:
    routing = recorded([1, 0, 6, 3])
    assert torch.allclose(loads(routing, 4), torch.tensor([0.6, 0.3, 0.1, 0.0]), atol=0.01)
    assert routing.name == recorded([3, 6, 0, 1]).name != recorded([3, 6, 1, 1]).name
    with pytest.raises(ValueError, match="recorded for 4 experts, got a layer of 8"):
        routing.shares(8)


def test_a_tokens_experts_are_distinct_and_the_heavy_one_differs_between_draws() -> None:
    shares = parse("zipf-2").shares(8)
    ids = [draw(500, 3, 8, seed, shares) for seed in range(8)]
    assert all(len(set(row)) == 3 for row in ids[0].tolist())
    assert len({int(i.flatten().bincount().argmax()) for i in ids}) > 2


@pytest.mark.parametrize("text", ["zipf-0", "zipf-x", "zipf-9", "zipf--1", "even", "none.json"])
def test_what_is_no_routing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="zipf-S"):
        parse(text)


@pytest.mark.parametrize("counts", ["no", [], [1, "2"], [-1, 2], [0, 0]])
def test_a_file_without_counts_is_refused(counts: object, tmp_path: Path) -> None:
    file = tmp_path / "seen.json"
    file.write_text(json.dumps({"routing": {"counts": counts}}))
    with pytest.raises(ValueError, match="one (number|count)"):
        parse(str(file))


@pytest.mark.parametrize("name", ["fused_moe", "m_grouped_gemm_nt_contiguous"])
def test_operators_with_experts_follow_it(name: str) -> None:
    op = ops.load(name)
    assert op.is_routed
    shape = {**op.odd_shapes[0], "tokens": 4000}
    args = op.redraw(op.inputs(shape, 0), 1, torch.tensor([0.9, 0.1, 0.0, 0.0, 0.0]))
    ids = next(a for a in args[::-1] if isinstance(a, torch.Tensor) and a.dtype == torch.int32)
    first = ids[:, 0] if ids.ndim == 2 else ids
    assert first.bincount(minlength=5).max() > 0.85 * 4000
    assert not ops.load("gemm_nt").is_routed
