"""Logits and likelihoods of given tokens, computed through the cache in steps of any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .batch import MlaChoice, make_batch
from .cache import CachedSequence, LatentCache
from .config import ModelConfig
from .layers import RouteObserver
from .transformer import Transformer


def checked_rows(config: ModelConfig, ids: Tensor) -> Tensor:
    """Tokens [B, T] on the host; ValueError for another shape and ids outside the vocabulary."""
    if ids.ndim != 2 or ids.dtype.is_floating_point:
        raise ValueError(f"ids must be integers [B, T], got {ids.dtype}{list(ids.shape)}")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < config.vocab_size:
        raise ValueError(f"ids must be 0 .. {config.vocab_size - 1}, got {int(ids.min())} .. "
                         f"{int(ids.max())}")
    return ids.cpu()


def row_lengths(ids: Tensor, lengths: Sequence[int] | None) -> list[int]:
    """How many tokens of each row count."""
    rows, total = ids.shape
    ends = [total] * rows if lengths is None else [int(n) for n in lengths]
    if len(ends) != rows or any(not 0 <= n <= total for n in ends):
        raise ValueError(f"lengths must be {rows} numbers of 0 .. {total}, got {ends}")
    return ends


def step_sizes(total: int, prefill: int | None, chunk: int | Sequence[int] | None) -> list[int]:
    """Sizes of the steps that `total` tokens are computed in."""
    first = total if prefill is None else prefill
    if not 0 <= first <= total:
        raise ValueError(f"prefill must be 0 .. {total}, the length of ids, got {prefill}")
    sizes = [chunk] if isinstance(chunk, int) else [first or 1] if chunk is None else list(chunk)
    if any(n < 1 for n in sizes):
        raise ValueError(f"chunk must be at least 1, got {chunk!r}")
    if isinstance(chunk, int):
        sizes *= -(-first // chunk)
    steps: list[int] = []
    for size in (*sizes, first):     # what the given sizes leave is one more step
        if left := min(size, first - sum(steps)):
            steps.append(left)
    return steps + [1] * (total - first)


def step_logits(model: Transformer, cache: LatentCache, seqs: Sequence[CachedSequence],
                new: Sequence[Sequence[int]], mla: MlaChoice = "auto",
                on_route: RouteObserver | None = None) -> Tensor:
    """Logits of all new tokens of a step, [T, V]."""
    batch = make_batch(model.config, cache, seqs, new, mla, on_route).to(cache.storage.device)
    return model.logits(model.hidden(batch, cache))


def logits(model: Transformer, cache: LatentCache, ids: Tensor, ends: Sequence[int],
           steps: Sequence[int], mla: MlaChoice, on_route: RouteObserver | None) -> Tensor:
    """[B, T, V] float32; what stands past a row's end is 0."""
    out = torch.zeros(*ids.shape, model.config.vocab_size)
    seqs = [CachedSequence() for _ in ends]
    tokens, start = ids.tolist(), 0
    try:
        for size in steps:
            live = [b for b, end in enumerate(ends) if start < end]
            if live:
                new = [tokens[b][start:min(start + size, ends[b])] for b in live]
                made = step_logits(model, cache, [seqs[b] for b in live], new, mla, on_route)
                for b, part in zip(live, made.split([len(n) for n in new]), strict=True):
                    out[b, start:start + len(part)] = part
            start += size
    finally:
        for seq in seqs:
            cache.release(seq)
    return out


def surprise(model: Transformer, cache: LatentCache, row: Tensor, chunk: int) -> float:
    """Summed negative log-likelihood of all tokens of a row but the first."""
    seq, total, wanted = CachedSequence(), 0.0, row[1:].long()
    try:
        for start in range(0, len(wanted), chunk):
            part = wanted[start:start + chunk]
            made = step_logits(model, cache, [seq], [row[start:start + len(part)].tolist()])
            total += float(torch.nn.functional.cross_entropy(made.cpu().double(), part,
                                                             reduction="sum"))
    finally:
        cache.release(seq)
    return total
