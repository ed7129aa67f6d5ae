"""What one forward step works on: new tokens of several sequences, packed without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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
class Batch:
    """Tokens [T] of B sequences, one after another, and where they stand in the cache."""

    ids: Tensor                      # [T] int64
    positions: Tensor                # [T] int64
    slots: Tensor                    # [T] int64, page * page_size + offset
    q_lens: tuple[int, ...]          # new tokens of each sequence
    k_lens: tuple[int, ...]          # its tokens in the cache, the new ones included
    block_table: Tensor              # [B, pages] int32
    context_slots: Tensor | None     # [sum k_lens] int64; expanded path only
    path: MlaPath
    on_route: RouteObserver | None = None

    @cached_property
    def cu_q(self) -> Tensor:
        """[B + 1] int32 prefix sums of q_lens."""
        return self._prefix(self.q_lens)

    @cached_property
    def cu_k(self) -> Tensor:
        """[B + 1] int32 prefix sums of k_lens."""
        return self._prefix(self.k_lens)

    @cached_property
    def decode_rows(self) -> tuple[int, Tensor, Tensor]:
        """s_q, block_table and cache_seqlens for mla_decode.

        Sequences that all have one or two new tokens are rows of so many; otherwise every token is
        a row of its own that ends with itself, which needs no padding.
        """
        if len(set(self.q_lens)) == 1 and self.q_lens[0] in _S_Q:
            lens = torch.tensor(self.k_lens, dtype=torch.int32, device=self.ids.device)
            return self.q_lens[0], self.block_table, lens
        repeats = torch.tensor(self.q_lens, device=self.ids.device)
        return 1, self.block_table.repeat_interleave(repeats, 0), (self.positions + 1).int()

    @cached_property
    def last_rows(self) -> Tensor:
        """[B] int64: the row of each sequence's last token."""
        return self.cu_q[1:].long() - 1

    def _prefix(self, lens: Sequence[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lens)], dtype=torch.int32, device=self.ids.device)


def make_batch(config: ModelConfig, cache: LatentCache, seqs: Sequence[CachedSequence],
               new_ids: Sequence[Sequence[int]], mla: MlaChoice = "auto",
               on_route: RouteObserver | None = None) -> Batch:
    """Give every sequence room for its new tokens and describe the step."""
    if mla not in get_args(MlaChoice):
        raise ValueError(f"mla must be one of {', '.join(get_args(MlaChoice))}, got {mla!r}")
    device = cache.storage.device
    positions: list[int] = []
    slots: list[int] = []
    for seq, ids in zip(seqs, new_ids, strict=True):
        end = seq.length + len(ids)
        if end > config.max_positions:
            raise ValueError(f"a sequence may have max_position_embeddings="
                             f"{config.max_positions} tokens, got {end}")
        positions += range(seq.length, end)
        slots += cache.extend(seq, len(ids))
    q_lens, k_lens = tuple(map(len, new_ids)), tuple(s.length for s in seqs)
    path = cheaper_path(config, q_lens, k_lens) if mla == "auto" else mla
    context = [slot for seq in seqs for slot in cache.slots(seq)] if path == "expanded" else None
    return Batch(
        torch.tensor([i for ids in new_ids for i in ids], device=device),
        torch.tensor(positions, device=device), torch.tensor(slots, device=device), q_lens, k_lens,
        cache.block_table(seqs), None if context is None else torch.tensor(context, device=device),
        path, on_route)


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
