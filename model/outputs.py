"""What generation gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from .engine import FinishReason, Request


@dataclass(frozen=True)
class Output:
    """A finished continuation; text is "" for a checkpoint without tokenizer."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None


class Piece(str):
    """New text of a streamed continuation; finish_reason is set on the last piece."""

    token_ids: list[int]
    finish_reason: FinishReason | None

    def __new__(cls, text: str, token_ids: list[int],
                finish_reason: FinishReason | None = None) -> Piece:
        """A string with the tokens behind it."""
        piece = super().__new__(cls, text)
        piece.token_ids = token_ids
        piece.finish_reason = finish_reason
        return piece


def output_of(r: Request) -> Output:
    """The output of a finished request."""
    assert r.finish_reason is not None
    return Output(r.text, r.token_ids, r.finish_reason, r.prompt,
                  r.logprobs if r.params.logprobs else None)
