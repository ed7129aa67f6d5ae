"""The routed experts of a MoE layer in plain torch, the ways its users write it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.spec import Args
from .form import turns

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Weights:
    """w1 [E, 2I, K] and w2 [E, K, I] in one dtype, as a torch model holds them after loading."""

    up: Tensor
    down: Tensor


def wide(q: Tensor, scale: Tensor | None, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Stacked weights [E, N, K] with their block scales applied, one expert after the other."""
    if scale is None:
        return q.to(dtype)
    out = torch.empty(q.shape, dtype=dtype)
    _, n, k = q.shape
    for e in range(len(q)):
        full = scale[e].repeat_interleave(block[0], 0)[:n].repeat_interleave(block[1], 1)[:, :k]
        out[e] = q[e].float().mul_(full)
    return out


def weights(args: Args, dtype: torch.dtype) -> Weights:
    """The experts of a fused_moe call in a dtype: done once, at load."""
    _, w1, w2, _, _, s1, s2, block_n, block_k, _ = args
    block = (block_n, block_k)
    return Weights(wide(w1, s1, block, dtype), wide(w2, s2, block, dtype))


def loop(hidden: Tensor, topk_weights: Tensor, ids: Tensor, w: Weights) -> Tensor:
    """Rows sorted by expert, then two products for each expert that has rows."""
    flat, top_k = ids.flatten(), ids.shape[1]
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=len(w.up)).tolist()
    token = order // top_k
    share = topk_weights.flatten()[order, None].to(hidden.dtype)
    out, first = torch.zeros_like(hidden), 0
    for e, rows in enumerate(counts):
        if rows:
            mine = token[first:first + rows]
            gate, up = F.linear(hidden[mine], w.up[e]).chunk(2, -1)
            y = F.linear(F.silu(gate) * up, w.down[e])
            out.index_add_(0, mine, y.mul_(share[first:first + rows]))
            first += rows
    return out


def grouped(hidden: Tensor, topk_weights: Tensor, ids: Tensor, up: Tensor, down: Tensor
            ) -> Tensor:
    """The same with torch._grouped_mm; up [E, K, 2I], down [E, I, K]."""
    flat, top_k = ids.flatten(), ids.shape[1]
    order = flat.argsort(stable=True)
    ends = torch.bincount(flat, minlength=len(up)).cumsum(0).int()
    token = order // top_k
    gate, value = torch._grouped_mm(hidden[token], up, offs=ends).chunk(2, -1)
    y = torch._grouped_mm(F.silu(gate) * value, down, offs=ends)
    y = y * topk_weights.flatten()[order, None].to(y.dtype)
    return torch.zeros_like(hidden).index_add_(0, token, y)


def forms(sets: list[Args], held: dict[torch.dtype, Weights], dtypes: tuple[torch.dtype, ...],
          compiled: bool) -> Iterator[tuple[str, Call]]:
    """Every form, by name. `held` keeps the widened weights between token counts."""
    for dtype in dtypes:
        if dtype not in held:
            held[dtype] = weights(sets[0], dtype)
        w = held[dtype]
        short = "f32" if dtype == torch.float32 else "bf16"
        calls = [(a[0].to(dtype), a[3], a[4].long()) for a in sets]
        yield f"torch {short} loop", turns(loop, [(*c, w) for c in calls])
        turned = w.up.transpose(1, 2), w.down.transpose(1, 2)
        yield f"torch._grouped_mm {short}", turns(grouped, [(*c, *turned) for c in calls])
        if compiled:
            yield (f"torch.compile {short} _grouped_mm",
                   turns(torch.compile(grouped, dynamic=True), [(*c, *turned) for c in calls]))
