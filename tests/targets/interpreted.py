"""What the interpreter's tests run in a child process: conversions and dot products of tiles."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch

from expertile.targets._triton import interpreter

interpreter.enable()

import triton  # noqa: E402 - only after the interpreter is on
import triton.language as tl  # noqa: E402

TYPES = {"float32": tl.float32, "float16": tl.float16, "bfloat16": tl.bfloat16,
         "float8_e4m3fn": tl.float8e4nv, "float8_e5m2": tl.float8e5,
         "float8_e4m3fnuz": tl.float8e4b8}
LIMITS = {"float8_e4m3fn": 448.0, "float8_e4m3fnuz": 240.0}
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@triton.jit
def convert(x, y, n, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n).to(TYPE), mask=at < n)


@triton.jit
def dot(a, b, c, SIDE: tl.constexpr):
    i, j = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    x = tl.load(a + i * SIDE + j)
    y = tl.load(b + i * SIDE + j)
    tl.store(c + i * SIDE + j, tl.dot(x, y))


def grid() -> torch.Tensor:
    """Every float32 whose lower 12 bits are 0, halves and their neighbours: 2^20 x 5 values."""
    high = torch.arange(-2**19, 2**19, dtype=torch.int32) << 12
    return torch.cat([(high + low).view(torch.float32)
                      for low in (0, 1, 0x7FF, 0x800, 0x801)])[::7].contiguous()


def wrong_conversions(source: str, target: str) -> int:
    """How many values of a dense grid convert to other bits than torch's, saturating as a GPU."""
    x = grid().to(getattr(torch, source))
    out = torch.empty(x.shape, dtype=getattr(torch, target))
    convert[(triton.cdiv(x.numel(), 65536),)](x, out, x.numel(), TYPES[target], 65536)
    wide = x.float()
    limit = LIMITS.get(target)
    want = (wide.clamp(-limit, limit) if limit else wide).to(out.dtype)
    bits = BITS[out.element_size()]
    same = (out.view(bits) == want.view(bits)) | (out.float().isnan() & want.float().isnan())
    return int((~same).sum())


def dot_error(dtype: str) -> float:
    """Relative error of a 64 x 64 product against float64 on the same rounded operands."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=g).to(getattr(torch, dtype)) for _ in range(2))
    c = torch.empty(64, 64)
    dot[(1,)](a, b, c, 64)
    want = a.double() @ b.double()
    return float((c.double() - want).norm() / want.norm())


@triton.jit
def fused(a, b, c, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.fma(tl.load(a + at), tl.load(b + at), tl.load(c + at)))


def wrong_fmas() -> int:
    """How many fused multiply-adds are not the exact result rounded once, cancellation included."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2**13, generator=g) for _ in range(2))
    c = torch.where(torch.rand(2**13, generator=g) < 0.5, -(a * b), torch.randn(2**13, generator=g))
    out = torch.empty_like(a)
    fused[(4,)](a, b, c, out, a.numel(), 2**11)
    exact = [Fraction(x) * Fraction(y) + Fraction(z)
             for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    return sum(_error(o, e) > min(_error(_next(o, up), e) for up in (False, True))
               for o, e in zip(out.tolist(), exact, strict=True))


def _error(value: float, exact: Fraction) -> Fraction:
    return abs(Fraction(value) - exact)


def _next(value: float, up: bool) -> float:
    towards = torch.tensor(float("inf") if up else float("-inf"))
    return float(torch.nextafter(torch.tensor(value), towards))


def version() -> Any:
    """Of the triton that runs here."""
    return triton.__version__
