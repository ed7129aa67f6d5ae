"""What one forward step works on: new tokens of several sequences, packed without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, get_args

import torch
from torch import Tensor

from .cache import CachedSequence, LatentCache
from .config import ModelConfig
from .layers import RouteObserver

MlaChoice = Literal["auto", "absorbed", "expanded"]
MlaPath = Literal["absorbed", "expanded"]

# Rows of mla_decode: one new token, or two when a drafted one is verified. The number selects a
# compiled kernel, so that longer chunks must not each bring their own.
_S_Q = (1, 2)


@dataclass(frozen=True)
class Absorbed:
    """What mla_decode is told: rows of s_q new tokens each and where their contexts stand."""

    s_q: int
    block_table: Tensor              # [rows, pages] int32
    cache_seqlens: Tensor            # [rows] int32, the row's new tokens included

    def to(self, device: torch.device) -> Absorbed:
        """The same on a device."""
        return Absorbed(self.s_q, self.block_table.to(device), self.cache_seqlens.to(device))


@dataclass(frozen=True)
class Expanded:
    """What mla_prefill is told: which cached tokens are the keys, and where sequences begin."""

    context_slots: Tensor            # [Tk] int64
    cu_q: Tensor                     # [B + 1] int32 prefix sums of new tokens
    cu_k: Tensor                     # [B + 1] int32 prefix sums of tokens in the cache

    def to(self, device: torch.device) -> Expanded:
        """The same on a device."""
        return Expanded(self.context_slots.to(device), self.cu_q.to(device), self.cu_k.to(device))


@dataclass(frozen=True)
class Batch:
    """Tokens [T] of B sequences, one after another, and where they stand in the cache.

    Made on the host in full and then moved: a step that runs on a device makes no tensor from
    Python values and reads none, so that it can be captured (graphs.py).
    """

    ids: Tensor                      # [T] int64
    positions: Tensor                # [T] int64
    slots: Tensor                    # [T] int64, page * page_size + offset
    last_rows: Tensor                # [B] int64, the row of each sequence's last token
    mla: Absorbed | Expanded
    on_route: RouteObserver | None = None
    absent: Tensor | None = None     # [T] bool, rows that only fill a captured step up

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        if device.type == "cpu":
            return self
        return replace(self, ids=self.ids.to(device), positions=self.positions.to(device),
                       slots=self.slots.to(device), last_rows=self.last_rows.to(device),
                       mla=self.mla.to(device))


def make_batch(config: ModelConfig, cache: LatentCache, seqs: Sequence[CachedSequence],
               new_ids: Sequence[Sequence[int]], mla: MlaChoice = "auto",
               on_route: RouteObserver | None = None) -> Batch:
    """Give every sequence room for its new tokens and describe the step, on the host."""
    if mla not in get_args(MlaChoice):
        raise ValueError(f"mla must be one of {', '.join(get_args(MlaChoice))}, got {mla!r}")
    positions: list[int] = []
    slots: list[int] = []
    for seq, ids in zip(seqs, new_ids, strict=True):
        end = seq.length + len(ids)
        if end > config.max_positions:
            raise ValueError(f"a sequence may have max_position_embeddings="
                             f"{config.max_positions} tokens, got {end}")
        positions += range(seq.length, end)
        slots += cache.extend(seq, len(ids))
    q_lens, k_lens = [len(ids) for ids in new_ids], [s.length for s in seqs]
    path = cheaper_path(config, q_lens, k_lens) if mla == "auto" else mla
    at = torch.tensor(positions)
    return Batch(
        torch.tensor([i for ids in new_ids for i in ids]), at, torch.tensor(slots),
        torch.tensor([end - 1 for end in accumulate(q_lens)]),
        _absorbed(cache, seqs, q_lens, at) if path == "absorbed" else Expanded(
            torch.tensor([slot for seq in seqs for slot in cache.slots(seq)]), _prefix(q_lens),
            _prefix(k_lens)), on_route)


def _absorbed(cache: LatentCache, seqs: Sequence[CachedSequence], q_lens: Sequence[int],
              positions: Tensor) -> Absorbed:
    """Sequences that all have one or two new tokens are rows of so many; otherwise every token is
    a row of its own that ends with itself, which needs no padding."""
    table = cache.block_table(seqs)
    if len(set(q_lens)) == 1 and q_lens[0] in _S_Q:
        return Absorbed(q_lens[0], table, torch.tensor([s.length for s in seqs], dtype=torch.int32))
    repeated = table.repeat_interleave(torch.tensor(q_lens), 0, output_size=len(positions))
    return Absorbed(1, repeated, (positions + 1).int())


def _prefix(lens: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lens)], dtype=torch.int32)


def cheaper_path(c: ModelConfig, q_lens: Sequence[int], k_lens: Sequence[int]) -> MlaPath:
    """The MLA form with fewer multiplications for these lengths.

    Absorbed: kv_lora wide keys and values per (query, key) pair, and W_UK, W_UV per query.
    Expanded: narrow keys and values per pair, and kv_b once per token of the context.
    """
    pairs = sum(q * (2 * k - q + 1) // 2 for q, k in zip(q_lens, k_lens, strict=True))
    kv_b = c.kv_lora_rank * (c.nope_dim + c.v_dim)
    absorbed = pairs * (2 * c.kv_lora_rank + c.rope_dim) + sum(q_lens) * kv_b
    expanded = pairs * (c.qk_dim + c.v_dim) + sum(k_lens) * kv_b
    return "absorbed" if absorbed <= expanded else "expanded"
