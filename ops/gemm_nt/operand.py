"""Operands of the GEMMs: plain tensors, or e4m3 or int8 codes with block scales."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models import ModelDims
from ..numerics import as_dtype, blank, dtype_name

FP8 = torch.float8_e4m3fn
INT8 = torch.int8                    # symmetric: the value is code * scale, whatever the code
PLAIN = (torch.float32, torch.bfloat16)
FLOATS = (*PLAIN, torch.float16)     # what the dense and grouped GEMMs take, and write
QUANTISED = (FP8, INT8)              # stored with float32 scales, one per block
_HALVES = (torch.float16, torch.bfloat16)    # neither holds the other's values
# Accumulated in float32: a sum of K terms errs by about sqrt(K) * 2^-24 of its largest terms, and
# bfloat16 outputs round by 2^-9 of the element, float16 ones by 2^-12.
RTOL = {"float32": 2e-5, "bfloat16": 1e-2, "float16": 1e-3}
_PERIOD = 4_194_301                  # a prime: experts cut from one random run all differ
# Standard deviation and limits of random codes: nearly all of the range is used, its ends too.
_CODES = {FP8: (100.0, -448.0, 448.0), INT8: (40.0, -128.0, 127.0)}


def check_operand(name: str, q: Tensor, scale: Tensor | None, axes: str,
                  blocks: tuple[int, ...], plain: tuple[torch.dtype, ...] = PLAIN) -> None:
    """Raise unless q is plain without, or quantised with float32 scales of one per block."""
    if q.ndim != len(blocks):
        raise ValueError(f"{name} must be [{axes}], got {list(q.shape)}")
    if q.dtype not in (*plain, *QUANTISED):
        raise TypeError(f"{name} must be {', '.join(dtype_name(d) for d in plain)}, float8_e4m3fn "
                        f"or int8, got {q.dtype}")
    if (scale is None) != (q.dtype not in QUANTISED):
        raise TypeError(f"{name} has scales if and only if it is float8_e4m3fn or int8, got "
                        f"{q.dtype} with {'no scales' if scale is None else 'scales'}; pass "
                        "(q, scale) or a plain tensor")
    if scale is not None:
        want = [-(-n // b) for n, b in zip(q.shape, blocks, strict=True)]
        if list(scale.shape) != want or scale.dtype != torch.float32:
            raise ValueError(f"scales of {name}{list(q.shape)} in blocks {blocks} must be "
                             f"float32{want}, got {scale.dtype}{list(scale.shape)}")


def check_together(a: Tensor, b: Tensor) -> None:
    """Raise if one operand is FP8 and the other int8, or one float16 and the other bfloat16."""
    for kinds, what in ((QUANTISED, "FP8 and int8"), (_HALVES, "float16 and bfloat16")):
        if {a.dtype, b.dtype} == set(kinds):
            raise TypeError(f"a and b must not mix {what}, got {a.dtype} and {b.dtype}; cast "
                            "one of them to the other's dtype")


def check_block(block_n: int, block_k: int) -> None:
    """Raise unless the block shape is one."""
    if block_n < 1 or block_k < 1:
        raise ValueError(f"block_shape must be at least (1, 1), got ({block_n}, {block_k})")


def check_out_dtype(out_dtype: torch.dtype) -> None:
    """Raise unless results can be written in that dtype."""
    if out_dtype not in FLOATS:
        raise TypeError(f"out_dtype must be float32, bfloat16 or float16, got {out_dtype}")


def plain64(q: Tensor, scale: Tensor | None, block: tuple[int, int]) -> Tensor:
    """A matrix in float64, its scales applied."""
    wide = q.to(torch.float32).double()
    if scale is None:
        return wide
    n, k = q.shape
    full = scale.double().repeat_interleave(block[0], 0)[:n].repeat_interleave(block[1], 1)[:, :k]
    return wide * full


def _repeat(base: Tensor, shape: tuple[int, ...]) -> Tensor:
    flat = torch.empty(int(torch.Size(shape).numel()), dtype=base.dtype)
    for first in range(0, flat.numel(), base.numel()):
        part = flat[first:first + base.numel()]
        part.copy_(base[:part.numel()])
    return flat.view(shape)


def random_operand(shape: tuple[int, ...], dtype: str, blocks: tuple[int, ...], seed: int,
                   std: float) -> tuple[Tensor, Tensor | None]:
    """Normal values of a standard deviation; cheap for gigabytes: one random run, repeated."""
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(min(_PERIOD, max(int(torch.Size(shape).numel()), 1)), generator=g)
    to = as_dtype(dtype)
    if to not in QUANTISED:
        return _repeat((base * std).to(to), shape), None
    spread, low, high = _CODES[to]
    codes = (base * spread).clamp(low, high)
    codes = codes.round() if to == INT8 else codes
    q = _repeat(codes.to(to).view(torch.uint8), shape).view(to)
    scales = tuple(-(-n // b) for n, b in zip(shape, blocks, strict=True))
    return q, (torch.rand(scales, generator=g) + 0.5) * (std / spread)


def blank_operand(shape: tuple[int, ...], dtype: str, blocks: tuple[int, ...]
                  ) -> tuple[Tensor, Tensor | None]:
    """What `random_operand` returns, without data."""
    scales = tuple(-(-n // b) for n, b in zip(shape, blocks, strict=True))
    return blank(dtype, *shape), blank("float32", *scales) if is_quantised(dtype) else None


def is_quantised(dtype: str) -> bool:
    """Whether tensors of a dtype come with scales."""
    return as_dtype(dtype) in QUANTISED


def weight_bytes(n: int, k: int, dtype: str, block: tuple[int, int]) -> int:
    """Bytes of a matrix with its scales."""
    scales = -(-n // block[0]) * -(-k // block[1]) * 4 if is_quantised(dtype) else 0
    return n * k * as_dtype(dtype).itemsize + scales


def activation_dtypes(model: ModelDims) -> tuple[tuple[str, bool], ...]:
    """The activation dtypes a model's GEMMs see, and whether they are quantised pairs."""
    return ((model.act_dtype, False), (model.weight_dtype, True)) if is_quantised(
        model.weight_dtype) else ((model.act_dtype, False),)
