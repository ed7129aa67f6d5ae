"""SwiGLU's activation cast to FP8 for the first masked_m[e] rows of each expert e.

What stands between the two masked grouped GEMMs of a decode step (DeepGEMM's layout, SGLang's
`silu_and_mul_masked_post_quant`); the arithmetic and its tolerances are those of
`silu_mul_quant_fp8`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..fp8 import check_cast, empty_scales, scale_count
from ..models import Load, ModelDims
from ..numerics import as_dtype, blank, dtype_name, poison
from ..silu_mul_quant_fp8 import OP as UNMASKED
from ..spec import Args, Operator, Outputs, Shape, Work


def shape_of(x: Tensor, masked_m: Tensor, group_size: int, eps: float, column_major_scales: bool,
             tma_aligned_scales: bool, use_ue8m0: bool) -> Shape:
    """Axes of a call."""
    if x.ndim != 3 or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError("x must be a float32, bfloat16 or float16 tensor [E, Mmax, 2 * H], "
                        f"got {x.dtype}{list(x.shape)}")
    if x.shape[2] % 2:
        raise ValueError("x holds gate and up side by side: the last axis must be even, got "
                         f"{list(x.shape)}")
    if masked_m.dtype != torch.int32 or masked_m.shape != x.shape[:1]:
        raise ValueError(f"masked_m must be int32[{x.shape[0]}], the rows of each expert, got "
                         f"{masked_m.dtype}{list(masked_m.shape)}")
    check_cast(group_size, eps)
    return {"h": x.shape[2] // 2, "group_size": group_size, "dtype": dtype_name(x.dtype),
            "ue8m0": use_ue8m0, "e": x.shape[0], "m_max": x.shape[1]}


def empty(x: Tensor, masked_m: Tensor, group_size: int, eps: float, column_major_scales: bool,
          tma_aligned_scales: bool, use_ue8m0: bool) -> Outputs:
    """q [E, Mmax, H] in e4m3fn and the scales [E, Mmax, ceil(H / group_size)] in float32.

    Zero in rows past masked_m so that the functional form is defined.
    """
    h = x.shape[2] // 2
    q = torch.zeros((*x.shape[:2], h), dtype=torch.float8_e4m3fn, device=x.device)
    s = empty_scales(x, scale_count(h, group_size), column_major_scales, tma_aligned_scales)
    return q, s.zero_()


def reference(x: Tensor, masked_m: Tensor, group_size: int, eps: float, column_major_scales: bool,
              tma_aligned_scales: bool, use_ue8m0: bool, *, out: Outputs) -> None:
    """Expert by expert, as `silu_mul_quant_fp8`."""
    for e, rows in enumerate(masked_m.clamp(0, x.shape[1]).tolist()):
        UNMASKED.reference(x[e, :rows], group_size, eps, column_major_scales, tma_aligned_scales,
                           use_ue8m0, out=(out[0][e, :rows], out[1][e, :rows]))


def _call(x: Tensor, counts: Tensor, shape: Shape, eps: float = 1e-10, column_major: bool = False,
          aligned: bool = False) -> Args:
    """Rows past the counts are poisoned."""
    for e, rows in enumerate(counts.clamp(0, x.shape[1]).tolist()):
        poison(x[e, rows:])
    return (x, counts.to(torch.int32), int(shape["group_size"]), eps, column_major, aligned,
            bool(shape["ue8m0"]))


def signature(shape: Shape) -> Args:
    """A call without data."""
    e, m, h = int(shape["e"]), int(shape["m_max"]), int(shape["h"])
    return (blank(str(shape["dtype"]), e, m, 2 * h), blank("int32", e), int(shape["group_size"]),
            1e-10, False, False, bool(shape["ue8m0"]))


def _expected(shape: Shape) -> int:
    """Rows of an expert: the masked layout of this package has room for four times as many."""
    return -(-int(shape["m_max"]) // 4)


def inputs(shape: Shape, seed: int) -> Args:
    """The first grouped GEMM's result, with outlier columns; none to twice the expected rows."""
    g = torch.Generator().manual_seed(seed)
    e, m, h = int(shape["e"]), int(shape["m_max"]), int(shape["h"])
    x = torch.randn(e, m, 2 * h, generator=g)
    x[..., ::61] *= 8.0
    counts = torch.randint(2 * _expected(shape) + 1, (e,), generator=g)
    return _call(x.to(as_dtype(str(shape["dtype"]))), counts.clamp(max=m), shape)


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """Every row count, none, all, counts out of range, no room; strided experts; scale layouts."""
    dtype, h, experts = as_dtype(str(shape["dtype"])), int(shape["h"]), int(shape["e"])
    g = torch.Generator().manual_seed(seed)

    def rows(m: int, factor: float = 1.0) -> Tensor:
        x = torch.randn(experts, m, 2 * h, generator=g)
        x[..., :h] *= factor
        return x.to(dtype)

    def counts(*some: int) -> Tensor:
        return torch.tensor(some).repeat(-(-experts // len(some)))[:experts]

    yield "typical", inputs({**shape, "m_max": 9}, seed)
    yield "no row", _call(rows(4), counts(0), shape)
    yield "no room", _call(rows(0), counts(0), shape)
    yield "all rows", _call(rows(5), counts(5), shape)
    yield "odd counts", _call(rows(13), counts(13, 5, 7, 1), shape)
    yield "counts out of range", _call(rows(4), counts(-3, 2_000_000_000, 4, 1), shape)
    yield "tails", _call(rows(3, 20.0), counts(2, 3), shape)
    wide = torch.full((experts, 7, 2 * h + 3), torch.nan, dtype=dtype)
    wide[:, 1:-2, 1:-2] = rows(4)
    yield "part of a wider tensor", _call(wide[:, 1:-2, 1:-2], counts(4, 0, 2), shape)
    yield "transposed", _call(rows(4).transpose(1, 2).contiguous().transpose(1, 2),
                              counts(3, 0, 4), shape)
    yield "column-major scales", _call(rows(5), counts(5, 2), shape, column_major=True)
    yield "TMA-aligned scales", _call(rows(5), counts(1, 4), shape, 1e-10, True, True)


def work(shape: Shape) -> Work:
    """Both halves of the expected rows once, q and the scales once."""
    rows = int(shape["e"]) * _expected(shape)
    return UNMASKED.work({**shape, "tokens": rows})


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """The second masked GEMM's input, with the room that `m_grouped_gemm_nt_masked` is given."""
    rows = dict.fromkeys(max(t * model.top_k // model.experts, 1) for t in load.tokens)
    return tuple({"h": model.moe_inter, "group_size": model.block, "dtype": model.act_dtype,
                  "ue8m0": False, "e": model.experts, "m_max": 4 * m} for m in rows)


def _odd(e: int, m_max: int, h: int, group_size: int, dtype: str, ue8m0: bool) -> Shape:
    return {"h": h, "group_size": group_size, "dtype": dtype, "ue8m0": ue8m0, "e": e,
            "m_max": m_max}


OP = Operator(
    name="silu_mul_quant_fp8_masked",
    static=("h", "group_size", "dtype", "ue8m0"),
    dynamic=("e", "m_max"),
    shape_of=shape_of, empty=empty, reference=reference, signature=signature, inputs=inputs,
    cases=cases, work=work,
    shapes=shapes,
    rtol=UNMASKED.rtol,
    odd_shapes=(_odd(5, 7, 200, 128, "bfloat16", False), _odd(3, 5, 77, 64, "float32", True),
                _odd(4, 3, 256, 128, "float16", False)),
)
