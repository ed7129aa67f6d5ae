"""FP8, int8 and SwiGLU casts on the CPU: configs against the reference, every bit pattern."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from expertile import ops, targets
from expertile.ops.space import Config, Space
from expertile.ops.spec import Args, Kernel, Operator, Outputs, Shape
from expertile.targets.base import Target
from expertile.targets.cpu.artifacts import built
from expertile.targets.cpu.levels import LEVELS
from tests.conformance import check_config

TOKEN = ops.load("per_token_group_quant_fp8")
INT8 = ops.load("per_token_group_quant_int8")
BLOCK = ops.load("per_block_quant_fp8")
DEQUANT = ops.load("weight_dequant")
SILU = ops.load("silu_mul")
SILU_QUANT = ops.load("silu_mul_quant_fp8")
MASKED = ops.load("silu_mul_quant_fp8_masked")
CASTS = (TOKEN, INT8, BLOCK, DEQUANT, SILU, SILU_QUANT, MASKED)
E4M3 = torch.float8_e4m3fn


def spread(space: Space, count: int) -> list[Config]:
    """`count` configs that lie evenly in a space, the default first (golden-ratio steps)."""
    pool = list(space)
    return [pool[int(i * 0.6180339887 % 1.0 * len(pool))] for i in range(min(count, len(pool)))]


def kernel(op: Operator, target: Target, shape: Shape) -> Kernel:
    """The default kernel of a shape."""
    lowering = ops.lowering(op.name, target.lang)
    built: Kernel = lowering.build(target, shape, lowering.space(target, shape).default())
    return built


def run(op: Operator, target: Target, *args: Any) -> Outputs:
    """The default kernel's answer to one call."""
    out = op.empty(*args)
    kernel(op, target, op.shape_of(*args))(*args, out=out)
    return out


def want(op: Operator, *args: Any) -> Outputs:
    """The reference's answer to one call."""
    out = op.empty(*args)
    op.reference(*args, out=out)
    return out


