"""The paged cache against a plain list of tokens, under random growth and release."""

from __future__ import annotations

import random

import pytest
import torch

from expertile.model.cache import CachedSequence, CacheFull, LatentCache


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [None, 200], ids=["growing", "limited"])
def test_random_use_against_lists(seed: int, limit: int | None) -> None:
    rng = random.Random(seed)
    cache = LatentCache(2, 3, page_size=rng.choice((1, 7, 16)), max_tokens=limit)
    live: list[tuple[CachedSequence, list[float]]] = []
    written = 0.0
    for _ in range(300):
        if live and rng.random() < 0.25:
            seq, _ = live.pop(rng.randrange(len(live)))
            cache.release(seq)
            assert seq.length == 0 and not seq.pages
            continue
        if not live or rng.random() < 0.2:
            live.append((CachedSequence(), []))
        seq, oracle = rng.choice(live)
        new = rng.randrange(1, 20)
        before = (seq.length, list(seq.pages), list(cache.free))
        try:
            slots = cache.extend(seq, new)
        except CacheFull:
            assert limit is not None and (seq.length, seq.pages, cache.free) == before
            continue
        values = [written + i for i in range(new)]
        written += new
        cache.layer(1).view(-1, 3)[slots] = torch.tensor(values)[:, None]
        oracle += values
        _check(cache, live)


def _check(cache: LatentCache, live: list[tuple[CachedSequence, list[float]]]) -> None:
    owned = [page for seq, _ in live for page in seq.pages]
    assert sorted(owned + cache.free) == list(range(cache.num_pages))
    table = cache.block_table([seq for seq, _ in live])
    for row, (seq, oracle) in zip(table, live, strict=True):
        assert seq.length == len(oracle) and len(seq.pages) == cache.pages_for(seq.length)
        assert row.tolist() == seq.pages + [-1] * (table.shape[1] - len(seq.pages))
        pages = cache.layer(1)[row[:len(seq.pages)].long()].reshape(-1, 3)
        assert pages[:len(oracle), 0].tolist() == oracle
        assert cache.layer(1).view(-1, 3)[cache.slots(seq)][:, 2].tolist() == oracle


def test_limits_are_stated() -> None:
    with pytest.raises(ValueError, match="page_size must be 1 .. 128, got 0"):
        LatentCache(1, 3, page_size=0)
    with pytest.raises(ValueError, match="at least one page of 16 tokens, got 9"):
        LatentCache(1, 3, page_size=16, max_tokens=9)
    with pytest.raises(CacheFull, match="limit is 2"):
        LatentCache(1, 3, page_size=16, max_tokens=40).extend(CachedSequence(), 33)
