"""Cast to float8_e5m2 with one scale per token and group of columns.

vLLM's per_token_group_quant_fp8 with dtype=torch.float8_e5m2. An operator of its own, so that what
was measured of casts to e4m3 keeps its keys; arguments, axes and lowerings are those of that one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import per_token_group_quant_fp8 as e4m3
from ..e5m2 import group_cast
from ..fp8 import empty_scales, scale_count
from ..fp8_format import E5M2
from ..models import Load, ModelDims
from ..numerics import as_dtype
from ..spec import Args, Operator, Outputs, Shape


def empty(x: Tensor, group_size: int, eps: float, column_major_scales: bool,
          tma_aligned_scales: bool, use_ue8m0: bool) -> Outputs:
    """q like x in e5m2, and the scales [..., ceil(K / group_size)] in float32."""
    q = torch.empty(x.shape, dtype=torch.float8_e5m2, device=x.device)
    groups = scale_count(x.shape[-1], group_size)
    return q, empty_scales(x, groups, column_major_scales, tma_aligned_scales)


def reference(x: Tensor, group_size: int, eps: float, column_major_scales: bool,
              tma_aligned_scales: bool, use_ue8m0: bool, *, out: Outputs) -> None:
    """s = max(amax, eps) / 57344; q = e5m2(x / s), in float32 with IEEE division."""
    k, groups = x.shape[-1], scale_count(x.shape[-1], group_size)
    padded = torch.nn.functional.pad(x.float(), (0, groups * group_size - k))
    values, scale = group_cast(padded.unflatten(-1, (groups, group_size)), eps, use_ue8m0)
    out[0].copy_(values.flatten(-2)[..., :k])
    out[1].copy_(scale[..., 0])


def midpoints() -> Tensor:
    """What lies half way between neighbours: 123 positive numbers, from 2^-17 to 53248."""
    values = torch.arange(0x7C).to(torch.uint8).view(torch.float8_e5m2).float()
    return (values[:-1] + values[1:]) / 2


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """Those of the cast to e4m3, with this format's ties and range; scales that underflow to 0."""
    dtype, k, group = as_dtype(str(shape["dtype"])), int(shape["k"]), int(shape["group_size"])
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(9, k, generator=g)
    middle = midpoints()[torch.arange(9 * k).remainder(123)].view(9, k) * x.sign()
    for toward, name in ((0.0, "below ties"), (None, "ties"), (torch.inf, "above ties")):
        ties = middle if toward is None else torch.nextafter(
            middle.abs(), torch.tensor(toward)) * x.sign()
        ties = ties.clone()
        ties[:, ::group] = E5M2.most
        yield name, _call(ties.to(dtype), shape, 1e-10)
    powers = x.sign() * E5M2.most * torch.exp2(torch.arange(-8.0, 1.0))[:, None]
    powers[:, 1::2] *= 0.99
    yield "amax at powers of two", _call(powers.to(dtype), shape, 1e-10)
    yield "scale 0", _call((x * 1e-42).to(dtype), shape, 1e-45)
    for name, args in e4m3.cases(shape, seed):
        if name not in ("ties", "amax at powers of two"):
            yield name, args


def _call(x: Tensor, shape: Shape, eps: float) -> Args:
    return x, int(shape["group_size"]), eps, False, False, bool(shape["ue8m0"])


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """The inputs of the expert GEMMs of a model in e5m2; other models cast nothing to it."""
    return e4m3.shapes(model, load) if model.weight_dtype == "float8_e5m2" else ()


OP = Operator(
    name="per_token_group_quant_fp8_e5m2",
    static=e4m3.OP.static,
    dynamic=e4m3.OP.dynamic,
    shape_of=e4m3.shape_of, empty=empty, reference=reference, signature=e4m3.signature,
    inputs=e4m3.inputs, cases=cases, work=e4m3.work,
    shapes=shapes,
    rtol={"float8_e5m2": 0.0, "float32": 0.0},
    odd_shapes=e4m3.OP.odd_shapes,
)
