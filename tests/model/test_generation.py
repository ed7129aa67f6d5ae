"""Tokenizer, chat template, streaming, stopping and batching of generation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from expertile.model import LLM, SamplingParams, Tokenizer
from expertile.model.tokenizer import Detokenizer

from .conftest import Checkpoints

TEXT = ["Return the naïve sum of all values.", "Größe: 3 µm — 日本語 🙂", "def f(x):\n    return x"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}\n"
    "{% if m['role'] not in ['user', 'assistant'] %}{{ raise_exception('role ' + m['role']) }}"
    "{% endif %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}\n"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}")


def write_tokenizer(path: Path, vocab: int = 512, **settings: object) -> Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(TEXT * 3, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<bos>", "<eos>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    path.mkdir(exist_ok=True)
    inner.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": {"content": "<bos>", "lstrip": False}, "eos_token": "<eos>",
        "add_bos_token": True, "chat_template": TEMPLATE} | settings))
    return Tokenizer(path)


@pytest.fixture(scope="module")
def llm(checkpoint: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    path = tmp_path_factory.mktemp("text") / "model"
    shutil.copytree(checkpoint("moonlight").path, path)
    write_tokenizer(path)
    return LLM(path, page_size=16, max_step_tokens=24)


def greedy(n: int, **more: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=n, **more)       # type: ignore[arg-type]


@pytest.mark.parametrize("text", TEXT)
def test_round_trip(tmp_path: Path, text: str) -> None:
    tokenizer = write_tokenizer(tmp_path)
    ids = tokenizer.encode(text)
    assert ids[0] == 0 and tokenizer.eos_token_id == 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<bos>" + text
    assert tokenizer.encode(text, add_special_tokens=False) == ids[1:]
    pieces = Detokenizer(tokenizer)
    pushed = [pieces.push(i) for i in ids]
    assert "".join(pushed) + pieces.rest() == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pushed)


def test_chat_template(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    messages = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yes"}]
    text = tokenizer.apply_chat_template(messages)
    assert text == "<bos><|user|>hi<|assistant|>yes<|assistant|>"
    with pytest.raises(ValueError, match="role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": ""}])
    for attack in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        with pytest.raises(ValueError, match="chat template"):
            write_tokenizer(tmp_path, chat_template=attack).apply_chat_template(messages)
    with pytest.raises(ValueError, match="no chat template"):
        write_tokenizer(tmp_path, chat_template=None).apply_chat_template(messages)


def test_stream_is_generate(llm: LLM) -> None:
    params = greedy(20, ignore_eos=True)
    whole = llm.generate("Return the sum", params)[0]
    pieces = list(llm.stream("Return the sum", params))
    assert "".join(pieces) == whole.text == llm.tokenizer.decode(whole.token_ids)
    assert [i for p in pieces for i in p.token_ids] == whole.token_ids
    assert [p.finish_reason for p in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert whole.prompt_token_ids == llm.tokenizer.encode("Return the sum")
    assert len(llm.cache.free) == llm.cache.num_pages


def test_leaving_a_stream_gives_the_pages_back(llm: LLM) -> None:
    stream = llm.stream("Return the sum", greedy(20, ignore_eos=True))
    next(stream)
    stream.close()                   # type: ignore[attr-defined]
    assert len(llm.cache.free) == llm.cache.num_pages
    assert torch.get_num_threads() >= 1


def test_stop_strings_cut_the_text(llm: LLM) -> None:
    free = llm.generate("Return", greedy(30, ignore_eos=True))[0]
    stop = free.text[5:8]
    params = greedy(30, ignore_eos=True, stop=["never in there", stop])
    cut = llm.generate("Return", params)[0]
    assert cut.text == free.text[:free.text.find(stop)] and cut.finish_reason == "stop"
    assert len(cut.token_ids) < 30
    assert "".join(llm.stream("Return", params)) == cut.text


def test_end_tokens(llm: LLM) -> None:
    free = llm.generate("Return", greedy(10, ignore_eos=True))[0]
    end = free.token_ids[4]
    first = free.token_ids.index(end)
    stopped = llm.generate("Return", greedy(10, stop_token_ids=[end]))[0]
    assert stopped.token_ids == free.token_ids[:first + 1] and stopped.finish_reason == "stop"
    assert stopped.text == llm.tokenizer.decode(free.token_ids[:first])
    on = llm.generate("Return", greedy(10, stop_token_ids=[end], ignore_eos=True))[0]
    assert on.token_ids == free.token_ids


def test_samples_do_not_depend_on_the_batch(llm: LLM) -> None:
    prompts = ["Return", "the sum of", "x"]
    params = [SamplingParams(seed=s, max_tokens=12, top_k=50, logprobs=True) for s in (1, 2, 3)]
    together = llm.generate(prompts, params)
    alone = [llm.generate([p], q)[0] for p, q in zip(prompts, params, strict=True)]
    assert [o.token_ids for o in together] == [o.token_ids for o in alone]
    assert all(len(o.logprobs or []) == len(o.token_ids) for o in together)


def test_a_small_cache_queues_requests(llm: LLM, checkpoint: Checkpoints) -> None:
    small = LLM(checkpoint("moonlight").path, page_size=16, max_cache_tokens=96, max_batch=3)
    prompts = [torch.arange(2 + i, 20 + 3 * i) for i in range(7)]
    got = small.generate(prompts, greedy(15, ignore_eos=True))
    want = llm.generate(prompts, greedy(15, ignore_eos=True))
    assert [o.token_ids for o in got] == [o.token_ids for o in want]
    assert small.cache.num_pages <= 6
    with pytest.raises(ValueError, match="fit the cache of 6 pages"):
        small.generate([[5] * 90], greedy(15))


def test_wrong_calls_are_named(llm: LLM, checkpoint: Checkpoints, tmp_path: Path) -> None:
    bare = LLM(checkpoint("moonlight").path)
    for call, message in (
            (lambda: bare.generate("text"), "no tokenizer.json"),
            (lambda: bare.generate([[3]], SamplingParams(stop="x")), "stop strings need"),
            (lambda: llm.generate([[]]), "at least one token"),
            (lambda: llm.generate([[512]]), "0 .. 511, got 512"),
            (lambda: llm.generate([[5] * 1280]), "max_position_embeddings=1280"),
            (lambda: llm.generate(["a"], []), "one per prompt"),
            (lambda: llm.logits([[5, 600]]), "0 .. 511"),
            (lambda: llm.logits([[5, 6]], prefill=3), "prefill must be 0 .. 2"),
            (lambda: llm.logits([[5, 6]], chunk=0), "chunk must be at least 1"),
            (lambda: llm.logits([[5, 6]], mla="fast"), "mla must be one of"),
            (lambda: LLM(tmp_path / "none"), "must be a directory"),
            (lambda: LLM(checkpoint("v3").path, dtype="int8"), "dtype must be")):
        with pytest.raises(ValueError, match=message):
            call()                   # type: ignore[no-untyped-call]
    assert len(llm.cache.free) == llm.cache.num_pages
    assert llm.generate([], greedy(3)) == []
    assert llm.logits(torch.empty(0, 5, dtype=torch.long)).shape == (0, 5, 512)
