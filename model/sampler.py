"""Chooses the next token of each request: greedy, temperature, top-k, top-p, seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_GREEDY = 1e-5                       # a lower temperature overflows float32 logits (vLLM's limit)


@dataclass(frozen=True)
class SamplingParams:
    """How a request is continued; names and meanings as in vLLM.

    Args:
        temperature: 0 (below 1e-5) takes the most likely token.
        top_k: sample among the k most likely tokens; 0 or -1 = all.
        top_p: sample among the fewest most likely tokens that together reach this probability.
        max_tokens: of the continuation.
        seed: makes a request's samples the same again, whatever else is in its batch.
        stop: a string or strings at which the text ends; not part of the text.
        stop_token_ids: tokens that end the text like the model's own end-of-text tokens.
        ignore_eos: go on after end-of-text tokens and stop_token_ids.
        logprobs: report the log-probability of each chosen token (before temperature and cuts).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 128
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: bool = False

    def __post_init__(self) -> None:
        for rule, holds, value in (
                ("temperature must be >= 0", self.temperature >= 0, self.temperature),
                ("top_k must be >= 1, or 0 or -1 for all", self.top_k >= -1, self.top_k),
                ("top_p must be in (0, 1]", 0 < self.top_p <= 1, self.top_p),
                ("max_tokens must be >= 1", self.max_tokens >= 1, self.max_tokens),
                ("stop must not hold an empty string", all(self.stop_strings) and self.stop != "",
                 self.stop)):
            if not holds:
                raise ValueError(f"{rule}, got {value!r}")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def generator(params: SamplingParams, device: torch.device | None = None) -> torch.Generator:
    """A request's own source of randomness, where its logits are."""
    source = torch.Generator(device or "cpu")
    if params.seed is None:
        source.seed()
    else:
        source.manual_seed(params.seed)
    return source


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """What a token is drawn from: temperature, then top-k, then top-p of what remains."""
    # logits [V] -> [V] float32
    p = torch.softmax(logits.float() / params.temperature, -1)
    if 0 < params.top_k < len(p):
        kept = torch.topk(p, params.top_k)
        p = torch.zeros_like(p).scatter_(0, kept.indices, kept.values)
        p /= p.sum()
    if params.top_p < 1:
        ordered, at = p.sort(descending=True, stable=True)
        # A token stays while those before it have not reached top_p: the first always does.
        ordered.masked_fill_(ordered.cumsum(0) - ordered >= params.top_p, 0.0)
        p = torch.zeros_like(p).scatter_(0, at, ordered)
        p /= p.sum()
    return p


def draw(logits: Tensor, params: Sequence[SamplingParams],
         sources: Sequence[torch.Generator | None]) -> Tensor:
    """The next token of each row of logits [R, V]; [R] int64, nothing is read on the host."""
    if all(p.temperature < _GREEDY for p in params):
        return logits.argmax(-1)
    return torch.stack([_draw(*row) for row in zip(logits.unbind(0), params, sources, strict=True)])


def _draw(logits: Tensor, params: SamplingParams, source: torch.Generator | None) -> Tensor:
    if params.temperature < _GREEDY:
        return logits.argmax()
    # argmax of p / Exp(1) is a draw from p; torch.multinomial does the same, and checks p on the
    # host before it.
    p = probabilities(logits, params)
    return p.div_(torch.empty_like(p).exponential_(generator=source)).argmax()


def logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Natural logarithm of the model's probability of each row's token; [R, V], [R] -> [R]."""
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
