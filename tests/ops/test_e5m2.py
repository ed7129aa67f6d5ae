"""Casts to float8_e5m2 on the CPU: configs against the reference, every bit pattern, ties."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import expertile as et
from expertile import ops, targets
from expertile.ops import fp8_format, source
from expertile.ops.models import TINY_LOAD, preset
from expertile.ops.spec import Shape
from expertile.targets.base import Target
from expertile.targets.cpu.levels import LEVELS

from ..conformance import check_config
from .test_casts import all_bfloat16, run, same, spread, want

OP = ops.load("per_token_group_quant_fp8_e5m2")
E4M3 = ops.load("per_token_group_quant_fp8")
E5M2 = torch.float8_e5m2
MOST = 57344.0
HERE = [name for name in ("x86-avx2", "x86") if LEVELS[name].runs_here()]


@pytest.fixture(params=["host", *HERE])
def level(request: pytest.FixtureRequest, cpu: Target, tmp_path_factory: pytest.TempPathFactory
          ) -> Target:
    """The CPU at its own level, and held to lower ones."""
    if request.param == "host":
        return cpu
    return targets.load("cpu", unit=f"{request.param}:1",
                        cache_dir=tmp_path_factory.getbasetemp() / "kernels")


def decoded() -> Tensor:
    """The 256 codes by the format's definition: 5 exponent bits, bias 15, infinities, NaNs."""
    code = torch.arange(256)
    e, m = (code >> 2) & 31, (code & 3).double()
    value = torch.where(e == 0, m / 4 * 2.0**-14, (1 + m / 4) * torch.exp2(e.double() - 15))
    value[e == 31] = torch.where(m[e == 31] == 0, torch.inf, torch.nan).double()
    return torch.where(code >= 128, -value, value).float()


