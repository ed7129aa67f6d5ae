"""Captured decode steps: a frozen trace of the step stands in for a CUDA graph on CPUs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from expertile.model import LLM, SamplingParams, layers
from expertile.model.batch import Absorbed, Batch, make_batch
from expertile.model.cache import CachedSequence, LatentCache
from expertile.model.graphs import DecodeGraphs, Step, batch_sizes

from .conftest import Checkpoints, Models

_REASON = "no CUDA device on this machine"
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason=_REASON)


class Traces:
    """Captures like CUDA graphs do: operators and tensor addresses are kept, Python is not."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, step: Step) -> Step:
        self.captured += 1
        trace: Callable[[], Any] = make_fx(lambda: step())()

        def replay() -> None:
            self.replayed += 1
            trace()

        return replay


def graphs_of(llm: LLM, traces: Traces, max_batch: int = 64) -> DecodeGraphs:
    return DecodeGraphs(llm.model, llm.cache, max_batch, llm.runtime.report, lambda: traces)


def decode_batch(llm: LLM, lengths: list[int], seed: int = 0) -> tuple[list[CachedSequence], Batch]:
    """Sequences of random tokens in the cache, and a step of one more token for each."""
    g = torch.Generator().manual_seed(seed)
    ids = [torch.randint(2, 512, (n + 1,), generator=g).tolist() for n in lengths]
    seqs = [CachedSequence() for _ in ids]
    with llm._active():
        llm.model.hidden(make_batch(llm.config, llm.cache, seqs, [i[:-1] for i in ids]), llm.cache)
        return seqs, make_batch(llm.config, llm.cache, seqs, [i[-1:] for i in ids])


def test_batch_sizes() -> None:
    assert batch_sizes(1) == (1,)
    assert batch_sizes(8) == (1, 2, 4, 8)
    assert batch_sizes(11) == (1, 2, 4, 8, 11)
    assert batch_sizes(40) == (1, 2, 4, 8, 16, 32, 40)
    assert batch_sizes(4096)[-2:] == (496, 512)


@pytest.fixture
def ragged() -> tuple[list[list[int]], list[SamplingParams]]:
    """Seven requests, at most six at a time, that begin and end at different steps."""
    g = torch.Generator().manual_seed(5)
    prompts = [torch.randint(2, 512, (n,), generator=g).tolist() for n in (3, 40, 17, 9, 66, 2, 30)]
    params = [SamplingParams(temperature=0.8 * (i == 3), seed=i, max_tokens=n, ignore_eos=True)
              for i, n in enumerate((12, 4, 20, 9, 6, 15, 24))]
    return prompts, params


def test_tokens_equal_the_eager_ones(checkpoint: Checkpoints, ragged: Any) -> None:
    prompts, params = ragged
    llm = LLM(checkpoint("v3").path, page_size=16, max_batch=6, max_cache_tokens=1024)
    eager = llm.generate(prompts, params)
    llm.cache = LatentCache(3, 160, 16, 1024, fixed=True)
    traces, rows = Traces(), []
    llm.graphs = graphs_of(llm, traces, 6)
    whole = llm.graphs.logits
    llm.graphs.logits = lambda batch: rows.append(len(batch.ids)) or whole(batch)  # type: ignore
    got = llm.generate(prompts, params)
    assert [o.token_ids for o in got] == [o.token_ids for o in eager]
    assert {3, 5} <= set(rows), "sizes between the buckets 1, 2, 4, 6 must occur"
    assert traces.captured <= 4 < 20 < traces.replayed
    before = traces.captured
    assert [o.token_ids for o in llm.generate(prompts, params)] == [o.token_ids for o in eager]
    assert traces.captured == before, "a second call must reuse the captured steps"


def test_a_grown_cache_is_captured_anew(checkpoint: Checkpoints, load: Models,
                                        ragged: Any) -> None:
    prompts, params = ragged
    llm = LLM(checkpoint("v3").path, page_size=16)
    traces, storages = Traces(), set()
    llm.graphs = graphs_of(llm, traces)
    for prompt, param in zip(prompts, params, strict=True):      # one after another: pages grow
        got = llm.generate([prompt], param)[0].token_ids
        assert got == load("v3").generate([prompt], param)[0].token_ids
        storages.add(llm.cache.storage.data_ptr())
    assert len(storages) > 1 and traces.captured >= len(storages)


def test_padding_rows_leave_the_cache_as_it_is(load: Models) -> None:
    llm, traces = load("v3"), Traces()
    seqs, batch = decode_batch(llm, [20, 5, 33])
    graphs = graphs_of(llm, traces)
    with llm._active():
        llm.cache.storage[:, llm.cache.free] = torch.nan         # pages of nobody
        before = llm.cache.storage.clone()
        got = graphs.logits(batch)
        assert got is not None and traces.captured == traces.replayed == 1
        want = llm.model.logits(llm.model.hidden(batch, llm.cache))
        assert float((got - want).abs().max()) <= 1e-4
        before.view(3, -1, 160)[:, batch.slots] = llm.cache.storage.view(3, -1, 160)[:, batch.slots]
        assert torch.equal(llm.cache.storage.view(torch.int32), before.view(torch.int32))
        assert graphs.logits(batch) is not None and traces.captured == 1
    for seq in seqs:
        llm.cache.release(seq)


