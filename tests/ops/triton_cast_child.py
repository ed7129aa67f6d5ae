"""What the tests of the Triton casts run in a child process, in Triton's interpreter."""

from __future__ import annotations

from expertile.targets._triton import interpreter

interpreter.enable()

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from torch import Tensor  # noqa: E402

from expertile import ops, targets  # noqa: E402
from expertile.ops._triton.casts import silu_mul  # noqa: E402
from expertile.ops._triton.fp8 import codes, decode, encode, to_fnuz  # noqa: E402
from expertile.ops.fp8 import E4M3_MAX  # noqa: E402

from .test_casts import all_bfloat16, same, want  # noqa: E402

_ALL = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)


@triton.jit
def _encode(x, q, FP8: tl.constexpr, CLAMP: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * 4096 + tl.arange(0, 4096)
    tl.store(q + at, encode(tl.load(x + at).to(tl.float32), FP8, CLAMP))


@triton.jit
def _decode(q, x, FP8: tl.constexpr, NAN: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, 256)
    tl.store(x + at, decode(tl.load(q + at), FP8, x.dtype.element_ty, NAN))


@triton.jit
def _to_fnuz(q, x):  # type: ignore[no-untyped-def]
    at = tl.arange(0, 256)
    tl.store(x + at, to_fnuz(tl.load(q + at)).to(tl.float32) * 2.0)


@triton.jit
def _silu_mul(gate, up, y):  # type: ignore[no-untyped-def]
    at = tl.arange(0, 8192)
    tl.store(y + at, silu_mul(tl.load(gate + at), tl.load(up + at)))


def encode_errors(fp8: str, clamp: bool) -> int:
    """Of all bfloat16 values (below 464 if not clamped), how many get another code."""
    x = torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16)
    if not clamp:
        x = torch.where(x.abs() >= 464.0, torch.zeros_like(x), x)
    q = torch.empty(x.shape, dtype=torch.float8_e4m3fn)
    _encode[(16,)](x, codes(q, fp8), FP8=fp8, CLAMP=clamp)
    expected = x.float().clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    different = q.view(torch.uint8) != expected.view(torch.uint8)
    return int((different & ~(q.float().isnan() & expected.float().isnan())).sum())


def decode_errors(fp8: str, dtype: str, nan: bool) -> int:
    """Of all 256 codes, how many decode to another value or sign; without nan, of the finite."""
    got = torch.empty(256, dtype=getattr(torch, dtype))
    _decode[(1,)](codes(_ALL, fp8), got, FP8=fp8, NAN=nan)
    return _different(got.float(), _ALL.float(), nan)


def fnuz_errors() -> int:
    """Of all 256 codes, how many are not twice what gfx942 takes them for; -0 becomes 0."""
    got = torch.empty(256)
    _to_fnuz[(1,)](_ALL.view(torch.uint8), got)
    return _different(got, torch.where(_ALL.float() == 0, 0.0, _ALL.float()), True)


def _different(got: Tensor, expected: Tensor, nan: bool) -> int:
    bad = got.view(torch.int32) != expected.view(torch.int32)
    return int((bad & ~expected.isnan()).sum()) + nan * int(
        (expected.isnan() & ~got.isnan()).sum())


def silu_error() -> float:
    """Largest relative error of silu(gate) * up in float32, both tails among the gates."""
    gate = torch.cat((torch.linspace(-87.0, 88.0, 8000), torch.linspace(-1e-3, 1e-3, 192)))
    up = torch.linspace(-3.0, 3.0, 8192).roll(4096) + 4.0
    y = torch.empty_like(gate)
    _silu_mul[(1,)](gate, up, y)
    exact = gate.double() * gate.double().sigmoid() * up.double()
    return float(((y.double() - exact).abs() / exact.abs()).max())


def bfloat16_mismatch(device: str, use_ue8m0: bool, eps: float) -> str | None:
    """All 2^16 values through the whole operator, in four arrangements of groups."""
    op, target = ops.load("per_token_group_quant_fp8"), targets.load(device, mode="interpret")
    for i, x in enumerate(all_bfloat16()):
        args = (x, 128, eps, False, False, use_ue8m0)
        out = op.empty(*args)
        config = {"rows": 32, "groups": 1, "warps": 4}
        target.build_kernel(op, op.shape_of(*args), config)(*args, out=out)
        for name, got, expected in zip("qs", out, want(op, *args), strict=True):
            if not same(got, expected):
                return f"{name} of arrangement {i}"
    return None
