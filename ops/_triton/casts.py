"""Groups cast to FP8 in Triton kernels, bit for bit as ops/fp8.py and e5m2.py say, and SwiGLU.

IEEE division costs some 20 instructions on a GPU, and a cast has one per value. Here a value costs
one multiplication and two fused ones: q = v * r, q -= (q * s - v) * r with r = 1 / s, rounded
(Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990).
That can be a float32 away from v / s, but its e4m3 code never is another one:
tests/ops/test_triton_casts.py tries all divisors that could tell. Nor is its e5m2 code: a quotient
by amax / 57344 is 2^7 times the one by amax / 448, and e5m2's midpoints have one bit less. Small
scales (TINY) would underflow on the way and take IEEE division.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from ..fp8_format import E4M3, Format
from ..space import Config, Space
from .e5m2 import encode_e5m2
from .fp8 import encode

if TYPE_CHECKING:
    from ...targets.base import GridTarget

INF_BITS = tl.constexpr(0x7F800000)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471824645996)         # a float32; LN_2_LOW is what ln 2 has beyond it
LN_2_LOW = tl.constexpr(-1.904654299957768e-09)


def tiny_scales(eps: float, to: Format = E4M3) -> bool:
    """Whether scales may be too small for `cast` without IEEE division.

    From eps = 2^-60 on, a scale is above 2^-69 and a quotient that does not round to 0 above 2^-11,
    so that q * s has no bit below 2^-126 and the remainder v - q * s is exact. For e5m2 from 2^-47
    on: the scale is 2^-63 or more, the quotient above 2^-17.
    """
    return eps < (2.0**-60 if to == E4M3 else 2.0**-47)


@triton.jit
def largest(v):
    """max |v| by rows of float32 v [groups, width]: as integers NaN > infinity > all else."""
    top = tl.max(v.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)
    return top.to(tl.float32, bitcast=True)


@triton.jit
def scale_from(amax, eps, UE8M0: tl.constexpr, TINY: tl.constexpr, MOST: tl.constexpr = 448.0):
    """max(amax, eps) / MOST, rounded once, or the power of two above it.

    MOST is the format's largest number: 448 or 57344, which have the same significand.
    """
    PART: tl.constexpr = 1.0 / MOST
    floor = tl.full((), eps, tl.float32)
    amax = tl.maximum(amax, floor, propagate_nan=tl.PropagateNan.ALL)
    if TINY:
        scale = tl.div_rn(amax, tl.full((), MOST, tl.float32))
    else:
        # as in `cast`; infinity would meet itself and become NaN
        scale = amax * PART
        rest = tl.fma(scale, MOST, -amax)
        scale = tl.where(amax == float("inf"), amax, tl.fma(rest, -PART, scale))
    if UE8M0:
        return power_of_two_above(scale)
    else:
        return scale


@triton.jit
def power_of_two_above(scale):
    """The smallest power of two >= scale >= 0, at least 2^-126; what is not finite stays."""
    bits = scale.to(tl.int32, bitcast=True)
    up = (bits + 0x7FFFFF) & INF_BITS
    up = tl.maximum(up, 0x00800000)
    return tl.where(bits >= INF_BITS, bits, up).to(tl.float32, bitcast=True)


@triton.jit
def reciprocal(scale, UE8M0: tl.constexpr):
    """1 / scale rounded once, which `cast` relies on; 0 for infinity."""
    one = tl.full(scale.shape, 1.0, tl.float32)
    if UE8M0:                        # exact: the exponent changes its sign
        bits = scale.to(tl.int32, bitcast=True)
        inverse = (0x7F000000 - bits).to(tl.float32, bitcast=True)
        return tl.where(bits < INF_BITS, inverse, one / scale)
    else:
        return tl.div_rn(one, scale)


@triton.jit
def codes_of(x, FP8: tl.constexpr, CLAMP: tl.constexpr, TO: tl.constexpr):
    """The codes of float32 x in the format of that dtype."""
    if TO == "float8_e5m2":
        return encode_e5m2(x, FP8, CLAMP)
    else:
        return encode(x, FP8, CLAMP)


@triton.jit
def cast(v, scale, UE8M0: tl.constexpr, TINY: tl.constexpr, FP8: tl.constexpr,
         TO: tl.constexpr = "float8_e4m3fn"):
    """The codes of v / scale in the format of that dtype; v [groups, width], scale [groups]."""
    if UE8M0:
        return codes_of(v * reciprocal(scale, UE8M0)[:, None], FP8, False, TO)
    elif TINY:
        return codes_of(tl.div_rn(v, tl.broadcast_to(scale[:, None], v.shape)), FP8, True, TO)
    else:
        # rest = q * s - v, not its negative: so -0 keeps its sign. An infinite scale makes finite
        # values 0: its reciprocal is 0, and 0 stands for it where 0 * infinity would be NaN.
        inverse = reciprocal(scale, UE8M0)[:, None]
        divisor = tl.where(scale == float("inf"), 0.0, scale)[:, None]
        negative = inverse * -1.0    # Triton 3.6 takes -x as 0 - x, which loses -0
        q = v * inverse
        rest = tl.fma(q, tl.broadcast_to(divisor, v.shape), -v)
        return codes_of(tl.fma(rest, tl.broadcast_to(negative, v.shape), q), FP8, False, TO)


@triton.jit
def silu_mul(gate, up):
    """silu(gate) * up of float32 tiles, to about 5 ulp with the device's 2^x (2 ulp on NVIDIA)."""
    # e = exp(-|gate|) cannot overflow: 2^power * exp(rest), for rounding t * log2(e) costs |t| ulp
    t = tl.maximum(-tl.abs(gate), -150.0)        # drops NaN, which the last product brings back
    power = t * LOG2_E
    rest = tl.fma(power, -LN_2_LOW, tl.fma(power, -LN_2, t))
    e = tl.exp2(power)
    e = tl.fma(e, rest, e)
    return gate * (tl.where(gate < 0, e, 1.0) / (1.0 + e)) * up