def beside_most(x: Tensor) -> Tensor:
    """Values as rows of groups of 128 whose scale is 1: the first of each is the largest number."""
    rows = torch.full((-(-len(x) // 127), 128), MOST, dtype=x.dtype)
    rows[:, 1:] = torch.nn.functional.pad(x, (0, rows[:, 1:].numel() - len(x))).view(-1, 127)
    return rows


def codes_of(target: Target, x: Tensor) -> Tensor:
    """The codes of values up to 57344 by a kernel, with the scale 1."""
    q, s = run(OP, target, beside_most(x), 128, 1e-10, False, False, False)
    assert bool((s == 1.0).all())
    return q[:, 1:].flatten()[:len(x)]


@pytest.mark.parametrize("shape", OP.odd_shapes, ids=lambda s: str(dict(s)))
def test_adversarial_cases(cpu: Target, shape: Shape) -> None:
    """The default, and another config of the shape whose vectors are not of full width."""
    space = ops.lowering(OP.name, "tvm").space(cpu, shape)
    for config in spread(space, 2 if int(shape["group_size"]) < 64 else 1):
        check_config(OP, cpu, shape, config)


def check_all_bfloat16(target: Target, use_ue8m0: bool) -> None:
    """2^16 inputs in four arrangements, infinities and NaNs among them."""
    for eps in (1e-10, 1e-45):
        for i, x in enumerate(all_bfloat16()):
            args = (x, 128, eps, False, False, use_ue8m0)
            for name, got, expected in zip("qs", run(OP, target, *args), want(OP, *args),
                                           strict=True):
                assert same(got, expected), f"{name} of arrangement {i}, {eps=}"


def test_all_bfloat16_values_cast_bit_for_bit(level: Target) -> None:
    check_all_bfloat16(level, False)


def test_all_bfloat16_values_cast_bit_for_bit_with_powers_of_two(cpu: Target) -> None:
    check_all_bfloat16(cpu, True)


def check_every(target: Target, dtype: torch.dtype) -> None:
    """Every value up to 57344 of a two-byte dtype, with the scale 1."""
    x = torch.arange(1 << 16).to(torch.int16).view(dtype)
    x = x[x.abs() <= MOST]
    assert len(x) > 36000
    expected = x.to(E5M2).view(torch.uint8)
    assert torch.equal(codes_of(target, x).view(torch.uint8), expected)
    assert torch.equal(codes_of(target, x.float()).view(torch.uint8), expected)


def test_codes_are_those_of_torchs_cast(level: Target) -> None:
    check_every(level, torch.bfloat16)


def test_codes_of_float16_are_those_of_torchs_cast(cpu: Target) -> None:
    check_every(cpu, torch.float16)


def test_all_codes_decode_exactly_and_encode_to_themselves(level: Target) -> None:
    """By the format's definition; what is not finite is no code of this cast."""
    every = torch.arange(256).to(torch.uint8).view(E5M2)
    assert same(every.float(), decoded())
    finite = every[decoded().isfinite()]
    assert len(finite) == 248
    assert torch.equal(codes_of(level, finite.float()).view(torch.uint8), finite.view(torch.uint8))


def test_encoding_is_nearest_even_and_rounds_once(level: Target) -> None:
    """Against a table: each midpoint and one ulp on both sides, which float16 would not see."""
    values = decoded()[:0x7C]
    middle = (values[:-1] + values[1:]) / 2
    low, high = (torch.nextafter(middle, torch.tensor(v)) for v in (0.0, 1e9))
    even = torch.where(torch.arange(0x7B) % 2 == 0, values[:-1], values[1:])
    x = torch.cat((values, middle, low, high))
    expected = torch.cat((values, even, values[:-1], values[1:]))
    x, expected = torch.cat((x, -x)), torch.cat((expected, -expected))
    assert torch.equal(codes_of(level, x).float(), expected)
    twice = x.half().to(E5M2).float()
    assert int((twice != expected).sum()) > 100


@pytest.mark.parametrize("binade", [60, 127, 190])
def test_quotients_of_all_significands(level: Target, binade: int) -> None:
    """128 largest values by 128 values in 35 binades below: what bfloat16 quotients depend on."""
    top = binade << 7 | torch.arange(128)
    below = ((binade - torch.arange(35))[:, None] << 7 | torch.arange(128)).view(1, -1, 64)
    x = torch.zeros(128, below.shape[1], 128, dtype=torch.int64)
    x[..., 0], x[..., 1:65] = top[:, None], torch.minimum(below, top[:, None, None])
    args = (x.to(torch.int16).view(torch.bfloat16).view(-1, 128), 128, 1e-30, False, False, False)
    args[0][1::2].neg_()
    for got, expected in zip(run(OP, level, *args), want(OP, *args), strict=True):
        assert same(got, expected)


@pytest.mark.parametrize("size", [1.0, 2.0**-79, 2.0**-95, 2.0**100])
def test_float32_next_to_ties(level: Target, size: float) -> None:
    """Products of a scale and a midpoint, and two units in the last place around.

    Also where the scales are as small as the fast way takes them, smaller, and larger.
    """
    g = torch.Generator().manual_seed(1)
    x = (1 + torch.rand(512, 128, generator=g)) * MOST * size
    odd = torch.randint(4, 8, (512, 127), generator=g) * 2 + 1
    middle = odd * torch.exp2(torch.randint(-20, 12, odd.shape, generator=g).float())
    near = middle * (x[:, :1] / torch.tensor(MOST))
    near = (near.view(torch.int32) + torch.randint(-2, 3, near.shape, generator=g)).to(torch.int32)
    x[:, 1:] = torch.minimum(near.view(torch.float32), x[:, :1])
    x[::2, 1:] *= -1.0
    args = (x, 128, 1e-38, False, False, False)
    for got, expected in zip(run(OP, level, *args), want(OP, *args), strict=True):
        assert same(got, expected)


def test_scales_are_those_of_e4m3_over_128(cpu: Target) -> None:
    """448 and 57344 differ by a power of two; layouts are the same."""
    x = OP.inputs({**OP.odd_shapes[0], "tokens": 7}, 0)[0]
    for layout in ((False, False), (True, False), (True, True)):
        for use_ue8m0 in (False, True):
            args = (x, 128, 1e-10, *layout, use_ue8m0)
            ours, theirs = run(OP, cpu, *args)[1], want(E4M3, *args)[1]
            assert torch.equal(ours * 128.0, theirs) and ours.stride() == theirs.stride()


def test_misaligned_tensors(cpu: Target) -> None:
    """Operands and results at odd addresses: with TVM's default of 64 bytes this is a SIGSEGV."""
    x, *rest = OP.inputs(OP.odd_shapes[1], 0)
    moved = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)
    for got, expected in zip(run(OP, cpu, moved, *rest), want(OP, x, *rest), strict=True):
        assert same(got, expected)


def test_no_columns(cpu: Target) -> None:
    q, s = run(OP, cpu, torch.zeros(3, 0), 128, 1e-10, False, False, False)
    assert list(q.shape) == [3, 0] and list(s.shape) == [3, 0] and q.dtype == E5M2


def test_the_public_function_takes_a_dtype() -> None:
    """e4m3 unless e5m2 is asked for, also compiled; nothing else."""
    x = torch.randn(5, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert et.per_token_group_quant_fp8(x)[0].dtype == torch.float8_e4m3fn
    q, s = et.per_token_group_quant_fp8(x, 128, dtype=E5M2)
    assert q.dtype == E5M2 and q.shape == x.shape and s.shape == (5, 2)
    back = q.float() * s.repeat_interleave(128, -1)[:, :200]
    # half a step: 2^-3 of the value, or 2^-17 of the scale below the normal range
    bound = torch.maximum(x.float().abs() * 2.0**-3, s.amax() * 2.0**-17) * (1 + 1e-6)
    assert bool(((back - x.float()).abs() <= bound).all()) and bool((back != x.float()).any())
    torch._dynamo.reset()
    compiled = torch.compile(lambda v: et.per_token_group_quant_fp8(v, 128, dtype=E5M2),
                             fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(x), (q, s), strict=True):
        assert same(got, expected)
    for dtype in (torch.float8_e5m2fnuz, torch.float8_e4m3fnuz, torch.float16, torch.int8):
        with pytest.raises(TypeError, match=f"float8_e4m3fn or float8_e5m2, got {dtype}"):
            et.per_token_group_quant_fp8(x, dtype=dtype)
    with pytest.raises(TypeError, match="x must be"):
        et.per_token_group_quant_fp8(x.int(), dtype=E5M2)


def test_no_preset_casts_to_e5m2_but_a_model_of_that_dtype_does() -> None:
    from expertile.commands.shapes import model_dims

    assert not OP.shapes(preset("v3"), TINY_LOAD)
    named = model_dims("v3", None, "float8_e5m2", None, "sm_90")
    assert OP.shapes(named, TINY_LOAD) == E4M3.shapes(preset("v3"), TINY_LOAD)


@pytest.mark.parametrize("lang", ["tvm", "triton", "ascend"])
def test_its_records_depend_on_the_lowering_it_shares(lang: str) -> None:
    """What is changed there makes both formats' records stale; its definition only its own."""
    def names(op: str) -> set[str]:
        return {str(p.relative_to(Path(source.__file__).resolve().parent))
                for p in source.files_of(op, lang)}

    assert names(E4M3.name) < names(OP.name)
    assert names(OP.name) - names(E4M3.name) == {"e5m2.py", f"{OP.name}/__init__.py",
                                                 f"{OP.name}/{lang}.py"}


def test_formats_are_torchs() -> None:
    for to in (fp8_format.E4M3, fp8_format.E5M2):
        info = torch.finfo(getattr(torch, to.dtype))
        assert (info.max, info.tiny, info.eps) == (to.most, 2.0**to.least, 2.0**-to.mantissa)
