"""Public GEMMs: dense and grouped by expert, on plain tensors or (q, scale) pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import ops
from .custom_ops import check_out, custom_op, custom_op_out

Operand = Tensor | tuple[Tensor, Tensor]     # plain, or (q, scale)

_AB = "Tensor a, Tensor? a_scale, Tensor b, Tensor? b_scale"
_TAIL = "int block_n, int block_k, ScalarType out_dtype"


def _both(name: str, middle: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    args = f"{_AB}{middle}, {_TAIL}"
    return (custom_op(name, f"({args}) -> Tensor"),
            custom_op_out(name, f"({args}, Tensor(a!) out) -> ()"))


_gemm = _both("gemm_nt", "")
_contiguous = _both("m_grouped_gemm_nt_contiguous", ", Tensor m_indices")
_masked = _both("m_grouped_gemm_nt_masked", ", Tensor masked_m, int? expected_m")


def gemm_nt(a: Operand, b: Operand, out: Tensor | None = None,
            out_dtype: torch.dtype | None = None,
            block_shape: tuple[int, int] = (128, 128)) -> Tensor:
    """a @ b.T for plain or block-scaled FP8 or int8 operands, accumulated in float32.

    int8 is symmetric: a value is code * scale. Two int8 operands are accumulated in int32, without
    error, as far as one scale reaches. A sum beyond 65504 is infinite in a float16 result, as
    torch's cast has it; float32 and bfloat16 results have the range of the sum.

    Args:
        a: [M, K] float32, bfloat16 or float16, or (q [M, K] e4m3 or int8, scale [M, ceil(K /
            block_k)] float32).
        b: [N, K] float32, bfloat16 or float16 (not bfloat16 beside float16), or (q [N, K] e4m3 or
            int8, scale [ceil(N / block_n), ceil(K / block_k)] float32). A plain `a` with a
            quantised `b` is weight-only quantisation (w8a16).
        out: where to write; contiguous [M, N] of out_dtype.
        out_dtype: float32, bfloat16 or float16; by default a's dtype, bfloat16 for quantised a.
        block_shape: rows of b and columns per scale: (128, 128) is DeepSeek's, (1, K) one scale
            for each output channel and for each token, (1, 128) one for each group of columns.

    Returns:
        [M, N] in out_dtype (`out` itself when given).

    Raises:
        ValueError, TypeError: shapes or dtypes do not fit together; the message says which.
    """
    return _call("gemm_nt", _gemm, a, b, (), out, out_dtype, block_shape)


def fp8_gemm_nt(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], out: Tensor | None = None,
                out_dtype: torch.dtype = torch.bfloat16,
                block_shape: tuple[int, int] = (128, 128)) -> Tensor:
    """`gemm_nt` of two FP8 pairs, with DeepGEMM's name and defaults."""
    _need_pairs("fp8_gemm_nt", torch.float8_e4m3fn, a, b)
    return gemm_nt(a, b, out, out_dtype, block_shape)


def int8_gemm_nt(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], out: Tensor | None = None,
                 out_dtype: torch.dtype = torch.bfloat16,
                 block_shape: tuple[int, int] | None = None) -> Tensor:
    """`gemm_nt` of two int8 pairs (w8a8); by default with one scale per token and channel."""
    _need_pairs("int8_gemm_nt", torch.int8, a, b)
    return gemm_nt(a, b, out, out_dtype, block_shape or (1, max(b[0].shape[-1], 1)))


def _need_pairs(name: str, codes: torch.dtype, *operands: Operand) -> None:
    for which, operand in zip("ab", operands, strict=True):
        if isinstance(operand, Tensor):
            raise TypeError(f"{name} needs {which} as a pair (q, scale), got a plain "
                            f"{operand.dtype} tensor; gemm_nt takes plain tensors")
        if operand[0].dtype != codes:
            raise TypeError(f"{name} needs {which} in {codes}, got {operand[0].dtype}; gemm_nt "
                            "takes all kinds")


def m_grouped_gemm_nt_contiguous(
        a: Operand, b: Operand, m_indices: Tensor, out: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
        block_shape: tuple[int, int] = (128, 128)) -> Tensor:
    """Each row of `a` times its expert's weight; rows of one expert stand together.

    Args:
        a: [M, K] plain or a pair, as in `gemm_nt`.
        b: [E, N, K] plain or a pair with scales [E, ceil(N / block_n), ceil(K / block_k)].
        m_indices: [M] int32, the expert of each row, in runs of any length; -1 skips a row, whose
            output is left alone (zero when `out` is absent).
        out, out_dtype, block_shape: as in `gemm_nt`.

    Returns:
        [M, N].
    """
    return _call("m_grouped_gemm_nt_contiguous", _contiguous, a, b, (m_indices,), out, out_dtype,
                 block_shape)


def m_grouped_gemm_nt_masked(
        a: Operand, b: Operand, masked_m: Tensor, expected_m: int | None = None,
        out: Tensor | None = None, out_dtype: torch.dtype | None = None,
        block_shape: tuple[int, int] = (128, 128)) -> Tensor:
    """For each expert e: the first masked_m[e] rows of a[e] times b[e].T.

    Args:
        a: [E, Mmax, K] plain or a pair with scales [E, Mmax, ceil(K / block_k)].
        b: [E, N, K] plain or a pair, as in `m_grouped_gemm_nt_contiguous`.
        masked_m: [E] int32; rows past it are neither read nor written (zero when `out` is absent).
        expected_m: the rows per expert to expect, a hint for the choice of config.
        out, out_dtype, block_shape: as in `gemm_nt`.

    Returns:
        [E, Mmax, N].
    """
    return _call("m_grouped_gemm_nt_masked", _masked, a, b, (masked_m, expected_m), out,
                 out_dtype, block_shape)


def _call(name: str, both: tuple[Callable[..., Any], Callable[..., Any]], a: Operand, b: Operand,
          middle: tuple[Any, ...], out: Tensor | None, out_dtype: torch.dtype | None,
          block_shape: tuple[int, int]) -> Tensor:
    a, a_scale = _split(a, "a")
    b, b_scale = _split(b, "b")
    if out_dtype is None:
        out_dtype = out.dtype if out is not None else (
            a.dtype if a_scale is None else torch.bfloat16)
    args = (a, a_scale, b, b_scale, *middle, *block_shape, out_dtype)
    functional, into = both
    if out is None:
        made: Tensor = functional(*args)
        return made
    check_out(ops.load(name), args, out)
    into(*args, out)
    return out


def _split(operand: Operand, name: str) -> tuple[Tensor, Tensor | None]:
    if isinstance(operand, Tensor):
        if operand.dtype in (torch.float8_e4m3fn, torch.int8):
            raise TypeError(f"{name} is {operand.dtype} without scales; pass the pair (q, scale)")
        return operand, None
    if not (isinstance(operand, tuple | list) and len(operand) == 2):
        raise TypeError(f"{name} must be a tensor or a pair (q, scale), got "
                        f"{type(operand).__name__}")
    return operand[0], operand[1]
