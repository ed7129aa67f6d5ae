"""Cast to int8 with one scale per token and group of columns, or per token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..fp8 import check_cast, scale_count
from ..int8 import INT8_MAX, int8_cast
from ..models import Load, ModelDims
from ..numerics import as_dtype, blank, dtype_name
from ..spec import Args, Operator, Outputs, Shape, Work


def shape_of(x: Tensor, group_size: int, eps: float) -> Shape:
    """Axes of a call."""
    if x.ndim < 1 or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError("x must be a float32, bfloat16 or float16 tensor [..., K], "
                        f"got {x.dtype}{list(x.shape)}")
    check_cast(group_size, eps)
    k = x.shape[-1]
    return {"k": k, "group_size": group_size, "dtype": dtype_name(x.dtype),
            "tokens": x.numel() // max(k, 1)}


def empty(x: Tensor, group_size: int, eps: float) -> Outputs:
    """q like x in int8, and the scales [..., ceil(K / group_size)] in float32."""
    groups = scale_count(x.shape[-1], group_size)
    return (torch.empty(x.shape, dtype=torch.int8, device=x.device),
            torch.empty((*x.shape[:-1], groups), dtype=torch.float32, device=x.device))


def reference(x: Tensor, group_size: int, eps: float, *, out: Outputs) -> None:
    """s = max(amax, eps) / 127; q = x / s to the nearest integer, in float32, IEEE division."""
    k, groups = x.shape[-1], scale_count(x.shape[-1], group_size)
    padded = torch.nn.functional.pad(x.float(), (0, groups * group_size - k))
    codes, scale = int8_cast(padded.unflatten(-1, (groups, group_size)), eps, (-1,))
    out[0].copy_(codes.flatten(-2)[..., :k])
    out[1].copy_(scale[..., 0])


def _call(x: Tensor, shape: Shape, eps: float = 1e-10) -> Args:
    return x, int(shape["group_size"]), eps


def signature(shape: Shape) -> Args:
    """A call without data."""
    return _call(blank(str(shape["dtype"]), int(shape["tokens"]), int(shape["k"])), shape)


def inputs(shape: Shape, seed: int) -> Args:
    """Activations with outlier columns, as MoE inputs have them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(int(shape["tokens"]), int(shape["k"]), generator=g)
    x[:, ::61] *= 30.0
    return _call(x.to(as_dtype(str(shape["dtype"]))), shape)


def _strange(k: int, g: torch.Generator) -> Tensor:
    """Rows with one NaN, one infinity, all infinite, all NaN, a negative zero."""
    x = torch.randn(5, k, generator=g)
    x[0, k // 2], x[1, k // 2], x[2], x[3] = torch.nan, -torch.inf, torch.inf, torch.nan
    x[4] = -0.0
    return x


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """Zeros, huge, tiny, not finite, ties of every kind, no token, strided x."""
    dtype, k = as_dtype(str(shape["dtype"])), int(shape["k"])
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(9, k, generator=g)
    yield "typical", inputs({**shape, "tokens": 3}, seed)
    yield "no token", _call(torch.empty(0, k, dtype=dtype), shape)
    yield "zeros", _call(torch.zeros(2, k, dtype=dtype), shape)
    yield "huge", _call((x * 1e30).to(dtype), shape)
    yield "tiny", _call((x * 1e-30).to(dtype), shape)
    yield "subnormal amax", _call((x * 1e-39).to(dtype), shape, eps=1e-45)
    yield "not finite", _call(_strange(k, g).to(dtype), shape)
    # a scale of a power of two: every half is exactly between two codes
    ties = torch.arange(8 * k).remainder(509).sub(254).float().div(2).view(8, k)
    ties[:, ::int(shape["group_size"])] = INT8_MAX
    yield "ties", _call((ties * torch.exp2(torch.arange(-4.0, 4.0))[:, None]).to(dtype), shape)
    powers = x.sign() * INT8_MAX * torch.exp2(torch.arange(-4.0, 5.0))[:, None]
    powers[:, 1::2] *= 0.99
    yield "all at the largest code", _call(powers.to(dtype), shape)
    wide = torch.full((9, k + 3), torch.nan)
    wide[:, 1:-2] = x
    yield "columns of a wider tensor", _call(wide.to(dtype)[:, 1:-2], shape)
    yield "transposed", _call(x.to(dtype).t().contiguous().t(), shape)
    yield "three axes", _call(x.to(dtype).view(3, 3, k), shape)


def work(shape: Shape) -> Work:
    """Read x once, write q and the scales once."""
    n, k = int(shape["tokens"]), int(shape["k"])
    size = as_dtype(str(shape["dtype"])).itemsize
    return Work(3 * n * k, n * k * (size + 1) + 4 * n * scale_count(k, int(shape["group_size"])))


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """The inputs of the expert GEMMs of a model in int8; other models cast nothing to it."""
    if model.weight_dtype != "int8":
        return ()
    return tuple({"k": k, "group_size": model.scale_block(k)[1], "dtype": model.act_dtype,
                  "tokens": t} for k in sorted({model.hidden, model.moe_inter})
                 for t in load.tokens)


def _odd(tokens: int, k: int, group_size: int, dtype: str) -> Shape:
    return {"tokens": tokens, "k": k, "group_size": group_size, "dtype": dtype}


OP = Operator(
    name="per_token_group_quant_int8",
    static=("k", "group_size", "dtype"),
    dynamic=("tokens",),
    shape_of=shape_of, empty=empty, reference=reference, signature=signature, inputs=inputs,
    cases=cases, work=work,
    shapes=shapes,
    rtol={"int8": 0.0, "float32": 0.0},
    odd_shapes=(_odd(7, 200, 128, "bfloat16"), _odd(5, 384, 384, "float32"),
                _odd(3, 77, 64, "float32"), _odd(2, 256, 128, "float16"),
                _odd(3, 20, 4, "float32"), _odd(4, 77, 77, "bfloat16")),
)
