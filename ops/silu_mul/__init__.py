"""SwiGLU's activation: silu(gate) * up, the gate being the first half of the columns."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..models import Load, ModelDims
from ..numerics import as_dtype, blank, dtype_name
from ..spec import Args, Operator, Outputs, Shape, Work


def shape_of(x: Tensor) -> Shape:
    """Axes of a call."""
    if x.ndim < 1 or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError("x must be a float32, bfloat16 or float16 tensor [..., 2 * H], "
                        f"got {x.dtype}{list(x.shape)}")
    if x.shape[-1] % 2:
        raise ValueError(f"x holds gate and up side by side: the last axis must be even, got "
                         f"{list(x.shape)}")
    h = x.shape[-1] // 2
    return {"h": h, "dtype": dtype_name(x.dtype), "tokens": x.numel() // max(2 * h, 1)}


def empty(x: Tensor) -> Outputs:
    """y [..., H] like x."""
    return (torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype, device=x.device),)


def activation(x: Tensor) -> Tensor:
    """silu(gate) * up in float64."""
    gate, up = x.double().chunk(2, -1)
    return gate * gate.sigmoid() * up


def reference(x: Tensor, *, out: Outputs) -> None:
    """In float64, rounded once. A kernel works in float32."""
    out[0].copy_(activation(x))


def signature(shape: Shape) -> Args:
    """A call without data."""
    return (blank(str(shape["dtype"]), int(shape["tokens"]), 2 * int(shape["h"])),)


def inputs(shape: Shape, seed: int) -> Args:
    """The first GEMM's result."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(int(shape["tokens"]), 2 * int(shape["h"]), generator=g) * 2.0
    return (x.to(as_dtype(str(shape["dtype"]))),)


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """Both tails of silu, zeros, not finite, no token, strided rows, three axes."""
    dtype, h = as_dtype(str(shape["dtype"])), int(shape["h"])
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 2 * h, generator=g)
    yield "typical", inputs({**shape, "tokens": 7}, seed)
    yield "no token", (torch.empty(0, 2 * h, dtype=dtype),)
    yield "zeros", (torch.zeros(2, 2 * h, dtype=dtype),)
    yield "tails", (torch.cat((x[:, :h] * 20.0, x[:, h:]), -1).to(dtype),)
    yield "only the negative tail", (torch.cat((x[:, :h] - 60.0, x[:, h:] * 1e3), -1).to(dtype),)
    strange = x.clone()
    strange[0, 0], strange[1, 0], strange[2, 0] = torch.nan, torch.inf, -torch.inf
    strange[3, h], strange[4, -1] = torch.nan, torch.inf
    yield "not finite", (strange.to(dtype),)
    wide = torch.full((6, 2 * h + 3), torch.nan)
    wide[:, 1:-2] = x
    yield "columns of a wider tensor", (wide.to(dtype)[:, 1:-2],)
    yield "transposed", (x.to(dtype).t().contiguous().t(),)
    yield "three axes", (x.to(dtype).view(2, 3, -1),)


def work(shape: Shape) -> Work:
    """Read both halves once, write y once."""
    n = int(shape["tokens"]) * int(shape["h"])
    return Work(5 * n, 3 * n * as_dtype(str(shape["dtype"])).itemsize)


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """The dense layers' and the shared experts' MLP; routed experts fuse it."""
    sizes = {model.dense_inter, model.shared_experts * model.moe_inter} - {0}
    return tuple({"h": h, "dtype": model.act_dtype, "tokens": t} for h in sorted(sizes)
                 for t in load.tokens)


OP = Operator(
    name="silu_mul",
    static=("h", "dtype"),
    dynamic=("tokens",),
    shape_of=shape_of, empty=empty, reference=reference, signature=signature, inputs=inputs,
    cases=cases, work=work,
    shapes=shapes,
    # exp within 1 ulp and five float32 roundings; one unit in the last place in the others
    rtol={"float32": 1e-6, "bfloat16": 2.0**-7, "float16": 2.0**-10},
    odd_shapes=({"tokens": 7, "h": 77, "dtype": "float32"},
                {"tokens": 3, "h": 200, "dtype": "bfloat16"},
                {"tokens": 2, "h": 384, "dtype": "float16"},
                {"tokens": 2, "h": 5, "dtype": "float32"}),
)
