"""Weights in int8 and bfloat16: the stated error bounds, and the operators that take them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import expertile as et

BLOCKS = [(1, 200), (1, 64), (128, 128), (24, 7)]


def dequantised(q: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """float64 values of codes in blocks."""
    full = scale.double().repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    return q.to(torch.float32).double() * full[..., :q.shape[-2], :q.shape[-1]]


def fp8_weight(ue8m0: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and float64 values: subnormal codes, a block of zeros, outliers."""
    w = torch.randn(150, 200, generator=torch.Generator().manual_seed(0)) * 0.03
    w[:128, :128] *= 1e-3
    w[3, 5], w[140, 150], w[130, 199] = 4.0, -7.0, 1e-7
    w[128:, :128] = 0.0
    q, s = et.per_block_quant_fp8(w, use_ue8m0=ue8m0)
    return q, s, dequantised(q, s, (128, 128))


@pytest.mark.parametrize("ue8m0", [False, True], ids=["float-scale", "ue8m0"])
@pytest.mark.parametrize("block", BLOCKS)
def test_int8_keeps_each_weight_within_half_a_scale(block: tuple[int, int], ue8m0: bool) -> None:
    q, s, w = fp8_weight(ue8m0)
    made = et.convert_fp8_weight(q, s, block_shape=block)
    assert isinstance(made, tuple)
    codes, scale = made
    n, k = block
    assert codes.dtype == torch.int8 and list(scale.shape) == [-(-150 // n), -(-200 // k)]
    full = scale.double().repeat_interleave(n, 0).repeat_interleave(k, 1)[:150, :200]
    error = (dequantised(codes, scale, block) - w).abs() / full
    assert 0.49 < float(error.max()) <= 0.5 * (1 + 2.0**-16)
    # the largest of each block has the largest code, zeros stay zeros
    assert int(codes.abs().max()) == 127 and not codes[128:, :128].any()
    assert torch.equal(scale, et.per_block_quant_int8(w.float(), block)[1])


@pytest.mark.parametrize("ue8m0", [False, True], ids=["float-scale", "ue8m0"])
def test_bf16_rounds_once(ue8m0: bool) -> None:
    """Exact for scales that are powers of two."""
    q, s, w = fp8_weight(ue8m0)
    made = et.convert_fp8_weight(q, s, to="bf16")
    assert isinstance(made, Tensor) and made.dtype == torch.bfloat16
    error = float(((made.double() - w).abs() / w.abs().clamp_min(1e-300)).max())
    assert error == 0.0 if ue8m0 else 2.0**-10 < error <= 2.0**-8


def test_experts_convert_one_by_one() -> None:
    q, s, _ = fp8_weight(False)
    codes, scales = et.convert_fp8_weight(torch.stack((q, q)), torch.stack((s, 2 * s)))
    one = et.convert_fp8_weight(q, s)
    assert torch.equal(codes[0], one[0]) and torch.equal(codes[1], one[0])
    assert torch.equal(scales[1], 2 * one[1])


def test_a_layer_in_int8_is_near_the_one_in_float32() -> None:
    """w8a16 and w8a8, per channel and by groups, through the public functions."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 96, generator=g)
    w = torch.randn(40, 96, generator=g)
    pair = et.per_token_group_quant_int8(w, group_size=None)
    assert all(torch.equal(a, b) for a, b in zip(pair, et.per_block_quant_int8(w, (1, 96)),
                                                 strict=True))
    want = x @ w.T
    for got in (et.gemm_nt(x, pair, block_shape=(1, 96)),
                et.int8_gemm_nt(et.per_token_group_quant_int8(x, None), pair,
                                out_dtype=torch.float32),
                et.gemm_nt(et.per_token_group_quant_int8(x, 32), et.per_block_quant_int8(
                    w, (8, 32)), out_dtype=torch.float32, block_shape=(8, 32))):
        assert 1e-5 < float((got - want).norm() / want.norm()) < 0.02
    w1, w2 = torch.randn(6, 64, 96, generator=g) / 10, torch.randn(6, 96, 32, generator=g) / 6
    weights, ids = et.moe_route(torch.randn(5, 6, generator=g), top_k=2)
    plain = et.fused_moe(x, w1, w2, weights, ids)
    (q1, s1), (q2, s2) = (et.per_block_quant_int8(t, (1, t.shape[-1])) for t in (w1, w2))
    for w8a8 in (False, True):
        got = et.fused_moe(x, q1, q2, weights, ids, s1, s2, use_int8_w8a8=w8a8,
                           per_channel_quant=True)
        assert 1e-5 < float((got - plain).norm() / plain.norm()) < 0.03