def test_padding_rows_go_to_no_expert(load: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, chosen = load("v3"), []
    fused_moe = layers.fused_moe

    def recorded(x: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, *more: Any,
                 **options: Any) -> Tensor:
        chosen.append(ids.clone())
        return fused_moe(x, w1, w2, weights, ids, *more, **options)

    monkeypatch.setattr(layers, "fused_moe", recorded)
    seqs, batch = decode_batch(llm, [20, 5, 33])
    graphs = DecodeGraphs(llm.model, llm.cache, 4, llm.runtime.report, lambda: lambda step: step)
    chosen.clear()
    with llm._active():
        graphs.logits(batch)
    assert len(chosen) == 4, "two MoE layers, run once to compile and once replayed"
    assert all(ids.eq(-1).all() for ids in chosen[:2])
    assert all(ids[:3].ge(0).all() and ids[3:].eq(-1).all() for ids in chosen[2:])
    for seq in seqs:
        llm.cache.release(seq)


def test_capturing_writes_nothing(load: Models) -> None:
    llm = load("v3")
    seqs, batch = decode_batch(llm, [18])
    before = llm.cache.storage.clone()
    graphs = graphs_of(llm, Traces())
    with llm._active():
        assert graphs._add(4, 8)
    assert torch.equal(llm.cache.storage.view(torch.int32), before.view(torch.int32))
    llm.cache.release(seqs[0])


def test_a_shorter_batch_does_not_see_the_longer_one(load: Models) -> None:
    llm, traces = load("v3"), Traces()
    graphs = graphs_of(llm, traces, 4)
    (long, first), (short, second) = decode_batch(llm, [70, 9, 24, 31]), decode_batch(
        llm, [6, 12, 40], seed=1)
    with llm._active():
        graphs.logits(first)
        rows = llm.cache.storage.view(3, -1, 160)
        rows[:, first.slots] = torch.nan             # what the rows of before would write again
        got = graphs.logits(second)
        assert rows[:, first.slots].isnan().all()
        want = llm.model.logits(llm.model.hidden(second, llm.cache))
    assert traces.captured == 1 and traces.replayed == 2
    assert got is not None and float((got - want).abs().max()) <= 1e-4
    for seq in (*long, *short):
        llm.cache.release(seq)


def test_what_is_not_a_decode_step_runs_eagerly(load: Models) -> None:
    llm, traces = load("v3"), Traces()
    graphs = graphs_of(llm, traces, 3)
    seqs, batch = decode_batch(llm, [4, 9, 7, 5])
    assert isinstance(batch.mla, Absorbed)
    two = replace(batch, mla=replace(batch.mla, s_q=2))
    with llm._active():
        chunk = make_batch(llm.config, llm.cache, seqs[:2], [[5], [6, 7]], mla="absorbed")
        expanded = make_batch(llm.config, llm.cache, seqs[:1], [[5]], mla="expanded")
        watched = make_batch(llm.config, llm.cache, seqs[:1], [[5]], on_route=lambda *a: None)
        for refused in (batch, two, chunk, expanded, watched):
            assert graphs.logits(refused) is None
    assert traces.captured == 0
    for seq in seqs:
        llm.cache.release(seq)


def test_the_reference_is_not_captured(checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch,
                                       caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("EXPERTILE_DISABLE", "1")
    llm, traces = LLM(checkpoint("v3").path, page_size=16), Traces()
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    want = llm.generate([[5, 6, 7]], params)[0].token_ids
    llm.graphs = graphs_of(llm, traces)
    with caplog.at_level(logging.WARNING, "expertile"):
        assert llm.generate([[5, 6, 7]], params)[0].token_ids == want
    said = [r.getMessage() for r in caplog.records if "without CUDA graphs" in r.getMessage()]
    assert traces.captured == 0 and len(said) == 1 and "mla_decode" in said[0]


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("act_dtype", ["float32", "bfloat16"])
def test_graphs_on_a_gpu(checkpoint: Checkpoints, ragged: Any, act_dtype: str) -> None:
    prompts, params = ragged
    llm = LLM(checkpoint("v3").path, "cuda", page_size=16, max_batch=6, act_dtype=act_dtype)
    assert llm.graphs is not None
    storage = llm.cache.storage
    got = llm.generate(prompts, params)
    assert llm.graphs._steps and llm.cache.storage is storage
    # The same padded steps, not captured: bit for bit the same, also in bfloat16.
    llm.graphs = DecodeGraphs(llm.model, llm.cache, 6, llm.runtime.report, lambda: lambda s: s)
    assert [o.token_ids for o in llm.generate(prompts, params)] == [o.token_ids for o in got]
    if act_dtype == "float32":       # other widths and sizes round otherwise in bfloat16
        llm.graphs = None
        assert [o.token_ids for o in llm.generate(prompts, params)] == [o.token_ids for o in got]


@gpu
@pytest.mark.gpu
def test_a_gpu_agrees_with_the_reference(checkpoint: Checkpoints) -> None:
    made = checkpoint("v3")
    llm = LLM(made.path, "cuda", page_size=16, act_dtype="float32")
    got: Tensor = llm.logits(made.reference.ids, prefill=48)
    assert float((got - made.reference.logits).abs().max()) <= 1e-3
