"""The model as users hold it: load a directory, generate, stream, score, report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import Runtime, use_runtime
from .batch import MlaChoice, make_batch
from .cache import CachedSequence, LatentCache
from .config import ModelConfig
from .engine import Engine, FinishReason, Request, make_request
from .layers import RouteObserver
from .sampler import SamplingParams
from .tokenizer import Message, Tokenizer
from .transformer import load_transformer
from .weights import Checkpoint

Prompt = str | Sequence[int]
_DTYPES = {None: None, "auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Output:
    """A finished continuation; text is "" for a checkpoint without tokenizer."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed continuation; finish_reason is set on the last one."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None

    def __str__(self) -> str:
        return self.text


class LLM:
    """A DeepSeek-V2/V3-family model whose operators the tuning database answers.

    Args:
        path: directory with config.json, safetensors and, for text, tokenizer.json.
        device: "cpu" (other devices as the front door's Runtime knows them).
        dtype: storage of plain weights, "float32" or "bfloat16"; None = as in the checkpoint.
            Arithmetic is float32 in every case, and FP8 weights stay FP8.
        db: a tuning database laid over the default ones.
        threads: CPU threads of the operators.
        w8a8: cast activations to FP8 for FP8 weights; by default FP8 is storage only.
        page_size, max_cache_tokens: of the latent cache, which grows on demand without a limit.
        max_batch, max_step_tokens: requests in flight, and prompt tokens per step.

    Raises:
        ValueError: the directory, a key of its config.json or one of its tensors does not fit.
    """

    def __init__(self, path: str | Path, device: str = "cpu",
                 dtype: str | torch.dtype | None = None, db: str | Path | None = None, *,
                 threads: int | None = None, w8a8: bool = False, page_size: int = 64,
                 max_cache_tokens: int | None = None, max_batch: int = 64,
                 max_step_tokens: int = 2048):
        name = str(dtype).removeprefix("torch.") if dtype is not None else None
        if name not in _DTYPES:
            raise ValueError(f"dtype must be 'float32', 'bfloat16' or None (as stored), got "
                             f"{dtype!r}")
        if not (folder := Path(path)).is_dir():
            raise ValueError(f"a model must be a directory with config.json, got {str(folder)!r}")
        self.runtime = Runtime(device, db=db, threads=threads)
        self.config = ModelConfig.from_dir(folder)
        self.tokenizer = Tokenizer(folder) if (folder / "tokenizer.json").exists() else None
        where = torch.device(device)
        with torch.inference_mode(), use_runtime(self.runtime):
            files = Checkpoint(folder, self.config, _DTYPES[name], where)
            self.model = load_transformer(self.config, files, where, w8a8)
        self.cache = LatentCache(self.config.num_layers, self.config.latent_dim, page_size,
                                 max_cache_tokens, device=where)
        self._limits = (max_batch, max_step_tokens)
        Engine(self.model, self.cache, *self._limits)            # refuses wrong limits now

    def generate(self, prompts: Prompt | Sequence[Prompt],
                 params: SamplingParams | Sequence[SamplingParams] | None = None) -> list[Output]:
        """Continue prompts (texts or token ids) together; the outputs are in their order."""
        listed = self._listed(prompts)
        each = [params or SamplingParams()] * len(listed) \
            if params is None or isinstance(params, SamplingParams) else list(params)
        if len(each) != len(listed):
            raise ValueError(f"params must be one or one per prompt, got {len(each)} for "
                             f"{len(listed)} prompts")
        engine = Engine(self.model, self.cache, *self._limits)
        requests = [make_request(self._ids(p), q, self.tokenizer)
                    for p, q in zip(listed, each, strict=True)]
        for r in requests:
            engine.add(r)
        with self._active():
            for _ in engine.run():
                pass
        return [_output(r) for r in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Chunk]:
        """Continue one prompt, yielding text as soon as it is certain."""
        engine = Engine(self.model, self.cache, *self._limits)
        r = make_request(self._ids(prompt), params or SamplingParams(), self.tokenizer)
        engine.add(r)
        return self._chunks(engine, r)

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Output:
        """Answer a conversation in the checkpoint's chat template."""
        return self.generate([self.chat_ids(messages)], params)[0]

    def chat_ids(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """Token ids of a conversation, ready for `generate` and `stream`."""
        tokenizer = self._needed_tokenizer()
        return tokenizer.encode(tokenizer.apply_chat_template(messages, **variables),
                                add_special_tokens=False)

    def logits(self, ids: Tensor | Sequence[Sequence[int]], prefill: int | None = None,
               chunk: int | Sequence[int] | None = None, mla: MlaChoice = "auto", *,
               lengths: Sequence[int] | None = None,
               on_route: RouteObserver | None = None) -> Tensor:
        """Next-token logits of every position, through the cache.

        Args:
            ids: [B, T].
            prefill: so many tokens in one step, then one by one; None = all in one step.
            chunk: tokens per step (an int, or the sizes of successive steps) of the prefill.
            mla: force the "absorbed" or the "expanded" form of attention.
            lengths: the first lengths[b] tokens of row b count; what is past them comes back 0.
            on_route: sees (layer, topk_weights, topk_ids) of each MoE layer and step.

        Returns:
            [B, T, V] float32.
        """
        rows = torch.as_tensor(ids)
        if rows.ndim != 2 or rows.dtype.is_floating_point:
            raise ValueError(f"ids must be integers [B, T], got {rows.dtype}{list(rows.shape)}")
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < self.config.vocab_size:
            raise ValueError(f"ids must be 0 .. {self.config.vocab_size - 1}, got "
                             f"{int(rows.min())} .. {int(rows.max())}")
        total = rows.shape[1]
        ends = [total] * len(rows) if lengths is None else [int(n) for n in lengths]
        if len(ends) != len(rows) or any(not 0 <= n <= total for n in ends):
            raise ValueError(f"lengths must be {len(rows)} numbers of 0 .. {total}, got {ends}")
        out = torch.zeros(*rows.shape, self.config.vocab_size)
        seqs = [CachedSequence() for _ in ends]
        tokens, start = rows.tolist(), 0
        try:
            with self._active():
                for size in _steps(total, prefill, chunk):
                    live = [b for b, end in enumerate(ends) if start < end]
                    if live:
                        new = [tokens[b][start:min(start + size, ends[b])] for b in live]
                        made = self._forward([seqs[b] for b in live], new, mla, on_route)
                        for b, part in zip(live, made.split([len(n) for n in new]), strict=True):
                            out[b, start:start + len(part)] = part
                    start += size
        finally:
            for seq in seqs:
                self.cache.release(seq)
        return out

    def perplexity(self, ids: str | Sequence[int] | Tensor, chunk: int = 512) -> float:
        """exp of the mean negative log-likelihood of each token given those before it."""
        listed = self._ids(ids if isinstance(ids, str) else torch.as_tensor(ids).flatten().tolist())
        if len(listed) < 2:
            raise ValueError(f"perplexity needs at least two tokens, got {len(listed)}")
        seq, total = CachedSequence(), 0.0
        wanted = torch.tensor(listed[1:])
        try:
            with self._active():
                for start in range(0, len(wanted), chunk):
                    part = wanted[start:start + chunk]
                    made = self._forward([seq], [listed[start:start + len(part)]], "auto", None)
                    total += float(torch.nn.functional.cross_entropy(
                        made.cpu().double(), part, reduction="sum"))
        finally:
            self.cache.release(seq)
        return math.exp(total / len(wanted))

    def op_report(self) -> list[dict[str, Any]]:
        """One row per operator that ran: which record answered it, and in which tier."""
        return self.runtime.report()

    def _forward(self, seqs: list[CachedSequence], new: list[list[int]], mla: MlaChoice,
                 on_route: RouteObserver | None) -> Tensor:
        batch = make_batch(self.config, self.cache, seqs, new, mla, on_route)
        return self.model.logits(self.model.hidden(batch, self.cache))

    def _chunks(self, engine: Engine, r: Request) -> Iterator[Chunk]:
        shown = told = 0
        steps = engine.run()
        try:
            while r.finish_reason is None:
                with self._active():
                    next(steps)
                text = r.settled_text()
                if len(text) > shown or r.finish_reason is not None or self.tokenizer is None:
                    yield Chunk(text[shown:], r.token_ids[told:], r.finish_reason)
                    shown, told = len(text), len(r.token_ids)
        finally:
            steps.close()            # type: ignore[attr-defined]

    @contextmanager
    def _active(self) -> Iterator[None]:
        """Our operators have their own threads; torch's would compete with them for the cores."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode(), use_runtime(self.runtime):
                yield
        finally:
            torch.set_num_threads(threads)

    def _ids(self, prompt: Prompt) -> list[int]:
        return self._needed_tokenizer().encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _needed_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("the checkpoint has no tokenizer.json; give prompts as token ids")
        return self.tokenizer

    @staticmethod
    def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
        if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], int)):
            return [prompts]         # type: ignore[list-item]
        return list(prompts)         # type: ignore[arg-type]


def _output(r: Request) -> Output:
    assert r.finish_reason is not None
    return Output(r.text, r.token_ids, r.finish_reason, r.prompt,
                  r.logprobs if r.params.logprobs else None)


def _steps(total: int, prefill: int | None, chunk: int | Sequence[int] | None) -> list[int]:
    """Sizes of the steps that `total` tokens are computed in."""
    first = total if prefill is None else prefill
    if not 0 <= first <= total:
        raise ValueError(f"prefill must be 0 .. {total}, the length of ids, got {prefill}")
    sizes = [first] if chunk is None else (
        [chunk] * -(-first // max(chunk, 1)) if isinstance(chunk, int) else list(chunk))
    if isinstance(chunk, int) and chunk < 1 or any(n < 1 for n in sizes if first):
        raise ValueError(f"chunk must be at least 1, got {chunk!r}")
    steps: list[int] = []
    left = first
    for size in sizes:
        steps.append(min(size, left))
        left -= steps[-1]
    return [n for n in (*steps, left) if n] + [1] * (total - first)
