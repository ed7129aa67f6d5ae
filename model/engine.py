"""Runs requests together: prefill in chunks, then one token per step for all that are alive."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .batch import Batch, make_batch
from .cache import CachedSequence, LatentCache
from .graphs import DecodeGraphs
from .sampler import SamplingParams, draw, generator, logprobs
from .tokenizer import Detokenizer, Tokenizer
from .transformer import Transformer

FinishReason = Literal["stop", "length"]


@dataclass
class Request:
    """A prompt on its way: what is computed, what came out, why it ended."""

    prompt: list[int]
    params: SamplingParams
    source: torch.Generator
    detokenizer: Detokenizer | None
    index: int = 0
    seq: CachedSequence = field(default_factory=CachedSequence)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None

    @property
    def pending(self) -> list[int]:
        """Tokens that are known but not in the cache yet."""
        done = self.seq.length
        if done < len(self.prompt):
            return self.prompt[done:]
        return self.token_ids[done - len(self.prompt):]

    @property
    def most_tokens(self) -> int:
        """What the request can need in the cache: the last token is never computed."""
        return len(self.prompt) + self.params.max_tokens - 1

    def settled_text(self) -> str:
        """The text that no stop string can take back any more."""
        if self.finish_reason is not None:
            return self.text
        held = max((n for stop in self.params.stop_strings for n in range(1, len(stop))
                    if self.text.endswith(stop[:n])), default=0)
        return self.text[:len(self.text) - held]


def make_request(prompt: Sequence[int], params: SamplingParams, tokenizer: Tokenizer | None,
                 index: int = 0, device: torch.device | None = None) -> Request:
    """A request that has not started; its tokens are drawn on `device`."""
    if params.stop_strings and tokenizer is None:
        raise ValueError("stop strings need a tokenizer; use stop_token_ids")
    return Request(list(prompt), params, generator(params, device),
                   None if tokenizer is None else Detokenizer(tokenizer), index)


class Engine:
    """Admits requests while their pages are certain, so that none has to be thrown out.

    Args:
        model: computes steps.
        cache: where the latents stand.
        max_batch: requests in flight.
        max_step_tokens: prompt tokens per step; longer prompts are prefilled in chunks.
        graphs: captured decode steps; prefill, and what they do not take, runs without.
    """

    def __init__(self, model: Transformer, cache: LatentCache, max_batch: int = 64,
                 max_step_tokens: int = 2048, graphs: DecodeGraphs | None = None):
        for name, value in (("max_batch", max_batch), ("max_step_tokens", max_step_tokens)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.model = model
        self.cache = cache
        self.max_batch = max_batch
        self.max_step_tokens = max_step_tokens
        self.graphs = graphs
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    def add(self, request: Request) -> None:
        """Queue a request; ValueError when it could never run."""
        prompt, c = len(request.prompt), self.model.config
        if not prompt:
            raise ValueError("a prompt must have at least one token, got none")
        if prompt >= c.max_positions:
            raise ValueError(f"a prompt must be shorter than max_position_embeddings="
                             f"{c.max_positions}, got {prompt} tokens")
        if bad := [i for i in request.prompt if not 0 <= i < c.vocab_size]:
            raise ValueError(f"token ids must be 0 .. {c.vocab_size - 1}, got {bad[0]}")
        limit = self.cache.max_pages
        if limit is not None and self._pages(request) > limit:
            raise ValueError(f"prompt and max_tokens must fit the cache of {limit} pages of "
                             f"{self.cache.page_size} tokens, got {request.most_tokens} tokens")
        self._waiting.append(request)

    def run(self) -> Iterator[list[Request]]:
        """Step until nothing is left; each step yields the requests that got a token.

        Leaving the iteration early (or an error in a step) gives all pages back.
        """
        try:
            while self._waiting or self._running:
                self._admit()
                prefill = [r for r in self._running if r.seq.length < len(r.prompt)]
                advanced = self._step(prefill or self._running)
                for r in advanced:
                    if r.finish_reason is not None:
                        self.cache.release(r.seq)
                self._running = [r for r in self._running if r.finish_reason is None]
                if advanced:
                    yield advanced
        finally:
            for r in self._running:
                self.cache.release(r.seq)
            self._running.clear()
            self._waiting.clear()

    def _pages(self, request: Request) -> int:
        positions = min(request.most_tokens, self.model.config.max_positions)
        return self.cache.pages_for(positions)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.max_batch:
            limit = self.cache.max_pages
            promised = sum(map(self._pages, self._running))
            if limit is not None and promised + self._pages(self._waiting[0]) > limit:
                return
            self._running.append(self._waiting.popleft())

    def _step(self, requests: list[Request]) -> list[Request]:
        budget, chosen, new = self.max_step_tokens, [], []
        for r in requests:
            if budget:
                part = r.pending[:budget]
                budget -= len(part)
                chosen.append(r)
                new.append(part)
        batch = make_batch(self.model.config, self.cache, [r.seq for r in chosen], new)
        ready = [i for i, r in enumerate(chosen) if not r.pending]
        logits = self._logits(batch, ready)
        if logits is None:
            return []
        advanced = [chosen[i] for i in ready]
        drawn = draw(logits, [r.params for r in advanced], [r.source for r in advanced])
        tokens = drawn.tolist()      # the step's one wait for the device
        likely = logprobs(logits, drawn).tolist() if any(r.params.logprobs for r in advanced) \
            else tokens
        for r, token, logprob in zip(advanced, tokens, likely, strict=True):
            if r.params.logprobs:
                r.logprobs.append(logprob)
            self._accept(r, token)
        return advanced

    def _logits(self, batch: Batch, ready: list[int]) -> Tensor | None:
        """Logits of the sequences whose next token is due, None where there is no such one."""
        if self.graphs is not None and len(ready) == len(batch.last_rows):
            logits = self.graphs.logits(batch)
            if logits is not None:
                return logits
        device = self.cache.storage.device
        hidden = self.model.hidden(batch.to(device), self.cache)
        if not ready:
            return None
        return self.model.logits(hidden.index_select(0, batch.last_rows[ready].to(device)))

    def _accept(self, r: Request, token: int) -> None:
        r.token_ids.append(token)
        stops = not r.params.ignore_eos and (
            token in self.model.config.eos_token_ids or token in r.params.stop_token_ids)
        if stops:
            r.finish_reason = "stop"
        elif len(r.token_ids) >= r.params.max_tokens or (
                len(r.prompt) + len(r.token_ids) >= self.model.config.max_positions):
            r.finish_reason = "length"
        if r.detokenizer is None:
            return
        searched = len(r.text)
        if not stops:
            r.text += r.detokenizer.push(token)
        if r.finish_reason is not None:
            r.text += r.detokenizer.rest()
        _cut_at_stop(r, searched)


def _cut_at_stop(r: Request, searched: int) -> None:
    found = [at for stop in r.params.stop_strings
             if (at := r.text.find(stop, max(0, searched - len(stop) + 1))) >= 0]
    if found:
        r.text = r.text[:min(found)]
        r.finish_reason = "stop"
