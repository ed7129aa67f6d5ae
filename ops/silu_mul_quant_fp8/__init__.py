"""SwiGLU's activation cast to FP8 on the way: what feeds the second expert GEMM.

y = silu(gate) * up stays in float32, whatever the dtype of x: it is NOT rounded to x's dtype
before the cast. Then exactly the per-token-group cast of y.

Two right answers may differ, because exp is only good to an ulp: y within 4 ulp moves a scale by
as much, and y / s across a rounding boundary moves q by ONE e4m3 step (at most 32, the step of
the top binade, which holds the row's maximum of 448). The tolerances below say just that. A
UE8M0 scale whose float32 value lies within those ulp of a power of two may be either neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..fp8 import check_cast, empty_scales, group_cast, scale_count
from ..models import Load, ModelDims
from ..numerics import as_dtype, blank, dtype_name
from ..silu_mul import activation
from ..spec import Args, Operator, Outputs, Shape, Work


def shape_of(x: Tensor, group_size: int, eps: float, column_major_scales: bool,
             tma_aligned_scales: bool, use_ue8m0: bool) -> Shape:
    """Axes of a call."""
    if x.ndim != 2 or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError("x must be a float32, bfloat16 or float16 tensor [M, 2 * H], "
                        f"got {x.dtype}{list(x.shape)}")
    if x.shape[1] % 2:
        raise ValueError("x holds gate and up side by side: the last axis must be even, got "
                         f"{list(x.shape)}")
    check_cast(group_size, eps)
    return {"h": x.shape[1] // 2, "group_size": group_size, "dtype": dtype_name(x.dtype),
            "ue8m0": use_ue8m0, "tokens": x.shape[0]}


def empty(x: Tensor, group_size: int, eps: float, column_major_scales: bool,
          tma_aligned_scales: bool, use_ue8m0: bool) -> Outputs:
    """q [M, H] in e4m3fn, and the scales [M, ceil(H / group_size)] in float32."""
    m, h = x.shape[0], x.shape[1] // 2
    s = empty_scales(x, scale_count(h, group_size), column_major_scales, tma_aligned_scales)
    return torch.empty((m, h), dtype=torch.float8_e4m3fn, device=x.device), s


def reference(x: Tensor, group_size: int, eps: float, column_major_scales: bool,
              tma_aligned_scales: bool, use_ue8m0: bool, *, out: Outputs) -> None:
    """y in float64, rounded once to float32; then the per-token-group cast."""
    h, groups = x.shape[1] // 2, scale_count(x.shape[1] // 2, group_size)
    y = torch.nn.functional.pad(activation(x).float(), (0, groups * group_size - h))
    values, scale = group_cast(y.unflatten(1, (groups, group_size)), eps, use_ue8m0, (-1,))
    out[0].copy_(values.flatten(1)[:, :h])
    out[1].copy_(scale[..., 0])


def _call(x: Tensor, shape: Shape, eps: float = 1e-10, column_major: bool = False,
          aligned: bool = False) -> Args:
    return x, int(shape["group_size"]), eps, column_major, aligned, bool(shape["ue8m0"])


def signature(shape: Shape) -> Args:
    """A call without data."""
    return _call(blank(str(shape["dtype"]), int(shape["tokens"]), 2 * int(shape["h"])), shape)


def inputs(shape: Shape, seed: int) -> Args:
    """The first GEMM's result, with outlier columns."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(int(shape["tokens"]), 2 * int(shape["h"]), generator=g)
    x[:, ::61] *= 8.0
    return _call(x.to(as_dtype(str(shape["dtype"]))), shape)


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """Zeros, huge, tiny, tails, not finite, no token, strided rows, scale layouts."""
    dtype, h = as_dtype(str(shape["dtype"])), int(shape["h"])
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(9, 2 * h, generator=g)
    gate, up = x.chunk(2, -1)
    yield "typical", inputs({**shape, "tokens": 5}, seed)
    yield "no token", _call(torch.empty(0, 2 * h, dtype=dtype), shape)
    yield "zeros", _call(torch.zeros(2, 2 * h, dtype=dtype), shape)
    yield "huge", _call(torch.cat((gate, up * 3e4), -1).to(dtype), shape)
    yield "tiny", _call(torch.cat((gate, up * 1e-7), -1).to(dtype), shape)
    yield "tails", _call(torch.cat((gate * 20.0, up), -1).to(dtype), shape)
    strange = x.clone()
    strange[0, 0], strange[1, 0], strange[2, h], strange[3, -1] = torch.tensor(
        [torch.nan, torch.inf, torch.nan, -torch.inf])
    yield "not finite", _call(strange.to(dtype), shape)
    wide = torch.full((9, 2 * h + 3), torch.nan)
    wide[:, 1:-2] = x
    yield "columns of a wider tensor", _call(wide.to(dtype)[:, 1:-2], shape)
    yield "column-major scales", _call(x.to(dtype), shape, column_major=True)
    yield "TMA-aligned scales", _call(x.to(dtype), shape, column_major=True, aligned=True)


def work(shape: Shape) -> Work:
    """Read both halves once, write q and the scales once."""
    m, h = int(shape["tokens"]), int(shape["h"])
    size, groups = as_dtype(str(shape["dtype"])).itemsize, scale_count(h, int(shape["group_size"]))
    return Work(8 * m * h, m * h * (2 * size + 1) + 4 * m * groups)


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """The experts' and the dense layers' second GEMM."""
    sizes = {model.dense_inter, model.moe_inter, model.shared_experts * model.moe_inter} - {0}
    return tuple({"h": h, "group_size": model.block, "dtype": model.act_dtype, "ue8m0": False,
                  "tokens": t} for h in sorted(sizes) for t in load.tokens)


def _odd(tokens: int, h: int, group_size: int, dtype: str, ue8m0: bool) -> Shape:
    return {"tokens": tokens, "h": h, "group_size": group_size, "dtype": dtype, "ue8m0": ue8m0}


OP = Operator(
    name="silu_mul_quant_fp8",
    static=("h", "group_size", "dtype", "ue8m0"),
    dynamic=("tokens",),
    shape_of=shape_of, empty=empty, reference=reference, signature=signature, inputs=inputs,
    cases=cases, work=work,
    shapes=shapes,
    rtol={"float8_e4m3fn": 32.0 / 448.0, "float32": 1e-6},
    odd_shapes=(_odd(7, 200, 128, "bfloat16", False), _odd(5, 384, 128, "float32", True),
                _odd(3, 77, 64, "float32", False), _odd(2, 256, 128, "float16", False)),
)
