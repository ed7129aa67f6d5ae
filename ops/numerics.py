"""How results are compared with the truth, and how unread memory is poisoned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
SENTINEL = 7.0                       # what outputs hold before a run: shows writes that must not be


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16": the spelling used in shapes, keys and records."""
    return str(dtype).removeprefix("torch.")


def as_dtype(name: str) -> torch.dtype:
    """The inverse of `dtype_name`."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"a dtype must be named as in torch, got {name!r}")
    return dtype


def blank(dtype: str, *sizes: int) -> Tensor:
    """A tensor without data: sizes and a dtype, on torch's meta device."""
    return torch.empty(sizes, dtype=as_dtype(dtype), device="meta")


def poison(x: Tensor) -> Tensor:
    """Fill a tensor with what must never be read: NaN, or a huge index."""
    if x.dtype.is_floating_point:
        return x.copy_(torch.full((), float("nan")).to(x.dtype))
    return x.fill_(min(2_147_480_000, torch.iinfo(x.dtype).max))


def same_bits(got: Tensor, want: Tensor) -> Tensor:
    """Element-wise bit equality; two NaNs are equal whatever their payload."""
    bits = _BITS[got.element_size()]
    same = got.contiguous().view(bits) == want.contiguous().view(bits)
    if got.dtype.is_floating_point:
        same |= got.float().isnan() & want.float().isnan()
    return same


def mismatch(got: Tensor, want: Tensor, rtol: float) -> str | None:
    """Why `got` is not `want`, with the numbers, or None.

    rtol 0 asks for equal bits. Otherwise an element may differ by rtol times the largest finite
    magnitude of its row (last axis) in `want`: cancellation inside a dot product is not an error,
    a wrong row is. Infinities and NaNs must stand in the same places.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"expected {want.dtype}{list(want.shape)}, got {got.dtype}{list(got.shape)}"
    if not want.numel():
        return None
    if rtol == 0 or not want.dtype.is_floating_point:
        bad = ~same_bits(got, want)
        error = torch.full(got.shape, float("nan"))
    else:
        g, w = got.double(), want.double()
        finite = w.isfinite()
        same = (g == w) | (g.isnan() & w.isnan())
        scale = torch.where(finite, w.abs(), 0.0).amax(-1, keepdim=True)
        error = torch.where(same, 0.0, (g - w).abs() / scale.clamp_min(1e-30))
        bad = ~same & (~finite | ~g.isfinite() | (error > rtol))
    count = int(bad.sum())
    if not count:
        return None
    at = tuple(int(i) for i in bad.nonzero()[0])
    return (f"{count} of {bad.numel()} elements wrong, first at {at}: got {got[at].item()}, "
            f"want {want[at].item()} (largest error / row maximum "
            f"{float(error.nan_to_num(0.0).max()):.3g}, allowed {rtol:.3g})")


def mismatches(got: tuple[Tensor, ...], want: tuple[Tensor, ...],
               rtol: Mapping[str, float]) -> str | None:
    """The first mismatch among several outputs, or None."""
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        if why := mismatch(g, w, rtol.get(dtype_name(w.dtype), 0.0)):
            return f"output {i}: {why}"
    return None
