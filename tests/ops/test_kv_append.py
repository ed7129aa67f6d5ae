"""Cache append on the CPU: bit for bit the reference, and the reference is what models compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from expertile import ops
from expertile.ops.mla_kv_append import rotate
from expertile.ops.numerics import poison
from expertile.ops.spec import Shape
from expertile.targets.base import Target
from tests.conformance import check_config
from tests.ops.test_casts import kernel, spread

OP = ops.load("mla_kv_append")
EXACT = replace(OP, rtol={})         # the CPU has float64: no tolerance is needed


@pytest.mark.parametrize("shape", OP.odd_shapes, ids=lambda s: str(dict(s)))
def test_configs_match_bit_for_bit(cpu: Target, shape: Shape) -> None:
    """Default and two more; the FP8 layout takes six."""
    space = ops.lowering(OP.name, "tvm").space(cpu, shape)
    for config in spread(space, 6 if shape == OP.odd_shapes[2] else 3):
        check_config(EXACT, cpu, shape, config)


def _append(target: Target, shape: Shape, args: tuple[Any, ...]) -> Tensor:
    """The cache after one call of the default kernel, one token per row."""
    cache: Tensor = args[4].clone()
    kernel(OP, target, shape)(*args[:4], cache, *args[5:], out=())
    return cache.view(-1, cache.shape[-1])


def test_many_tokens(cpu: Target) -> None:
    """More tokens than one thread takes, at the size of the released models."""
    shape = {**OP.odd_shapes[1], "tokens": 300}
    args = OP.inputs(shape, 0)
    want = args[4].clone()
    OP.reference(*args[:4], want, *args[5:], out=())
    got = _append(cpu, shape, args)
    assert torch.equal(got.view(torch.int16), want.view(got.shape).view(torch.int16))


@pytest.mark.parametrize("shape", OP.odd_shapes[:3], ids=lambda s: str(dict(s)))
def test_only_the_named_slots_are_written(cpu: Target, shape: Shape) -> None:
    """Every other byte of the cache keeps what it held."""
    args = list(OP.inputs({**shape, "tokens": 20}, 1))
    args[5][3] = -1
    if args[4].dtype != torch.uint8:
        poison(args[4])
    before = args[4].view(-1, args[4].shape[-1]).clone().view(torch.uint8)
    after = _append(cpu, shape, tuple(args)).view(torch.uint8)
    changed = (before != after).any(-1).nonzero().flatten()
    kept = args[5][args[5] >= 0].sort().values
    assert torch.equal(changed, kept)


def test_fp8_layout_is_flash_mla(cpu: Target) -> None:
    """656 bytes at 512 + 64: e4m3 bytes, four float32 scales, the key in bfloat16."""
    shape = {"kv_lora": 512, "rope": 64, "dtype": "bfloat16", "cache": "uint8", "tokens": 6}
    args = OP.inputs(shape, 2)
    kv_a, weight, table, positions, _, slots, eps = args
    rows = _append(cpu, shape, args)[slots]
    assert rows.shape[1] == 656
    q = rows[:, :512].contiguous().view(torch.float8_e4m3fn).float()
    scales = rows[:, 512:528].contiguous().view(torch.float32)
    key = rows[:, 528:].contiguous().view(torch.bfloat16).float()
    x = kv_a[:, :512].double()
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.double()
    groups = y.view(6, 4, 128)
    torch.testing.assert_close(scales.double(), groups.abs().amax(-1) / 448, rtol=1e-6, atol=0.0)
    back = q.view(6, 4, 128).double() * scales[..., None].double()
    bound = torch.maximum(groups.abs() * 2.0**-4, scales[..., None] * 2.0**-10) * (1 + 1e-5)
    assert bool(((back - groups).abs() <= bound).all())
    want = rotate(kv_a[:, 512:], table[positions])
    torch.testing.assert_close(key, want, rtol=2.0**-8, atol=0.0)


def test_norm_and_rotation_are_transformers(cpu: Target) -> None:
    """deepseek_v3's RMSNorm, and its interleaved RoPE: same pairs, ours left in place."""
    pytest.importorskip("transformers")
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

    shape = {"kv_lora": 512, "rope": 64, "dtype": "float32", "cache": "float32", "tokens": 9}
    args = OP.inputs(shape, 3)
    kv_a, weight, table, positions, _, slots, eps = args
    rows = _append(cpu, shape, args)[slots]
    norm = v3.DeepseekV3RMSNorm(512, eps)
    cos, sin = (t.repeat(1, 2)[None] for t in table[positions].chunk(2, -1))
    key = kv_a[None, None, :, 512:]
    with torch.no_grad():
        norm.weight.copy_(weight)
        torch.testing.assert_close(rows[:, :512], norm(kv_a[:, :512]), rtol=2e-6, atol=1e-7)
        rotated = v3.apply_rotary_pos_emb_interleave(key, key, cos, sin)[1][0, 0]
    in_place = torch.stack(rotated.chunk(2, -1), -1).flatten(1)
    torch.testing.assert_close(rows[:, 512:], in_place, rtol=0.0, atol=2e-6)


def test_attention_sees_only_distances() -> None:
    """The dot product of two rotated vectors depends on the difference of their positions."""
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 64, generator=g)
    angle = torch.arange(50.0)[:, None] * torch.exp(-torch.arange(32.0) / 4)
    table = torch.cat((angle.cos(), angle.sin()), -1)

    def dot(i: int, j: int) -> float:
        return float((rotate(q, table[i:i + 1]) * rotate(k, table[j:j + 1])).sum())

    assert dot(20, 7) == pytest.approx(dot(45, 32), abs=1e-4)
    assert abs(dot(20, 7) - dot(20, 9)) > 1e-2


def _one_off(t: Tensor) -> Tensor:
    """The same values one element off whatever boundary the allocator chose."""
    return torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape).copy_(t)


def test_misaligned_tensors(cpu: Target) -> None:
    """With TVM's default of 64 bytes this is a SIGSEGV."""
    shape = OP.odd_shapes[1]
    args = OP.inputs(shape, 4)
    cache = _one_off(args[4])
    moved = [_one_off(a) if isinstance(a, Tensor) else a for a in args]
    kernel(OP, cpu, shape)(*moved[:4], cache, *moved[5:], out=())
    assert torch.equal(cache.view(-1, cache.shape[-1]), _append(cpu, shape, args))


@pytest.mark.parametrize(("position", "value", "rule"), [
    (0, torch.zeros(5, 161), "rope even"),
    (0, torch.zeros(5, 160, dtype=torch.int32), "kv_a must be"),
    (2, torch.zeros(97, 30), r"cos_sin must be float32 \[positions, 32\]"),
    (2, torch.zeros(0, 32), "at least one position"),
    (3, torch.zeros(4, dtype=torch.int64), "positions must be"),
    (5, torch.zeros(5, dtype=torch.int32), "slot_mapping must be int64"),
    (4, torch.zeros(2, 16, 1, 161), r"\[pages, page, 1, 160\]"),
    (4, torch.zeros(2, 16, 1, 320)[..., ::2], "contiguous"),
    (4, torch.zeros(2, 16, 1, 160, dtype=torch.uint8), r"\[pages, page, 1, 196\]"),
], ids=str)
def test_wrong_calls_state_the_rule(position: int, value: Tensor, rule: str) -> None:
    """ValueError or TypeError with the rule and the values."""
    args = list(OP.inputs(OP.odd_shapes[0], 0))
    args[position] = value
    with pytest.raises((ValueError, TypeError), match=rule):
        OP.shape_of(*args)
