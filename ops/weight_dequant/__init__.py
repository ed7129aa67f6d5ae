"""Widen a block-scaled FP8 weight: w = q * s, one scale per block_size x block_size block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..fp8 import scale_count
from ..models import Load, ModelDims
from ..numerics import as_dtype, blank, dtype_name
from ..spec import Args, Operator, Outputs, Shape, Work

_OUT = (torch.float32, torch.bfloat16, torch.float16)


def shape_of(q: Tensor, s: Tensor, block_size: int, dtype: torch.dtype) -> Shape:
    """Axes of a call."""
    if q.ndim != 2 or q.dtype != torch.float8_e4m3fn:
        raise TypeError(f"q must be a float8_e4m3fn tensor [N, K], got {q.dtype}{list(q.shape)}")
    if dtype not in _OUT:
        raise TypeError(f"dtype must be one of {[dtype_name(d) for d in _OUT]}, got {dtype}")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    n, k = q.shape
    want = [scale_count(n, block_size), scale_count(k, block_size)]
    if list(s.shape) != want or s.dtype not in (torch.float32, torch.float8_e8m0fnu):
        raise ValueError(f"s must be float32 or float8_e8m0fnu {want} for q {list(q.shape)} and "
                         f"{block_size=}, got {s.dtype}{list(s.shape)}")
    return {"k": k, "block_size": block_size, "dtype": dtype_name(dtype), "n": n}


def empty(q: Tensor, s: Tensor, block_size: int, dtype: torch.dtype) -> Outputs:
    """w [N, K]."""
    return (torch.empty(q.shape, dtype=dtype, device=q.device),)


def reference(q: Tensor, s: Tensor, block_size: int, dtype: torch.dtype, *, out: Outputs) -> None:
    """q * s in float32, rounded once to `dtype`; the NaN codes 0x7F and 0xFF give NaN."""
    n, k = q.shape
    scale = s.float().repeat_interleave(block_size, 0)[:n].repeat_interleave(block_size, 1)[:, :k]
    out[0].copy_(q.float() * scale)


def _call(q: Tensor, s: Tensor, shape: Shape) -> Args:
    return q, s, int(shape["block_size"]), as_dtype(str(shape["dtype"]))


def _scales(shape: Shape, g: torch.Generator) -> Tensor:
    block = int(shape["block_size"])
    size = scale_count(int(shape["n"]), block), scale_count(int(shape["k"]), block)
    return torch.rand(size, generator=g) * 1e-3 + 1e-5


def signature(shape: Shape) -> Args:
    """A call without data."""
    n, k, block = int(shape["n"]), int(shape["k"]), int(shape["block_size"])
    scales = blank("float32", scale_count(n, block), scale_count(k, block))
    return _call(blank("float8_e4m3fn", n, k), scales, shape)


def inputs(shape: Shape, seed: int) -> Args:
    """Normal weights that fill the e4m3 range, scales of the size that checkpoints have."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(int(shape["n"]), int(shape["k"]), generator=g) * 110.0
    return _call(q.clamp(-448, 448).to(torch.float8_e4m3fn), _scales(shape, g), shape)


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """Every code, scales at both ends of float32, not finite, UE8M0; other row counts; strided."""
    g = torch.Generator().manual_seed(seed)
    n, k, block = int(shape["n"]), int(shape["k"]), int(shape["block_size"])
    codes = torch.arange(n * k).to(torch.uint8).view(n, k)
    q, s = codes.view(torch.float8_e4m3fn), _scales(shape, g)
    yield "typical", inputs(shape, seed)
    for rows in (0, 1, block, block + 1):
        yield f"{rows} rows", inputs({**shape, "n": rows}, seed)
    yield "every code", _call(q, s, shape)
    for scale in (1e38, 2.0**-126, 1e-42, 0.0, torch.inf, torch.nan):
        yield f"scale {scale:g}", _call(q, torch.full_like(s, scale), shape)
    powers = torch.exp2(torch.randint(-20, 5, s.shape, generator=g).float())
    yield "UE8M0 scales", _call(q, powers.to(torch.float8_e8m0fnu), shape)
    wide = torch.full((n, k + 3), 0x7F, dtype=torch.uint8)
    wide[:, 1:-2] = codes
    yield "columns of a wider tensor", _call(wide.view(q.dtype)[:, 1:-2], s, shape)
    yield "transposed", _call(codes.t().contiguous().view(q.dtype).t(), s.t().contiguous().t(),
                              shape)


def work(shape: Shape) -> Work:
    """Read q and the scales once, write w once."""
    n, k, block = int(shape["n"]), int(shape["k"]), int(shape["block_size"])
    size = as_dtype(str(shape["dtype"])).itemsize
    return Work(n * k, n * k * (size + 1) + 4 * scale_count(n, block) * scale_count(k, block))


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """The weight that absorbed attention widens at load: kv_b [heads * (nope + v_dim), kv_lora]."""
    return ({"k": model.kv_lora, "block_size": model.block, "dtype": model.act_dtype,
             "n": model.heads * (model.nope + model.v_dim)},)


def _odd(n: int, k: int, block_size: int, dtype: str) -> Shape:
    return {"n": n, "k": k, "block_size": block_size, "dtype": dtype}


OP = Operator(
    name="weight_dequant",
    static=("k", "block_size", "dtype"),
    dynamic=("n",),
    shape_of=shape_of, empty=empty, reference=reference, signature=signature, inputs=inputs,
    cases=cases, work=work,
    shapes=shapes,
    rtol={"float32": 0.0, "bfloat16": 0.0, "float16": 0.0},
    odd_shapes=(_odd(130, 200, 128, "float32"), _odd(70, 384, 128, "bfloat16"),
                _odd(9, 77, 4, "float16"), _odd(65, 77, 64, "bfloat16")),
)
