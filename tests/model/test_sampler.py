"""Sampling against plain computations of the distributions."""

from __future__ import annotations

import pytest
import torch

from expertile.model import SamplingParams
from expertile.model.sampler import draw, generator, logprobs, probabilities

LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -3.0, 1.5])


def sample(logits: torch.Tensor, params: SamplingParams, source: torch.Generator) -> int:
    return int(draw(logits[None], [params], [source]))


def test_temperature_scales_logits() -> None:
    got = probabilities(LOGITS, SamplingParams(temperature=0.5))
    assert torch.allclose(got, torch.softmax(LOGITS / 0.5, -1))


@pytest.mark.parametrize("k", [1, 3, 7, 100, 0, -1])
def test_top_k_keeps_the_k_most_likely(k: int) -> None:
    got = probabilities(LOGITS, SamplingParams(top_k=k))
    count = k if 0 < k < 7 else 7
    kept = sorted(range(7), key=lambda i: -float(LOGITS[i]))[:count]
    want = torch.zeros(7)
    want[kept] = torch.softmax(LOGITS[kept], -1)
    assert torch.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.6, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_fewest_that_reach_p(p: float) -> None:
    full = torch.softmax(LOGITS, -1).tolist()
    got = probabilities(LOGITS, SamplingParams(top_p=p))
    kept, total = [], 0.0
    for i in sorted(range(7), key=lambda i: -full[i]):
        if total < p:
            kept.append(i)
            total += full[i]
    assert sorted(got.nonzero().flatten().tolist()) == sorted(kept)
    assert torch.allclose(got[kept], torch.tensor([full[i] / total for i in kept]), atol=1e-6)


def test_top_p_is_of_what_top_k_left() -> None:
    got = probabilities(torch.tensor([0.5, 0.3, 0.1, 0.1]).log(),
                        SamplingParams(top_k=2, top_p=0.62))
    assert got.tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0])       # 0.5 / 0.8 = 0.625


def test_samples_follow_the_distribution() -> None:
    params = SamplingParams(seed=0, top_p=0.9, temperature=0.8)
    source, n = generator(params), 4000
    counts = torch.bincount(torch.tensor([sample(LOGITS, params, source) for _ in range(n)]),
                            minlength=7) / n
    assert float((counts - probabilities(LOGITS, params)).abs().max()) < 0.03     # ~4 sigma
    assert not counts[probabilities(LOGITS, params) == 0].any()


def test_seed_and_greedy() -> None:
    params = SamplingParams(seed=3)
    draws = [[sample(LOGITS, p, g) for _ in range(20)] for p in (params, params, SamplingParams())
             for g in (generator(p),)]
    assert draws[0] == draws[1] != draws[2]
    for temperature in (0, 1e-40):
        assert sample(LOGITS, SamplingParams(temperature=temperature), generator(params)) == 0


def test_rows_are_drawn_and_weighed_each_by_its_own_request() -> None:
    params = [SamplingParams(temperature=0), SamplingParams(seed=1),
              SamplingParams(seed=2, top_k=2)]
    rows = torch.stack((LOGITS, LOGITS.flip(0), -LOGITS))
    got = draw(rows, params, [generator(p) for p in params])
    assert got.tolist() == [sample(row, p, generator(p))
                            for row, p in zip(rows, params, strict=True)]
    assert torch.allclose(logprobs(rows, got), rows.log_softmax(-1)[range(3), got])


def test_a_draw_is_multinomial_without_its_check() -> None:
    params = SamplingParams(seed=7, top_p=0.95)
    ours, theirs = generator(params), generator(params)
    for _ in range(50):
        want = torch.multinomial(probabilities(LOGITS, params), 1, generator=theirs)
        assert sample(LOGITS, params, ours) == int(want)


@pytest.mark.parametrize("wrong", [
    {"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": -2}, {"top_p": 0.0},
    {"top_p": 1.1}, {"max_tokens": 0}, {"stop": ""}, {"stop": ["a", ""]}], ids=str)
def test_wrong_parameters_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingParams(**wrong)      # type: ignore[arg-type]