@triton.jit
def load_silu_mul(x, row_at, group, there, H: tl.constexpr, GROUP: tl.constexpr,
                  WIDTH: tl.constexpr):
    """silu(gate) * up of (row, group) pairs, their columns, and which of these exist."""
    column = group[:, None] * GROUP + tl.arange(0, WIDTH)[None, :]
    mask = there[:, None]
    if GROUP != WIDTH:
        mask &= (tl.arange(0, WIDTH) < GROUP)[None, :]
    if H % GROUP != 0:
        mask &= column < H
    gate = x + row_at[:, None] + column
    v = silu_mul(tl.load(gate, mask=mask, other=0.0).to(tl.float32),
                 tl.load(gate + H, mask=mask, other=0.0).to(tl.float32))
    return v, column, mask


@triton.jit
def pairs_of(program, SPANS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """(row, group) of each of the ROWS * GROUPS pairs of a program; SPANS programs share a row."""
    pair = tl.arange(0, ROWS * GROUPS)
    row = program // SPANS * ROWS + (pair // GROUPS).to(tl.int64)
    return row, program % SPANS * GROUPS + pair % GROUPS


def group_space(target: GridTarget, rows: int, groups: int, width: int, together: int) -> Space:
    """Rows and groups a program and its warps, for `rows` of `groups` of `width` padded columns.

    A tile may span `together` rows.

    By default a thread has 32 values, which is four 16-byte loads of bfloat16 and two 16-byte
    stores, and no group is idle; fewer where that would leave multiprocessors without a program.
    """
    share = rows * groups * width // (2 * target.cores)
    pairs = max(min(4096, triton.next_power_of_2(max(share, 1))) // width, 1)
    high = triton.next_power_of_2(max(together, 1))
    across = min(max(groups & -groups, 1), pairs, max(8, pairs // high))
    down = min(pairs // across, high)
    warps = min(max(across * down * width // (32 * target.warp_size), 1), 16)
    best = (down, across, warps)

    def fits(c: Config) -> bool:
        tile = int(c["rows"]) * int(c["groups"])
        values = tile * width // (int(c["warps"]) * target.warp_size)
        return (c["rows"], c["groups"], c["warps"]) == best or (
            4 <= values <= 64 and int(c["groups"]) <= triton.next_power_of_2(groups))

    return Space({"rows": first(down, 1, 2, 4, 8, 16, 32), "groups": first(across, 1, 2, 4, 8, 16),
                  "warps": first(warps, 1, 2, 4, 8, 16)}, fits)


def first(default: int, *others: int) -> tuple[int, ...]:
    """The choices of a knob, the default in front."""
    return tuple(dict.fromkeys((default, *others)))
