"""Cast a weight to FP8 with one scale per block of rows and columns (DeepSeek-V3, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..fp8 import AMAX_FLOOR, E4M3_MAX, check_cast, group_cast, scale_count
from ..models import Load, ModelDims
from ..numerics import as_dtype, blank, dtype_name
from ..spec import Args, Operator, Outputs, Shape, Work


def shape_of(w: Tensor, block_n: int, block_k: int, use_ue8m0: bool) -> Shape:
    """Axes of a call."""
    if w.ndim != 2 or w.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError("w must be a float32, bfloat16 or float16 tensor [N, K], "
                        f"got {w.dtype}{list(w.shape)}; cast one expert at a time")
    check_cast(min(block_n, block_k), AMAX_FLOOR)
    return {"k": w.shape[1], "block_n": block_n, "block_k": block_k, "dtype": dtype_name(w.dtype),
            "ue8m0": use_ue8m0, "n": w.shape[0]}


def empty(w: Tensor, block_n: int, block_k: int, use_ue8m0: bool) -> Outputs:
    """q [N, K] in e4m3fn and the scales [ceil(N / block_n), ceil(K / block_k)] in float32."""
    n, k = w.shape
    s = torch.empty((scale_count(n, block_n), scale_count(k, block_k)), dtype=torch.float32,
                    device=w.device)
    return torch.empty(w.shape, dtype=torch.float8_e4m3fn, device=w.device), s


def reference(w: Tensor, block_n: int, block_k: int, use_ue8m0: bool, *, out: Outputs) -> None:
    """As the per-token-group cast, with amax over the block and eps 1e-10."""
    q, s = out
    n, k = w.shape
    pad = (0, s.shape[1] * block_k - k, 0, s.shape[0] * block_n - n)
    blocks = torch.nn.functional.pad(w.float(), pad)
    blocks = blocks.view(s.shape[0], block_n, s.shape[1], block_k)
    values, scale = group_cast(blocks, AMAX_FLOOR, use_ue8m0, (1, 3))
    q.copy_(values.flatten(2).flatten(0, 1)[:n, :k])
    s.copy_(scale[:, 0, :, 0])


def _call(w: Tensor, shape: Shape) -> Args:
    return w, int(shape["block_n"]), int(shape["block_k"]), bool(shape["ue8m0"])


def signature(shape: Shape) -> Args:
    """A call without data."""
    return _call(blank(str(shape["dtype"]), int(shape["n"]), int(shape["k"])), shape)


def inputs(shape: Shape, seed: int) -> Args:
    """A weight as training leaves it: normal, with rows of different size."""
    g = torch.Generator().manual_seed(seed)
    n, k = int(shape["n"]), int(shape["k"])
    w = torch.randn(n, k, generator=g) * 0.02 * (0.5 + torch.rand(n, 1, generator=g))
    return _call(w.to(as_dtype(str(shape["dtype"]))), shape)


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """Zeros, huge, subnormal, not finite, ties, other row counts, strided weights."""
    dtype, n, k = as_dtype(str(shape["dtype"])), int(shape["n"]), int(shape["k"])
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(n, k, generator=g)
    yield "typical", inputs(shape, seed)
    for rows in (0, 1, int(shape["block_n"]), int(shape["block_n"]) + 1):
        yield f"{rows} rows", inputs({**shape, "n": rows}, seed)
    yield "zeros", _call(torch.zeros(n, k, dtype=dtype), shape)
    yield "huge", _call((w * 1e30).to(dtype), shape)
    yield "subnormal", _call((w * 1e-39).to(dtype), shape)
    strange = w.clone()
    strange[0, 0], strange[-1, -1] = torch.nan, torch.inf
    yield "not finite", _call(strange.to(dtype), shape)
    ties = torch.arange(n * k).remainder(481).sub(240).float().div(16).view(n, k)
    ties[::int(shape["block_n"]), ::int(shape["block_k"])] = E4M3_MAX
    yield "ties", _call(ties.to(dtype), shape)
    wide = torch.full((n, k + 3), torch.nan)
    wide[:, 1:-2] = w
    yield "columns of a wider tensor", _call(wide.to(dtype)[:, 1:-2], shape)
    yield "transposed", _call(w.to(dtype).t().contiguous().t(), shape)


def work(shape: Shape) -> Work:
    """Read w once, write q and the scales once."""
    n, k = int(shape["n"]), int(shape["k"])
    scales = scale_count(n, int(shape["block_n"])) * scale_count(k, int(shape["block_k"]))
    return Work(3 * n * k, n * k * (as_dtype(str(shape["dtype"])).itemsize + 1) + 4 * scales)


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """The two weights of one expert."""
    return tuple({"k": k, "block_n": model.block, "block_k": model.block,
                  "dtype": model.act_dtype, "ue8m0": False, "n": n}
                 for n, k in ((2 * model.moe_inter, model.hidden), (model.hidden, model.moe_inter)))


def _odd(n: int, k: int, block_n: int, block_k: int, dtype: str, ue8m0: bool) -> Shape:
    return {"n": n, "k": k, "block_n": block_n, "block_k": block_k, "dtype": dtype, "ue8m0": ue8m0}


OP = Operator(
    name="per_block_quant_fp8",
    static=("k", "block_n", "block_k", "dtype", "ue8m0"),
    dynamic=("n",),
    shape_of=shape_of, empty=empty, reference=reference, signature=signature, inputs=inputs,
    cases=cases, work=work,
    shapes=shapes,
    rtol={"float8_e4m3fn": 0.0, "float32": 0.0},
    odd_shapes=(_odd(130, 200, 128, 128, "bfloat16", False),
                _odd(70, 384, 64, 128, "float32", True), _odd(9, 77, 4, 64, "float16", False)),
)
