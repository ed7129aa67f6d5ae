"""A cast inside an operator: either code of a tie is right, anything else is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expertile import ops
from expertile.ops.fused_moe import round_trip
from expertile.ops.gemm_nt.operand import plain64
from expertile.ops.numerics import mismatches
from expertile.ops.spec import Args, Kernel, Outputs
from expertile.opt.checks import run_once, why_wrong

OP = ops.load("fused_moe")
SHAPE = {"e": 3, "inter": 384, "hidden": 256, "top_k": 2, "w_dtype": "int8", "dtype": "float32",
         "block_n": 1, "block_k": 128, "w8a8": True, "tokens": 400}
CODES = pytest.mark.parametrize("w_dtype", ["int8", "float8_e4m3fn"])
Cast = Callable[[Tensor, torch.dtype], Tensor]


def kernel_with(cast: Cast) -> Kernel:
    """The operator in float64, `cast` in the place of the cast between the GEMMs."""
    def kernel(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor,
               s1: Tensor, s2: Tensor, block_n: int, block_k: int, w8a8: bool, *, out: Outputs
               ) -> None:
        x, total, inter = round_trip(hidden, 128, w1.dtype), torch.zeros_like(out[0]).double(), 384
        for e in range(w1.shape[0]):
            token, slot = (topk_ids == e).nonzero().T
            up = x[token] @ plain64(w1[e], s1[e], (1, 128)).T
            act = up[:, :inter] * up[:, :inter].sigmoid() * up[:, inter:]
            down = cast(act, w1.dtype) @ plain64(w2[e], s2[e], (1, 128)).T
            total.index_add_(0, token, down * topk_weights[token, slot].double()[:, None])
        out[0].copy_(total)
    return kernel


def rounded_in_float32(act: Tensor, codes: torch.dtype) -> Tensor:
    """As a kernel does that sums in float32: every element a few roundings off."""
    noise = torch.randn(act.shape, generator=torch.Generator().manual_seed(1)).double()
    return round_trip(act * (1 + 1e-6 * noise), 128, codes)


def truncated(act: Tensor, codes: torch.dtype) -> Tensor:
    """A cast that drops what is behind the code: half a step too small everywhere."""
    exact = round_trip(act, 128, codes)
    return torch.where(exact.abs() > act.abs(), exact * (1 - 2.0**-4), exact)


def late_scale(act: Tensor, codes: torch.dtype) -> Tensor:
    """The scale of one group is that of its neighbour."""
    exact = round_trip(act, 128, codes)
    exact[:, :128] *= (act[:, 128:256].abs().amax(1) / act[:, :128].abs().amax(1))[:, None]
    return exact


def arguments(w_dtype: str, **changed: object) -> tuple[Args, Outputs]:
    """A call and its right results."""
    args = OP.inputs({**SHAPE, "w_dtype": w_dtype, **changed}, 3)
    return args, run_once(OP.reference, OP, args)


@CODES
def test_either_code_of_a_tie_is_right(w_dtype: str) -> None:
    args, want = arguments(w_dtype)
    kernel = kernel_with(rounded_in_float32)
    assert mismatches(run_once(kernel, OP, args), want, OP.rtol) is not None
    assert why_wrong(OP, kernel, "typical", args, want) is None


@CODES
@pytest.mark.parametrize("cast", [truncated, late_scale])
def test_another_cast_is_wrong(w_dtype: str, cast: Cast) -> None:
    args, want = arguments(w_dtype)
    assert "elements wrong" in str(why_wrong(OP, kernel_with(cast), "typical", args, want))


@CODES
def test_most_elements_have_no_slack(w_dtype: str) -> None:
    """What it allows is a step of few elements: far below the largest output of a row."""
    args, want = arguments(w_dtype)
    slack = ops.slack("fused_moe", args)
    assert slack is not None
    share = slack[0].amax(1) / want[0].abs().amax(1)
    assert share.max() < 0.05 and share.median() < 0.004


def test_without_a_cast_there_is_none() -> None:
    slack = ops.slack("fused_moe", arguments("int8", w8a8=False)[0])
    assert slack is not None and not slack[0].any()
    assert ops.slack("gemm_nt", ()) is None


def test_weights_of_either_sign_have_the_same_slack() -> None:
    hidden, w1, w2, weights, *rest = arguments("int8")[0]
    plus, minus = (ops.slack("fused_moe", (hidden, w1, w2, w, *rest)) for w in (weights, -weights))
    assert plus is not None and minus is not None and plus[0].any()
    assert torch.equal(plus[0], minus[0])
