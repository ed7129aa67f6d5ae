"""Logits against transformers in float32, for every variant and every way through the cache."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from expertile.model import LLM, SamplingParams

from .conftest import Checkpoints, Models
from .oracle import GREEDY, TOKENS, TOLERANCE, VARIANTS

all_variants = pytest.mark.parametrize("variant", VARIANTS)


def difference(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape and got.dtype == torch.float32
    return float((got - want).abs().max().nan_to_num(torch.inf))


@all_variants
@pytest.mark.parametrize("mla", ["absorbed", "expanded"])
def test_one_shot(checkpoint: Checkpoints, load: Models, variant: str, mla: str) -> None:
    want, routes = checkpoint(variant).reference, {}

    def record(layer: int, weights: Tensor, ids: Tensor) -> None:
        routes[layer] = ids.long().sort(-1).values

    got = load(variant).logits(want.ids, mla=mla, on_route=record)
    assert difference(got, want.logits) <= TOLERANCE
    assert routes.keys() == want.routes.keys()
    for layer, ids in routes.items():
        assert torch.equal(ids, want.routes[layer]), f"layer {layer}"


@all_variants
def test_prefill_then_steps(checkpoint: Checkpoints, load: Models, variant: str) -> None:
    want = checkpoint(variant).reference
    assert difference(load(variant).logits(want.ids, prefill=48), want.logits) <= TOLERANCE


@pytest.mark.parametrize("mla", ["absorbed", "expanded"])
@pytest.mark.parametrize("chunk", [33, (7, 41, 5)], ids=str)
def test_uneven_chunks(checkpoint: Checkpoints, load: Models, chunk: object, mla: str) -> None:
    want = checkpoint("v3").reference
    got = load("v3").logits(want.ids, prefill=72, chunk=chunk, mla=mla)
    assert difference(got, want.logits) <= TOLERANCE


@pytest.mark.parametrize("mla", ["auto", "absorbed", "expanded"])
def test_ragged_rows_equal_single_runs(checkpoint: Checkpoints, load: Models, mla: str) -> None:
    want, lengths = checkpoint("v3").reference, [61, 80]
    got = load("v3").logits(want.ids, prefill=50, chunk=20, lengths=lengths, mla=mla)
    for row, expected, n in zip(got, want.logits, lengths, strict=True):
        assert difference(row[:n], expected[:n]) <= TOLERANCE
        assert not row[n:].any()


@pytest.mark.parametrize("mla", ["absorbed", "expanded"])
def test_shuffled_pages(checkpoint: Checkpoints, mla: str) -> None:
    made = checkpoint("v2")
    llm = LLM(made.path, page_size=16, max_cache_tokens=480)
    llm.logits(made.reference.ids[:1, :16])                  # makes pages exist
    llm.cache.storage = torch.full((3, 30, 16, 1, 160), torch.nan)   # unwritten slots poison
    llm.cache.free = random.Random(0).sample(range(30), 30)
    got = llm.logits(made.reference.ids, prefill=48, mla=mla)
    assert difference(got, made.reference.logits) <= TOLERANCE
    assert sorted(llm.cache.free) == list(range(30))


@all_variants
def test_greedy_generation(checkpoint: Checkpoints, load: Models, variant: str) -> None:
    want, llm = checkpoint(variant).reference, load(variant)
    params = SamplingParams(temperature=0, max_tokens=GREEDY, ignore_eos=True)
    prompts = [want.ids[0].tolist(), want.ids[1, :9].tolist(), want.ids[1, :40].tolist()]
    together = llm.generate(prompts, params)
    assert together[0].token_ids == want.greedy
    for prompt, output in zip(prompts, together, strict=True):
        assert output.token_ids == llm.generate([prompt], params)[0].token_ids


@pytest.mark.parametrize("scales", ["float", "ue8m0"])
def test_fp8_weights(checkpoint: Checkpoints, load: Models, scales: str) -> None:
    want = checkpoint("v3", scales).reference
    for mla in ("absorbed", "expanded"):
        got = load("v3", scales).logits(want.ids, prefill=72, mla=mla)
        assert difference(got, want.logits) <= TOLERANCE, mla


def test_w8a8_is_near(checkpoint: Checkpoints) -> None:
    made = checkpoint("v3", "float")
    got = LLM(made.path, w8a8=True, page_size=16).logits(made.reference.ids)
    # Routing of random weights flips, so only the rough size is known (research: rms / std 0.18).
    error = (got - made.reference.logits).pow(2).mean().sqrt() / made.reference.logits.std()
    assert 1e-3 < float(error) < 0.6


def test_bfloat16_storage(checkpoint: Checkpoints) -> None:
    made = checkpoint("moonlight")
    llm = LLM(made.path, dtype="bfloat16", page_size=16)
    assert llm.model.embedding.dtype == torch.bfloat16
    got, want = llm.logits(made.reference.ids), made.reference.logits
    assert float((got - want).pow(2).mean().sqrt() / want.std()) < 0.4
    assert float((got.argmax(-1) == want.argmax(-1)).float().mean()) > 0.6


def test_perplexity(checkpoint: Checkpoints, load: Models) -> None:
    want = checkpoint("v3").reference
    nll = torch.nn.functional.cross_entropy(want.logits[0, :-1].double(), want.ids[0, 1:])
    for chunk in (16, TOKENS):
        got = load("v3").perplexity(want.ids[0], chunk)
        assert got == pytest.approx(float(nll.exp()), rel=1e-4)
    both = torch.nn.functional.cross_entropy(want.logits[:, :-1].double().flatten(0, 1),
                                             want.ids[:, 1:].flatten())
    assert load("v3").perplexity(want.ids) == pytest.approx(float(both.exp()), rel=1e-4)


def test_report_names_the_operators(checkpoint: Checkpoints, load: Models) -> None:
    llm = load("v3")
    llm.logits(checkpoint("v3").reference.ids[:, :20], prefill=18, mla="absorbed")
    used = {row["op"] for row in llm.op_report()}
    assert {"gemm_nt", "m_grouped_gemm_nt_masked", "moe_route", "fused_moe", "silu_mul",
            "mla_decode", "mla_kv_append"} <= used
