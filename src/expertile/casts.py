"""Public FP8 and int8 casts and SiLU-and-multiply."""

from __future__ import annotations

import torch
from torch import Tensor

from .custom_ops import custom_op

_CAST = ("int group_size, float eps, bool column_major_scales, bool tma_aligned_scales, "
         "bool use_ue8m0) -> (Tensor, Tensor)")
_per_token_group_quant = custom_op("per_token_group_quant_fp8", f"(Tensor x, {_CAST}")
_per_token_group_quant_e5m2 = custom_op("per_token_group_quant_fp8_e5m2", f"(Tensor x, {_CAST}")
_per_token_group_quant_int8 = custom_op(
    "per_token_group_quant_int8", "(Tensor x, int group_size, float eps) -> (Tensor, Tensor)")
_silu_mul_quant = custom_op("silu_mul_quant_fp8", f"(Tensor x, {_CAST}")
_silu_mul_quant_masked = custom_op("silu_mul_quant_fp8_masked",
                                   f"(Tensor x, Tensor masked_m, {_CAST}")
_per_block_quant = custom_op(
    "per_block_quant_fp8",
    "(Tensor w, int block_n, int block_k, bool use_ue8m0) -> (Tensor, Tensor)")
_weight_dequant = custom_op(
    "weight_dequant", "(Tensor q, Tensor s, int block_size, ScalarType dtype) -> Tensor")
_silu_mul = custom_op("silu_mul", "(Tensor x) -> Tensor")


def per_token_group_quant_fp8(
        x: Tensor, group_size: int = 128, eps: float = 1e-10, column_major_scales: bool = False,
        tma_aligned_scales: bool = False, use_ue8m0: bool = False,
        dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """Cast to FP8 with one scale per token and group of columns (DeepSeek-V3 report, 3.3).

    s = max(amax, eps) / 448 and q = e4m3(x / s), in float32 with IEEE division, round to nearest
    even, saturating: bit for bit the same on every target. For e5m2, 57344 stands for 448.

    Args:
        x: [..., K] float32, bfloat16 or float16; K need not be a multiple of group_size.
        group_size: columns per scale.
        eps: the least amax, so that zeros do not divide by zero.
        column_major_scales: store the scales with tokens adjacent.
        tma_aligned_scales: and pad that layout's token stride to 16 bytes.
        use_ue8m0: round every scale up to a power of two.
        dtype: of q: float8_e4m3fn or float8_e5m2, as in vLLM's function of this name.

    Returns:
        q [..., K] in `dtype` and s [..., ceil(K / group_size)] float32; x is about q * s.

    Raises:
        ValueError: group_size < 1.
        TypeError: x is not a float tensor, or dtype is neither of the two.
    """
    if dtype not in (torch.float8_e4m3fn, torch.float8_e5m2):
        raise TypeError(f"dtype must be float8_e4m3fn or float8_e5m2, got {dtype}; codes are those "
                        "of the OCP formats on every device")
    cast = _per_token_group_quant if dtype == torch.float8_e4m3fn else _per_token_group_quant_e5m2
    q, s = cast(x, group_size, eps, column_major_scales, tma_aligned_scales, use_ue8m0)
    return q, s


def per_token_group_quant_int8(x: Tensor, group_size: int | None = 128,
                               eps: float = 1e-10) -> tuple[Tensor, Tensor]:
    """Cast to int8 with one scale per token and group of columns, or per token.

    s = max(amax, eps) / 127 and q = x / s to the nearest integer, ties to even, in float32 with
    IEEE division: bit for bit the same on every target. The scales are those of vLLM's and
    SGLang's functions of this name, and so is the rounding of their per_token_quant_int8; their
    kernels by group cut fractions off instead, which doubles the error. -128 is never made. A
    group with NaN or infinity has that scale and codes 0: all products with it are NaN.

    Args:
        x: [..., K] float32, bfloat16 or float16; K need not be a multiple of group_size. A weight
            [N, K] with group_size None is cast per output channel.
        group_size: columns per scale; None = all of them (per token).
        eps: the least amax, so that zeros do not divide by zero.

    Returns:
        q [..., K] int8 and s [..., ceil(K / group_size)] float32; x is about q * s.

    Raises:
        ValueError: x is not a float tensor, or group_size < 1.
    """
    group = max(x.shape[-1], 1) if group_size is None else group_size
    q, s = _per_token_group_quant_int8(x, group, eps)
    return q, s


def per_block_quant_fp8(w: Tensor, block: tuple[int, int] = (128, 128),
                        use_ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """Cast a weight to e4m3 with one scale per block: the format of DeepSeek's FP8 checkpoints.

    Args:
        w: [N, K] float32, bfloat16 or float16; blocks at the edges may be partial.
        block: rows and columns per scale.
        use_ue8m0: round every scale up to a power of two.

    Returns:
        q [N, K] float8_e4m3fn and s [ceil(N / rows), ceil(K / columns)] float32, which is what a
        checkpoint calls `weight_scale_inv`.
    """
    q, s = _per_block_quant(w, block[0], block[1], use_ue8m0)
    return q, s


def weight_dequant(q: Tensor, s: Tensor, block_size: int = 128,
                   dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of `per_block_quant_fp8` for square blocks: q * s, [N, K] in `dtype`."""
    return _as_tensor(_weight_dequant(q, s, block_size, dtype))


def silu_mul(x: Tensor) -> Tensor:
    """silu(gate) * up of x [..., 2H], the gate being the first half; [..., H] in x's dtype."""
    return _as_tensor(_silu_mul(x))


def silu_mul_quant_fp8(
        x: Tensor, group_size: int = 128, eps: float = 1e-10, column_major_scales: bool = False,
        tma_aligned_scales: bool = False, use_ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """`silu_mul` and `per_token_group_quant_fp8` in one pass, without rounding in between.

    Args as there, with x [M, 2H]. Returns q [M, H] and s [M, ceil(H / group_size)].
    """
    q, s = _silu_mul_quant(x, group_size, eps, column_major_scales, tma_aligned_scales, use_ue8m0)
    return q, s


def silu_mul_quant_fp8_masked(
        x: Tensor, masked_m: Tensor, group_size: int = 128, eps: float = 1e-10,
        column_major_scales: bool = False, tma_aligned_scales: bool = False,
        use_ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """`silu_mul_quant_fp8` of the first masked_m[e] rows of each expert e, between masked GEMMs.

    Args as there, with x [E, Mmax, 2H] and masked_m [E] int32, which stays on its device; counts
    out of range are clamped. Returns q [E, Mmax, H] and s [E, Mmax, ceil(H / group_size)], zero
    past the counts.
    """
    q, s = _silu_mul_quant_masked(x, masked_m, group_size, eps, column_major_scales,
                                  tma_aligned_scales, use_ue8m0)
    return q, s


def _as_tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value
