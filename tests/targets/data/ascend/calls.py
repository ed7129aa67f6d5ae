"""The test kernels with arguments and the right answers: clean calls for both CPU checks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from expertile.ops.numerics import poison
from tests.targets.data.ascend import kernels

TORCH = {"f16": torch.float16, "bf16": torch.bfloat16, "i8": torch.int8}
# Half a unit of the output's last place in a row's largest; MLA rounds its probabilities too.
ROUNDING = {"f16": 1e-3, "bf16": 8e-3, "i8": 8e-3, "mla": 3e-3}


@dataclass(frozen=True)
class Call:
    """A kernel, what it is given, and what must stand in its last arguments afterwards."""

    module: str
    arguments: tuple[Tensor, ...]
    grid: tuple[int, int, int]
    want: tuple[Tensor, ...]
    rtol: float


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 and scales per 128 columns, by definition."""
    groups = x.float().unflatten(-1, (-1, 128))
    scale = groups.abs().amax(-1).clamp_min(1e-10) / 127.0
    return (groups / scale[..., None]).round().to(torch.int8).flatten(-2), scale


def group_quant(blocks: int, cols: int, tile: int, dtype: str = "f16", seed: int = 0) -> Call:
    """Ties, a row of zeros and a row of tiny numbers among normal ones."""
    random = torch.Generator().manual_seed(seed)
    rows = blocks * tile
    x = torch.randn(rows, cols, generator=random).to(TORCH[dtype])
    x[0, :128] = torch.arange(128) % 127 + 0.5           # scale 1: every element is a tie
    x[0, 127] = 127.0
    x[1] = 0.0
    x[2, -128:] = 1e-6
    out = torch.full((rows, cols), 7, dtype=torch.int8), torch.full((rows, cols // 128), 7.0)
    return Call(kernels.group_quant(cols, tile, dtype), (x, *out), (blocks, cols // 128, 1),
                quantised(x), 0.0)


def gemm(m: int, n: int, k: int, bm: int, bn: int, bk: int, seed: int = 0) -> Call:
    """A dense product of float16."""
    random = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(s, generator=random).half() for s in ((m, k), (k, n)))
    return Call(kernels.gemm(n, k, bm, bn, bk), (a, b, torch.full((m, n), 7.0).half()),
                (m // bm, n // bn, 1), ((a.double() @ b.double()).half(),), ROUNDING["f16"])


def grouped_gemm(counts: tuple[int, ...], n: int, k: int, bm: int, bn: int, bk: int,
                 dtype: str = "f16", seed: int = 0) -> Call:
    """Experts with `counts` rows; rows past the last are poisoned, and must not be written."""
    random = torch.Generator().manual_seed(seed)
    experts, rows = len(counts), sum(counts)
    blocks = [(e, sum(counts[:e]) + first, min(bm, count - first))
              for e, count in enumerate(counts) for first in range(0, count, bm)]
    a, w = poison(torch.empty(rows + bm, k, dtype=TORCH[dtype])), torch.empty(experts, n, k)
    scales: tuple[Tensor, ...] = ()
    if dtype == "i8":
        a[:rows] = torch.randint(-127, 128, (rows, k), generator=random).to(torch.int8)
        w = torch.randint(-127, 128, w.shape, generator=random).to(torch.int8)
        scales = (torch.rand(rows + bm, generator=random) + 0.5,
                  torch.rand(experts, n, generator=random) / 100)
    else:
        a[:rows] = torch.randn(rows, k, generator=random).to(TORCH[dtype])
        w = torch.randn(w.shape, generator=random).to(TORCH[dtype])
    expert = torch.repeat_interleave(torch.arange(experts), torch.tensor(counts))
    result = torch.einsum("rk,rnk->rn", a[:rows].double(), w.double()[expert])
    if scales:
        result = result * scales[0][:rows, None].double() * scales[1].double()[expert]
    out = torch.full((rows + bm, n), 7.0, dtype=torch.bfloat16 if scales else TORCH[dtype])
    want = out.clone()
    want[:rows] = result.to(out.dtype)
    table = torch.tensor(blocks, dtype=torch.int32)
    return Call(kernels.grouped_gemm(n, k, bm, bn, bk, dtype), (a, w, *scales, table, out),
                (len(blocks), n // bn, 1), (want,), ROUNDING[dtype])


def mla_decode(lengths: tuple[int, ...], heads: int, bh: int, bs: int, dv: int, rope: int,
               seed: int = 0) -> Call:
    """Requests of these lengths; the cache past them is poisoned."""
    random = torch.Generator().manual_seed(seed)
    batch, tokens, d = len(lengths), -(-max(lengths) // bs) * bs, dv + rope
    q = torch.randn(batch, heads, d, generator=random).half()
    kv = torch.randn(batch, tokens, d, generator=random).half()
    want = torch.empty(batch, heads, dv).half()
    for i, length in enumerate(lengths):
        poison(kv[i, length:])
        seen = kv[i, :length].double()
        scores = q[i].double() @ seen.T * (d / 3) ** -0.5
        want[i] = (scores.softmax(-1) @ seen[:, :dv]).half()
    return Call(kernels.mla_decode(heads, bh, bs, tokens, dv, rope),
                (q, kv, torch.tensor(lengths, dtype=torch.int32), torch.full_like(want, 7.0)),
                (batch, heads // bh, 1), (want,), ROUNDING["mla"])
