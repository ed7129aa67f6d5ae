"""The paged latent cache: pages of all layers, who owns which, and where a token's slot is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


class CacheFull(RuntimeError):
    """There are not enough free pages below the limit."""


@dataclass
class CachedSequence:
    """The pages of one sequence in order, and how many tokens stand in them."""

    pages: list[int] = field(default_factory=list)
    length: int = 0


class LatentCache:
    """[layers, pages, page, 1, latent] and the list of free pages.

    Args:
        layers: of the model; a page holds the same tokens in each of them.
        width: kv_lora + rope.
        page_size: tokens per page.
        max_tokens: a limit on all pages together; without it the cache grows when it is full.
        fixed: allocate the limit now, so that the storage never moves (CUDA graphs keep pointers).
    """

    def __init__(self, layers: int, width: int, page_size: int = 64,
                 max_tokens: int | None = None, dtype: torch.dtype = torch.float32,
                 device: torch.device | None = None, fixed: bool = False):
        if not 1 <= page_size <= 128:
            raise ValueError(f"page_size must be 1 .. 128, got {page_size}")
        if max_tokens is not None and max_tokens < page_size:
            raise ValueError(f"the cache must hold at least one page of {page_size} tokens, got "
                             f"{max_tokens}")
        self.page_size = page_size
        self.max_pages = None if max_tokens is None else max_tokens // page_size
        self.storage = torch.zeros(layers, 0, page_size, 1, width, dtype=dtype, device=device)
        self.free: list[int] = []
        if fixed:
            if self.max_pages is None:
                raise ValueError("a fixed cache needs max_tokens, got None")
            self._grow(self.max_pages)

    @property
    def num_pages(self) -> int:
        """Pages that exist, free or not."""
        return self.storage.shape[1]

    def pages_for(self, tokens: int) -> int:
        """Pages that so many tokens need."""
        return -(-tokens // self.page_size)

    def available(self) -> int | None:
        """Pages that can still be handed out, None without a limit."""
        if self.max_pages is None:
            return None
        return len(self.free) + self.max_pages - self.num_pages

    def layer(self, index: int) -> Tensor:
        """[pages, page, 1, latent] of one layer."""
        return self.storage.select(0, index)

    def extend(self, seq: CachedSequence, tokens: int) -> list[int]:
        """Give a sequence room for new tokens and return their slots (page * page_size + offset).

        Raises CacheFull, with nothing changed, when the limit leaves too few pages.
        """
        missing = self.pages_for(seq.length + tokens) - len(seq.pages)
        if missing > len(self.free):
            self._grow(missing - len(self.free))
        for _ in range(missing):
            seq.pages.append(self.free.pop())
        first, seq.length = seq.length, seq.length + tokens
        return self.slots(seq, first)

    def slots(self, seq: CachedSequence, first: int = 0) -> list[int]:
        """Where the tokens from `first` on stand."""
        size = self.page_size
        return [seq.pages[t // size] * size + t % size for t in range(first, seq.length)]

    def release(self, seq: CachedSequence) -> None:
        """Take a sequence's pages back."""
        self.free.extend(reversed(seq.pages))
        seq.pages, seq.length = [], 0

    def block_table(self, seqs: Sequence[CachedSequence]) -> Tensor:
        """[B, most pages] int32 on the host; unused entries are -1.

        The width is a power of two: it is an axis that records are looked up by, and a new one at
        every page would be a new look-up at every page.
        """
        most = max((len(s.pages) for s in seqs), default=0)
        width = 1 << max(most - 1, 0).bit_length()
        table = torch.full((len(seqs), width), -1, dtype=torch.int32)
        for row, seq in zip(table, seqs, strict=True):
            row[:len(seq.pages)] = torch.tensor(seq.pages, dtype=torch.int32)
        return table

    def _grow(self, at_least: int) -> None:
        room = None if self.max_pages is None else self.max_pages - self.num_pages
        if room is not None and at_least > room:
            raise CacheFull(f"the cache must hold {self.num_pages + at_least} pages of "
                            f"{self.page_size} tokens, its limit is {self.max_pages}")
        more = max(at_least, self.num_pages)         # doubling: each token is moved O(1) times
        more = more if room is None else min(more, room)
        old = self.num_pages
        new = self.storage.new_zeros(self.storage.shape[0], more, *self.storage.shape[2:])
        self.storage = torch.cat((self.storage, new), 1) if old else new
        self.free[:0] = range(old + more - 1, old - 1, -1)       # the last is taken first