def same(got: Tensor, expected: Tensor) -> bool:
    """Bit for bit, any NaN being equal to any other."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[got.element_size()]
    nan = got.float().isnan() & expected.float().isnan()
    return bool(((got.view(bits) == expected.view(bits)) | nan).all())


@pytest.mark.parametrize("arch", [None, "x86-avx2"])
def test_groups_too_small_for_exact_remainders(cpu: Target, arch: str | None) -> None:
    """Below a scale of 2^-93 the remainder of a quotient by two parts is no longer exact."""
    target = cpu if arch is None else targets.load("cpu", arch=arch)
    x = torch.full((2, 128), float.fromhex("0x1.c00014p-107"))
    x[:, 0] = float.fromhex("0x1.c00014p-91")
    op = ops.load("per_token_group_quant_fp8")
    args = x, 128, 1e-38, False, False, False
    assert all(same(a, b) for a, b in zip(run(op, target, *args), want(op, *args), strict=True))


@pytest.mark.parametrize(("op", "shape"), [(op, s) for op in CASTS for s in op.odd_shapes],
                         ids=lambda v: v.name if isinstance(v, Operator) else str(dict(v)))
def test_configs_match_the_reference(cpu: Target, op: Operator, shape: Shape) -> None:
    """Default and two more configs; the first odd shape of an operator takes six."""
    lowering = ops.lowering(op.name, "tvm")
    count = 6 if shape == op.odd_shapes[0] else 3
    for config in spread(lowering.space(cpu, shape), count):
        check_config(op, cpu, shape, config)


def all_bfloat16() -> list[Tensor]:
    """All 2^16 values as [512, 128], each value among neighbours of 1, 8, 16 and all binades."""
    codes = torch.arange(1 << 16).to(torch.int16)
    # [.., binade, mantissa // n, mantissa % n] -> groups of `span` binades and 128 / span of each
    spans = [codes.view(-1, span, span, 128 // span).transpose(1, 2) for span in (1, 8, 16)]
    g = torch.Generator().manual_seed(0)
    shuffled = codes[torch.randperm(1 << 16, generator=g)]
    return [c.reshape(512, 128).view(torch.bfloat16) for c in (*spans, shuffled)]


@pytest.mark.parametrize("use_ue8m0", [False, True], ids=["float-scale", "ue8m0"])
@pytest.mark.parametrize("eps", [1e-10, 1e-45])
def testall_bfloat16_values_cast_bit_for_bit(cpu: Target, eps: float, use_ue8m0: bool) -> None:
    """2^16 inputs in four arrangements, infinities and NaNs among them."""
    for i, x in enumerate(all_bfloat16()):
        assert len(x.view(torch.int16).unique()) == 1 << 16
        args = (x, 128, eps, False, False, use_ue8m0)
        for name, got, expected in zip("qs", run(TOKEN, cpu, *args), want(TOKEN, *args),
                                       strict=True):
            assert same(got, expected), f"{name} of arrangement {i}"


@pytest.mark.parametrize("eps", [1e-10, 1e-45])
def test_all_bfloat16_values_cast_to_int8_bit_for_bit(cpu: Target, eps: float) -> None:
    """2^16 inputs in four arrangements, infinities and NaNs among them."""
    for i, x in enumerate(all_bfloat16()):
        for name, got, expected in zip("qs", run(INT8, cpu, x, 128, eps), want(INT8, x, 128, eps),
                                       strict=True):
            assert same(got, expected), f"{name} of arrangement {i}"


def test_int8_codes_by_hand(cpu: Target) -> None:
    """Ties to even, both ends at 127, a NaN or an infinity only in its own group."""
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5, -127.0, 126.49, 0.0, -0.0],
                      [254.0, 1.0, 3.0, -5.0, float("nan"), 1.0, 2.0, 3.0],
                      [0.0] * 4 + [float("-inf"), 1.0, 0.0, 5.0]])
    q, s = run(INT8, cpu, x, 4, 1e-10)
    assert q.tolist() == [[127, 0, 2, -2, -127, 126, 0, 0], [127, 0, 2, -2, 0, 0, 0, 0], [0] * 8]
    assert s[0].tolist() == [1.0, 1.0] and s[1, 0] == 2.0 and s[1, 1].isnan()
    assert s[2, 0] == torch.tensor(1e-10) / 127.0 and s[2, 1].isinf()


def _decoded() -> Tensor:
    """The 256 e4m3fn codes by the format's definition: 4 exponent bits, bias 7, no infinity."""
    code = torch.arange(256)
    e, m = (code >> 3) & 15, (code & 7).double()
    value = torch.where(e == 0, m / 8 * 2.0**-6, (1 + m / 8) * torch.exp2(e.double() - 7))
    value[code & 0x7F == 0x7F] = torch.nan
    return torch.where(code >= 128, -value, value).float()


