"""What the tests of the Triton casts to e5m2 run in a child process, in Triton's interpreter."""

from __future__ import annotations

from expertile.targets._triton import interpreter

interpreter.enable()

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from expertile import ops, targets  # noqa: E402
from expertile.ops._triton.e5m2 import encode_e5m2  # noqa: E402
from expertile.ops._triton.fp8 import codes  # noqa: E402
from expertile.ops.fp8_format import E5M2  # noqa: E402
from expertile.ops.per_token_group_quant_fp8_e5m2 import midpoints  # noqa: E402

from .test_casts import all_bfloat16, same, want  # noqa: E402


@triton.jit
def _encode(x, q, FP8: tl.constexpr, CLAMP: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * 4096 + tl.arange(0, 4096)
    tl.store(q + at, encode_e5m2(tl.load(x + at), FP8, CLAMP))


def encode_errors(fp8: str, clamp: bool) -> int:
    """Of all bfloat16 values and of what is next to ties, how many get another code than torch's.

    If not clamped, of those below 61440.
    """
    middle = midpoints()
    ties = torch.cat([torch.nextafter(middle, torch.full((), v)) for v in (0.0, torch.inf)])
    x = torch.cat((torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16).float(),
                   torch.nn.functional.pad(torch.cat((ties, -ties)), (0, 4096 - 4 * len(middle)))))
    if not clamp:
        x = torch.where(x.abs() >= 61440.0, torch.zeros_like(x), x)
    q = torch.empty(x.shape, dtype=torch.float8_e5m2)
    _encode[(17,)](x, codes(q, fp8), FP8=fp8, CLAMP=clamp)
    expected = x.clamp(-E5M2.most, E5M2.most).to(torch.float8_e5m2)
    different = q.view(torch.uint8) != expected.view(torch.uint8)
    return int((different & ~(q.float().isnan() & expected.float().isnan())).sum())


def bfloat16_mismatch(device: str, use_ue8m0: bool, eps: float) -> str | None:
    """All 2^16 values through the whole operator, in four arrangements of groups."""
    op, target = ops.load("per_token_group_quant_fp8_e5m2"), targets.load(device, mode="interpret")
    for i, x in enumerate(all_bfloat16()):
        args = (x, 128, eps, False, False, use_ue8m0)
        out = op.empty(*args)
        config = {"rows": 32, "groups": 1, "warps": 4}
        target.build_kernel(op, op.shape_of(*args), config)(*args, out=out)
        for name, got, expected in zip("qs", out, want(op, *args), strict=True):
            if not same(got, expected):
                return f"{name} of arrangement {i}"
    return None
