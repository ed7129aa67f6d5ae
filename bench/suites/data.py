"""Argument sets of a case: enough of them that no call finds its data in a cache."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ...ops.fused_moe import route
from ...ops.numerics import as_dtype
from ...ops.spec import Args, Operator, Shape

_MOST_SETS, _ROUTES = 64, 24
_MAX_BYTES = 3 << 30                 # of one case's argument sets
_OUTSIDE = 3                         # times the last-level cache


def cache_bytes() -> int:
    """The largest cache that Linux names; 32 MiB where it names none."""
    found = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text[:-1].isdigit():
            found.append(int(text[:-1]) << {"K": 10, "M": 20}.get(text[-1], 0))
    return max(found) or 32 << 20


def count(op: Operator, shape: Shape) -> int:
    """How many argument sets of a shape are several times the last-level cache together."""
    per = max(op.work(shape).bytes, 1)
    return max(2, min(_MOST_SETS, -(-_OUTSIDE * cache_bytes() // per), _MAX_BYTES // per))


class Data:
    """Makes argument sets; the weights of one MoE layer serve all of its token counts."""

    def __init__(self) -> None:
        self._weights: dict[tuple[object, ...], tuple[Tensor | None, ...]] = {}

    def sets(self, op: Operator, shape: Shape, seed: int = 0) -> list[Args]:
        """Argument sets of a case."""
        if op.name == "fused_moe":
            return self._moe(op, shape, seed)
        if op.name == "mla_decode":
            return [full_cache(shape, seed + i) for i in range(count(op, shape))]
        return [op.inputs(shape, seed + i) for i in range(count(op, shape))]

    def only(self, shapes: Iterable[Shape]) -> None:
        """Forget all weights but these shapes', before others are made: both would not fit."""
        wanted = {_layer(shape) for shape in shapes}
        self._weights = {k: w for k, w in self._weights.items() if k in wanted}

    def _moe(self, op: Operator, shape: Shape, seed: int) -> list[Args]:
        """The same weights for every token count and activation dtype; experts drawn anew."""
        stored = _layer(shape)
        if stored not in self._weights:
            _, w1, w2, _, _, s1, s2, *_ = op.inputs({**shape, "tokens": 1}, seed)
            self._weights[stored] = w1, w2, s1, s2
        w1, w2, s1, s2 = self._weights[stored]
        tokens = int(shape["tokens"])
        g = torch.Generator().manual_seed(seed)
        hidden = torch.randn(tokens, int(shape["hidden"]), generator=g).to(
            as_dtype(str(shape["dtype"])))
        rest = (s1, s2, int(shape["block_n"]), int(shape["block_k"]), bool(shape["w8a8"]))
        return [(hidden, w1, w2, *route(tokens, int(shape["top_k"]), int(shape["e"]), seed + i),
                 *rest) for i in range(_ROUTES)]


def _layer(shape: Shape) -> tuple[object, ...]:
    return tuple(shape.get(a) for a in ("e", "inter", "hidden", "w_dtype", "block_n", "block_k"))


def full_cache(shape: Shape, seed: int) -> Args:
    """mla_decode on sequences that all fill the context, on shuffled pages."""
    batch, heads, dv, page, ctx = (int(shape[a]) for a in (
        "batch", "heads", "head_dim_v", "page", "ctx"))
    d, need = dv + int(shape["rope"]), -(-ctx // page)
    g = torch.Generator().manual_seed(seed)
    run = torch.randn(1 << 20, generator=g).to(as_dtype(str(shape["kv_dtype"])))
    cache = torch.empty(batch * need, page, 1, d, dtype=run.dtype)
    flat = cache.view(-1)
    for first in range(0, flat.numel(), run.numel()):
        flat[first:first + run.numel()].copy_(run[:flat.numel() - first])
    q = torch.randn(batch, int(shape["s_q"]), heads, d, generator=g)
    table = torch.randperm(batch * need, generator=g).int().view(batch, need)
    lengths = torch.full((batch,), ctx, dtype=torch.int32)
    return (q.to(as_dtype(str(shape["dtype"]))), cache, table, lengths, dv, d**-0.5,
            bool(shape["causal"]))