@pytest.mark.parametrize("arch", [None, "x86-avx2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_all_codes_decode_exactly(cpu: Target, dtype: torch.dtype, arch: str | None) -> None:
    """Also the NaN codes, which the GEMMs' faster form reads as 480."""
    target = cpu if arch is None else targets.load("cpu", arch=arch)
    q = torch.arange(256).to(torch.uint8).view(2, 128).view(E4M3)
    (w,) = run(DEQUANT, target, q, torch.ones(1, 1), 128, dtype)
    assert same(w.flatten(), _decoded().to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_codes_times_many_scales_without_bfloat16_instructions(dtype: torch.dtype) -> None:
    """Products are rounded in a table of the block: 1024 scales, powers of two and ties in it."""
    g = torch.Generator().manual_seed(0)
    s = torch.cat((torch.exp2(torch.arange(-90.0, 90.0)), torch.rand(812, generator=g),
                   torch.arange(1.0, 33.0) / 256))
    q = torch.arange(256).to(torch.uint8).repeat(1, 512).view(E4M3)
    target = targets.load("cpu", arch="x86-avx2")
    (w,) = run(DEQUANT, target, q, s[None], 128, dtype)
    exact = _decoded().repeat(512).view(-1, 128) * s[:, None]
    assert same(w.view(-1, 128), exact.to(dtype))


@pytest.mark.parametrize("arch", [None, "x86-avx2"])
@pytest.mark.parametrize("first", [0, 3])
def test_large_results_past_the_caches(cpu: Target, arch: str | None, first: int) -> None:
    """36 MB of bfloat16, aligned to vectors or not, and not a byte beside them."""
    target = cpu if arch is None else targets.load("cpu", arch=arch)
    n, k = 9000, 2048
    g = torch.Generator().manual_seed(first)
    q = torch.randint(0, 256, (n, k), generator=g, dtype=torch.uint8).view(E4M3)
    args = q, torch.rand(-(-n // 128), k // 128, generator=g), 128, torch.bfloat16
    room = torch.full((n * k + 8,), 7.0, dtype=torch.bfloat16)
    w = room[first:first + n * k].view(n, k)
    kernel(DEQUANT, target, DEQUANT.shape_of(*args))(*args, out=(w,))
    assert same(w, want(DEQUANT, *args)[0])
    assert (room[:first] == 7.0).all() and (room[first + n * k:] == 7.0).all()


@pytest.mark.parametrize("op", [SILU, DEQUANT, INT8], ids=lambda op: str(op.name))
def test_vectors_lie_at_multiples_of_their_size(op: Operator) -> None:
    """`and rsp, -32`, in the kernel and in what its threads run: no slot lies across two pages."""
    target = targets.load("cpu", arch="x86-avx2")
    shape = op.odd_shapes[0]
    config = ops.lowering(op.name, "tvm").space(target, shape).default()
    code = built(target, op.name, op.static_of(shape), config).read_bytes()
    assert code.count(bytes.fromhex("4883e4e0")) >= 2


def test_encoding_is_nearest_even(cpu: Target) -> None:
    """Against a table: every e4m3 value, the midpoint to the next, and one ulp on both sides."""
    values = _decoded()[:127]
    middle = (values[:-1] + values[1:]) / 2
    low, high = (torch.nextafter(middle, torch.tensor(v)) for v in (0.0, 1e9))
    even = torch.where(torch.arange(126) % 2 == 0, values[:-1], values[1:])
    x = torch.cat((values, middle, low, high))
    expected = torch.cat((values, even, values[:-1], values[1:]))
    x, expected = torch.cat((x, -x)), torch.cat((expected, -expected))
    rows = torch.full((-(-len(x) // 127), 128), 448.0)       # 448 in each group: the scale is 1
    rows[:, 1:] = torch.nn.functional.pad(x, (0, rows[:, 1:].numel() - len(x))).view(-1, 127)
    q, s = run(TOKEN, cpu, rows, 128, 1e-10, False, False, False)
    assert bool((s == 1.0).all())
    assert torch.equal(q[:, 1:].float().flatten()[:len(x)], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ue8m0_scales_are_the_next_power_of_two(cpu: Target, dtype: torch.dtype) -> None:
    """Exact at exact powers; 2^-126 is the least, also for a subnormal maximum."""
    k = torch.arange(-140.0, 118.0)
    amax = torch.cat([(448.0 * torch.exp2(k.double()) * f).float() for f in (1.0, 1.004, 1.996)])
    x = torch.zeros(len(amax), 128)
    x[:, 5] = -amax
    x = x.to(dtype)
    _, s = run(TOKEN, cpu, x, 128, 1e-45, False, False, True)
    exact = x.abs().amax(1).double() / 448.0
    assert bool((s.view(torch.int32) & 0x007FFFFF == 0).all()), "a mantissa bit is set"
    assert bool((s >= 2.0**-126).all())
    assert bool((s[:, 0].double() >= exact * (1 - 2.0**-24)).all())
    big = exact > 2.0**-126
    assert bool((s[:, 0].double()[big] < 2 * exact[big]).all())
    assert torch.equal(s[14:258, 0].double(), torch.exp2(k[14:].double()))   # the exact powers


def _levels() -> list[str]:
    """Levels of this machine whose code of a group differs: packing, vector width, division."""
    return [name for name in ("x86-avx512", "x86-avx2", "x86") if LEVELS[name].runs_here()]


@pytest.fixture(params=["host", *_levels()])
def level(request: pytest.FixtureRequest, cpu: Target, tmp_path_factory: pytest.TempPathFactory
          ) -> Target:
    """The CPU at its own level, and held to lower ones."""
    if request.param == "host":
        return cpu
    return targets.load("cpu", unit=f"{request.param}:1",
                        cache_dir=tmp_path_factory.getbasetemp() / "kernels")


@pytest.mark.parametrize("binade", [47, 127, 190])
def test_quotients_of_all_significands(level: Target, binade: int) -> None:
    """128 largest values by 128 values in 21 binades below: what bfloat16 quotients depend on."""
    top = binade << 7 | torch.arange(128)
    below = ((binade - torch.arange(21))[:, None] << 7 | torch.arange(128)).view(1, -1, 32)
    x = torch.zeros(128, below.shape[1], 64, dtype=torch.int64)
    x[..., 0], x[..., 1:33] = top[:, None], torch.minimum(below, top[:, None, None])
    args = (x.to(torch.int16).view(torch.bfloat16).view(-1, 64), 64, 1e-30, False, False, False)
    args[0][1::2].neg_()
    for got, expected in zip(run(TOKEN, level, *args), want(TOKEN, *args), strict=True):
        assert same(got, expected)


@pytest.mark.parametrize("op", [TOKEN, BLOCK], ids=lambda op: op.name)
def test_float32_next_to_ties(level: Target, op: Operator) -> None:
    """Products of a scale and a midpoint of e4m3, and two units in the last place around."""
    g = torch.Generator().manual_seed(1)
    x = torch.rand(512, 128, generator=g) * 448.0
    odd = torch.randint(8, 16, (512, 127), generator=g) * 2 + 1
    middle = odd * torch.exp2(torch.randint(-12, 4, odd.shape, generator=g).float())
    near = middle * (x[:, :1] / torch.tensor(448.0))
    near = (near.view(torch.int32) + torch.randint(-2, 3, near.shape, generator=g)).to(torch.int32)
    x[:, 1:] = torch.minimum(near.view(torch.float32), x[:, :1])
    x[::2, 1:] *= -1.0
    args = (x, 128, 1e-30, False, False, False) if op is TOKEN else (x, 1, 128, False)
    for got, expected in zip(run(op, level, *args), want(op, *args), strict=True):
        assert same(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gates_at_both_ends(level: Target, dtype: torch.dtype) -> None:
    """From where e^gate vanishes to where it overflows: each group of 64 holds one such gate."""
    gate = torch.linspace(-120.0, 120.0, 64)[:, None] * torch.ones(1, 64)
    gate[:, 1:] = torch.linspace(-9.0, 9.0, 63)
    up = torch.linspace(-3.0, 2.0, 64).expand(64, 64)
    x = torch.cat((gate, up), 1).to(dtype)
    args = (x, 64, 1e-10, False, False, False)
    (q, s), (q0, s0) = run(SILU_QUANT, level, *args), want(SILU_QUANT, *args)
    torch.testing.assert_close(s, s0, rtol=5e-7, atol=0.0)
    a, b = (torch.where(c < 128, c, 128 - c) for c in (t.view(torch.uint8).int() for t in (q, q0)))
    assert int((a - b).abs().max()) <= 1
    assert int((a != b).sum()) <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_codes_of_a_whole_block_decode_exactly(level: Target, dtype: torch.dtype) -> None:
    """With a scale in the middle of the range, and with two at its ends."""
    q = torch.arange(256).to(torch.uint8).view(2, 128).view(E4M3)
    for scale in (0.37, 2.0**-120, 2.0**110):
        args = (q, torch.full((1, 1), scale), 128, dtype)
        assert same(run(DEQUANT, level, *args)[0], want(DEQUANT, *args)[0])


@pytest.mark.parametrize("use_ue8m0", [False, True], ids=["float-scale", "ue8m0"])
def test_cast_and_back(cpu: Target, use_ue8m0: bool) -> None:
    """Half an e4m3 step: 2^-4 of the value, or 2^-10 of the scale below the normal range."""
    w = BLOCK.inputs({**BLOCK.odd_shapes[0], "dtype": "float32"}, 3)[0]
    q, s = run(BLOCK, cpu, w, 128, 128, use_ue8m0)
    (back,) = run(DEQUANT, cpu, q, s, 128, torch.float32)
    scale = s.repeat_interleave(128, 0)[:w.shape[0]].repeat_interleave(128, 1)[:, :w.shape[1]]
    bound = torch.maximum(w.abs() * 2.0**-4, scale * 2.0**-10) * (1 + 1e-6)
    assert bool(((back - w).abs() <= bound).all())
    assert bool((back != w).any())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_activation_is_a_step_off_at_most(cpu: Target, dtype: str) -> None:
    """q against the reference: neighbouring codes, and fewer than one byte in 10,000."""
    shape = {**SILU_QUANT.odd_shapes[0], "h": 384, "tokens": 300, "dtype": dtype}
    args = SILU_QUANT.inputs(shape, 0)
    (q, s), (q0, s0) = run(SILU_QUANT, cpu, *args), want(SILU_QUANT, *args)
    torch.testing.assert_close(s, s0, rtol=5e-7, atol=0.0)
    # sign-magnitude codes on a line: neighbours are values next to each other
    a, b = (torch.where(c < 128, c, 128 - c) for c in (t.view(torch.uint8).int() for t in (q, q0)))
    assert int((a - b).abs().max()) <= 1
    assert float((a != b).double().mean()) < 1e-4


def test_fused_activation_does_not_round_to_the_input_dtype(cpu: Target) -> None:
    """With bfloat16 in, y goes to the cast in float32: rounding it first gives other bytes."""
    shape = {**SILU_QUANT.odd_shapes[0], "h": 384, "tokens": 100, "dtype": "bfloat16"}
    x, *rest = SILU_QUANT.inputs(shape, 0)
    q, _ = run(SILU_QUANT, cpu, x, *rest)
    wide, _ = run(TOKEN, cpu, *run(SILU, cpu, x.float()), *rest)
    rounded, _ = run(TOKEN, cpu, *run(SILU, cpu, x), *rest)
    bits = [t.view(torch.uint8) for t in (q, wide, rounded)]
    assert float((bits[0] != bits[1]).double().mean()) < 1e-4
    assert float((bits[0] != bits[2]).double().mean()) > 1e-2


def test_masked_rows_are_those_of_the_unmasked_operator(cpu: Target) -> None:
    """Bit for bit, whatever the layout of the scales; the other rows are left alone."""
    x, counts, *rest = MASKED.inputs({**MASKED.odd_shapes[0], "m_max": 11}, 1)
    for layout in ((False, False), (True, False), (True, True)):
        rest[2:4] = layout
        out = MASKED.empty(x, counts, *rest)
        for o in out:
            o.copy_(torch.full((), 3.0).to(o.dtype))
        kernel(MASKED, cpu, MASKED.shape_of(x, counts, *rest))(x, counts, *rest, out=out)
        for e, rows in enumerate(counts.tolist()):
            for got, expected in zip(out, run(SILU_QUANT, cpu, x[e], *rest), strict=True):
                assert same(got[e, :rows].contiguous(), expected[:rows].contiguous())
                assert bool((got[e, rows:].float() == 3.0).all())


def test_scale_layouts(cpu: Target) -> None:
    """Column-major: tokens are adjacent; TMA-aligned: their stride is a multiple of 16 bytes."""
    x = TOKEN.inputs({**TOKEN.odd_shapes[0], "tokens": 7}, 0)[0]
    rows, columns, aligned = (run(TOKEN, cpu, x, 128, 1e-10, *layout, False)[1]
                              for layout in ((False, False), (True, False), (True, True)))
    assert (rows.stride(), columns.stride(), aligned.stride()) == ((2, 1), (1, 7), (1, 8))
    assert torch.equal(rows, columns) and torch.equal(rows, aligned)


def _misaligned(t: Tensor) -> Tensor:
    """A contiguous tensor one element off whatever boundary the allocator chose."""
    return torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape)


@pytest.mark.parametrize("op", CASTS, ids=lambda op: op.name)
def test_misaligned_tensors(cpu: Target, op: Operator) -> None:
    """Operands and results at odd addresses: with TVM's default of 64 bytes this is a SIGSEGV."""
    args = op.inputs(op.odd_shapes[1], 0)
    moved = tuple(_misaligned(a).copy_(a) if isinstance(a, Tensor) else a for a in args)
    out = tuple(_misaligned(o).copy_(o) for o in op.empty(*args))
    kernel(op, cpu, op.odd_shapes[1])(*moved, out=out)
    for got, expected in zip(out, run(op, cpu, *args), strict=True):
        assert same(got, expected)


@pytest.mark.parametrize(("op", "args", "rule"), [
    (TOKEN, (torch.zeros(2, 4, dtype=torch.int32), 128, 1e-10, False, False, False), "x must be"),
    (TOKEN, (torch.zeros(2, 4), 0, 1e-10, False, False, False), "group_size must be at least"),
    (TOKEN, (torch.zeros(2, 4), 128, 0.0, False, False, False), "eps must be positive"),
    (BLOCK, (torch.zeros(2, 3, 4), 128, 128, False), "one expert at a time"),
    (DEQUANT, (torch.zeros(2, 4), torch.ones(1, 1), 128, torch.float32), "float8_e4m3fn"),
    (DEQUANT, (torch.zeros(2, 200).to(E4M3), torch.ones(1, 1), 128, torch.float32), r"\[1, 2\]"),
    (DEQUANT, (torch.zeros(2, 4).to(E4M3), torch.ones(1, 1), 128, torch.int8), "dtype must be"),
    (SILU, (torch.zeros(2, 5),), "must be even"),
    (SILU_QUANT, (torch.zeros(2, 5), 128, 1e-10, False, False, False), "must be even"),
    (MASKED, (torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.int32), 128, 1e-10, False, False,
              False), r"masked_m must be int32\[2\]"),
    (MASKED, (torch.zeros(3, 4), torch.zeros(3, dtype=torch.int32), 128, 1e-10, False, False,
              False), "x must be"),
], ids=lambda value: value.name if isinstance(value, Operator) else
   value if isinstance(value, str) else "")
def test_wrong_calls_state_the_rule(op: Operator, args: Args, rule: str) -> None:
    """ValueError or TypeError with the rule and the values."""
    with pytest.raises((ValueError, TypeError), match=rule):
        op.shape_of(*args)


def test_no_columns(cpu: Target) -> None:
    """K = 0 builds no kernel and returns empty results."""
    q, s = run(TOKEN, cpu, torch.zeros(3, 0), 128, 1e-10, False, False, False)
    assert list(q.shape) == [3, 0] and list(s.shape) == [3, 0]
    (w,) = run(DEQUANT, cpu, torch.zeros(3, 0).to(E4M3), torch.zeros(1, 0), 128, torch.float32)
    assert list(w.shape) == [3, 0]
