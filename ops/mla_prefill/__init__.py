"""Expanded MLA prefill: attention of ragged sequences; value heads have a width of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..models import Load, ModelDims
from ..numerics import as_dtype, blank, dtype_name
from ..spec import Args, Operator, Outputs, Shape, Work


def shape_of(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
             softmax_scale: float, causal: bool) -> Shape:
    """Axes of a call."""
    if q.dtype not in (torch.float32, torch.bfloat16) or not q.dtype == k.dtype == v.dtype:
        raise TypeError("q, k and v must all be float32 or all bfloat16, "
                        f"got {q.dtype}, {k.dtype} and {v.dtype}")
    if not q.ndim == k.ndim == v.ndim == 3 or not q.shape[1] == k.shape[1] == v.shape[1] or (
            k.shape[0] != v.shape[0] or q.shape[2] != k.shape[2]):
        raise ValueError("q must be [Tq, heads, d_qk], k [Tk, heads, d_qk], v [Tk, heads, d_v], "
                         f"got {list(q.shape)}, {list(k.shape)} and {list(v.shape)}")
    if not q.shape[1] or not q.shape[2] or not v.shape[2]:
        raise ValueError(f"heads, d_qk and d_v must be at least 1, got {list(q.shape)} and "
                         f"{list(v.shape)}")
    cu = cu_seqlens_q, cu_seqlens_k
    if any(c.ndim != 1 or c.dtype != torch.int32 for c in cu) or not cu[0].shape[0] or (
            cu[0].shape != cu[1].shape):
        raise ValueError("cu_seqlens_q and cu_seqlens_k must be int32[batch + 1], got "
                         + " and ".join(f"{c.dtype}{list(c.shape)}" for c in cu))
    return {"heads": q.shape[1], "d_qk": q.shape[2], "d_v": v.shape[2],
            "dtype": dtype_name(q.dtype), "causal": causal, "tokens": q.shape[0],
            "ctx": k.shape[0], "batch": cu[0].shape[0] - 1}


def empty(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
          softmax_scale: float, causal: bool) -> Outputs:
    """out [Tq, H, Dv] like q, and lse [H, Tq] float32."""
    tokens, heads, _ = q.shape
    return (q.new_empty(tokens, heads, v.shape[2]),
            q.new_empty(heads, tokens, dtype=torch.float32))


def _ends(cu: Tensor, most: int) -> list[int]:
    """Offsets clamped to the tokens that exist, and made non-decreasing."""
    return torch.cummax(cu.long().clamp(0, most), 0).values.tolist()


def reference(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
              softmax_scale: float, causal: bool, *, out: Outputs) -> None:
    """Softmax attention in float64, one sequence after the other.

    Offsets are clamped (`_ends`); a query outside all sequences sees no key.
    """
    o, lse = out
    o.zero_()
    lse.fill_(float("-inf"))
    ends_q, ends_k = _ends(cu_seqlens_q, q.shape[0]), _ends(cu_seqlens_k, k.shape[0])
    for b in range(len(ends_q) - 1):
        rows, cols = slice(ends_q[b], ends_q[b + 1]), slice(ends_k[b], ends_k[b + 1])
        lq, lk = ends_q[b + 1] - ends_q[b], ends_k[b + 1] - ends_k[b]
        sees = torch.full((lq, 1), lk, device=q.device)
        if causal:
            sees += torch.arange(1, lq + 1, device=q.device)[:, None] - lq
        hidden = torch.arange(lk, device=q.device) >= sees
        for h in range(q.shape[1]):  # all heads at once would take gigabytes at 2048 tokens
            s = (q[rows, h].double() @ k[cols, h].double().T * softmax_scale).masked_fill(
                hidden, float("-inf"))
            lse[h, rows] = torch.logsumexp(s, -1)
            p = torch.softmax(s, -1).masked_fill((sees <= 0) | (lk == 0), 0.0)
            o[rows, h] = (p @ v[cols, h].double()).to(o.dtype)


def _call(shape: Shape, lq: Sequence[int], lk: Sequence[int], seed: int) -> Args:
    """A call on sequences of these lengths. Means keep scores near 8: a log-sum-exp near zero would
    have no relative accuracy to compare."""
    g = torch.Generator().manual_seed(seed)
    heads, d_qk, d_v = (int(shape[a]) for a in ("heads", "d_qk", "d_v"))
    dtype = as_dtype(str(shape["dtype"]))
    q = torch.randn(sum(lq), heads, d_qk, generator=g) + 16.0 * d_qk**-0.5
    k = torch.randn(sum(lk), heads, d_qk, generator=g) + 0.5
    v = torch.randn(sum(lk), heads, d_v, generator=g)
    cu = [torch.tensor([0, *n]).cumsum(0).int() for n in (lq, lk)]
    return (q.to(dtype), k.to(dtype), v.to(dtype), *cu, d_qk**-0.5, bool(shape["causal"]))


def signature(shape: Shape) -> Args:
    """A call without data."""
    tokens, ctx, heads, d_qk, d_v, batch = (int(shape[a]) for a in (
        "tokens", "ctx", "heads", "d_qk", "d_v", "batch"))
    dtype = str(shape["dtype"])
    return (blank(dtype, tokens, heads, d_qk), blank(dtype, ctx, heads, d_qk),
            blank(dtype, ctx, heads, d_v), blank("int32", batch + 1), blank("int32", batch + 1),
            d_qk**-0.5, bool(shape["causal"]))


def inputs(shape: Shape, seed: int) -> Args:
    """Sequences that share the tokens and the context about equally."""
    batch = int(shape["batch"])
    lq, lk = ([int(shape[a]) * (b + 1) // batch - int(shape[a]) * b // batch for b in range(batch)]
              for a in ("tokens", "ctx"))
    return _call(shape, lq, lk, seed)


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """Ragged, empty and chunked sequences, huge scores, offsets out of range."""
    yield "ragged", _call(shape, (67, 1, 33, 2), (67, 1, 33, 2), seed)
    yield "chunks", _call(shape, (19, 1, 40), (150, 65, 41), seed + 1)
    yield "more queries than keys", _call(shape, (37, 70, 3), (5, 69, 1), seed + 2)
    yield "empty sequences", _call(shape, (0, 5, 0, 3, 0), (0, 0, 7, 3, 0), seed + 3)
    yield "no sequence", _call(shape, (), (), seed + 4)
    yield "no query", _call(shape, (0, 0), (3, 4), seed + 5)
    q, k, v, cu_q, cu_k, scale, causal = _call(shape, (30, 40), (30, 40), seed + 6)
    axis = torch.randn(k.shape[1:], generator=torch.Generator().manual_seed(seed)).sign()
    ramp = torch.arange(1, 71)[:, None, None] / 70
    yield "scores of 1e4", ((axis * (q[..., :1].float() - 1.5).sign()
                             * (1e4 * scale)).to(q.dtype),
                            (ramp * axis).to(k.dtype), v, cu_q, cu_k, scale, causal)
    for name, bad_q, bad_k in (
            ("offsets past the end", [0, 2_147_483_647, 5], [0, 50, 2_147_483_647]),
            ("offsets before the start", [-2_147_483_648, 30, 70], [-7, -3, 70]),
            ("tokens outside all sequences", [9, 30, 51], [3, 30, 33]),
            ("decreasing offsets", [0, 60, 20], [70, 0, 70])):
        yield name, (q, k, v, *(torch.tensor(x, dtype=torch.int32) for x in (bad_q, bad_k)),
                     scale, causal)


def work(shape: Shape) -> Work:
    """Two products over the pairs that the mask leaves, with equal shares for the sequences."""
    batch, heads = max(int(shape["batch"]), 1), int(shape["heads"])
    tokens, ctx = int(shape["tokens"]), int(shape["ctx"])
    lq, lk = tokens / batch, ctx / batch
    pairs = lq * lk
    if shape["causal"]:
        pairs = lq * lk - lq * (lq - 1) / 2 if lk >= lq else lk * (lk + 1) / 2
    widths = int(shape["d_qk"]) + int(shape["d_v"])
    size = as_dtype(str(shape["dtype"])).itemsize
    return Work(int(2 * batch * heads * pairs * widths),
                heads * ((tokens + ctx) * widths * size + 4 * tokens))


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """The first chunk of one prompt."""
    return tuple({"heads": model.heads, "d_qk": model.nope + model.rope, "d_v": model.v_dim,
                  "dtype": model.act_dtype, "causal": True, "tokens": t, "ctx": t, "batch": 1}
                 for t in load.tokens if t >= 16)


def _odd(heads: int, d_qk: int, d_v: int, dtype: str, causal: bool) -> Shape:
    return {"heads": heads, "d_qk": d_qk, "d_v": d_v, "dtype": dtype, "causal": causal,
            "tokens": 37, "ctx": 53, "batch": 2}


OP = Operator(
    name="mla_prefill",
    static=("heads", "d_qk", "d_v", "dtype", "causal"),
    dynamic=("tokens", "ctx", "batch"),
    shape_of=shape_of, empty=empty, reference=reference, signature=signature, inputs=inputs,
    cases=cases, work=work,
    shapes=shapes,
    rtol={"float32": 2e-5, "bfloat16": 1e-2},
    odd_shapes=(_odd(4, 96, 64, "float32", True),                    # the tiny preset
                _odd(3, 192, 128, "bfloat16", True),
                _odd(1, 256, 256, "float32", False),
                _odd(5, 72, 40, "float32", True)),                   # no multiple of a vector
)
