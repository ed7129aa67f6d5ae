"""exp, sigmoid and SiLU of float32 lanes: LLVM's own exp falls back to one libm call per lane."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from .fp8 import floats

LOG2_E = 1.4426950408889634
LN2_HI = 0.693359375                # 355 / 512: exact times any exponent (Cody and Waite, 1980)
LN2_LO = -2.12194440054690583e-4    # ln 2 - LN2_HI
# (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2: our minimax fit, relative error of exp 3.1e-9
SERIES = (0.001381459878757596, 0.008368716575205326, 0.04166838899254799, 0.1666652113199234,
          0.4999999403953552)


def exp(value: Any) -> Any:
    """e^value within 1 ulp, subnormal results too; 0 below -104, inf above 88.8, NaN stays.

    `value` is repeated some 25 times: pass a local buffer's element, and store the result in one
    before a cast to bfloat16 or e4m3, which repeat it again. (T.Let cannot stand in for that:
    TVM 0.27's vectoriser refuses a Let that another rewrite has repeated.)
    """
    x = T.Select(value < T.float32(-105.0), T.float32(-105.0), value)   # unlike T.max, NaN stays
    x = T.Select(x > T.float32(89.0), T.float32(89.0), x)
    # not (x + 1.5 * 2^23) - 1.5 * 2^23: TVM's simplifier cancels the constants
    n = T.floor(x * T.float32(LOG2_E) + T.float32(0.5))
    r = (x - n * T.float32(LN2_HI)) - n * T.float32(LN2_LO)
    series = T.float32(SERIES[0])
    for c in SERIES[1:]:
        series = series * r + T.float32(c)
    y = series * (r * r) + r + T.float32(1.0)
    k = T.Cast("int32", n)
    half = k >> 1                    # in two steps: 2^k alone is no normal float32 at both ends
    return y * _power_of_two(half) * _power_of_two(k - half)


def _power_of_two(k: Any) -> Any:
    return floats((k + T.int32(127)) << 23)


def sigmoid(value: Any) -> Any:
    """1 / (1 + e^-value), in torch's order of operations."""
    return T.float32(1.0) / (T.float32(1.0) + exp(T.float32(0.0) - value))


def silu_of(value: Any, e: Any) -> Any:
    """value * sigmoid(value) from e = exp(-|value|), which cannot overflow: exact in both tails."""
    return value * (T.Select(value < T.float32(0.0), e, T.float32(1.0)) / (T.float32(1.0) + e))


def silu(value: Any) -> Any:
    """value * sigmoid(value); `value` is repeated 50 times, so prefer `silu_of` and a store."""
    return silu_of(value, exp(T.float32(0.0) - T.fabs(value)))
