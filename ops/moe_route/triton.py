"""GPU lowering: rows of a program stay in registers; each selection is one reduction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape
from . import NORM_FLOOR, mask_value

if TYPE_CHECKING:
    from ...targets.base import GridTarget

_TAKEN = tl.constexpr(-(1 << 31))    # below the key of -inf: a selected expert never comes back


@triton.jit
def ordered(x):
    """int32 that sorts as torch sorts float32: NaN on top."""
    raw = x.to(tl.int32, bitcast=True)
    key = raw ^ ((raw >> 31) & 0x7FFFFFFF)
    return tl.where((raw & 0x7FFFFFFF) > 0x7F800000, 0x7FFFFFFF, key)


@triton.jit
def value_of(key):
    """The float32 of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def kept_groups(keys, ROWS: tl.constexpr, GROUPS: tl.constexpr, N_GROUP: tl.constexpr,
                TOPK_GROUP: tl.constexpr, TOP2: tl.constexpr, MEMBERS: tl.constexpr):
    """Which groups stay, int32 [ROWS, GROUPS], from the choices' keys [ROWS, GROUPS, MEMBERS]."""
    best, where = tl.max(keys, 2, return_indices=True)
    if TOP2:
        first = where[:, :, None] == tl.arange(0, MEMBERS)[None, None, :]
        second = tl.max(tl.where(first, _TAKEN, keys), 2)
        best = ordered(value_of(best) + value_of(second))
    group = tl.broadcast_to(tl.arange(0, GROUPS)[None, :], (ROWS, GROUPS))
    best = tl.where(group < N_GROUP, best, _TAKEN)
    kept = tl.zeros((ROWS, GROUPS), tl.int32)
    for _ in tl.static_range(TOPK_GROUP):
        chosen = group == tl.argmax(best, 1)[:, None]
        kept = tl.where(chosen, 1, kept)
        best = tl.where(chosen, _TAKEN, best)
    return kept


@triton.jit(do_not_specialize=["tokens", "factor", "floor"])
def moe_route(x, bias, weights, ids, tokens, factor, floor, x_m, x_e, MASKED: tl.constexpr,
              SIZE: tl.constexpr, MEMBERS: tl.constexpr, N_GROUP: tl.constexpr,
              GROUPS: tl.constexpr, TOPK_GROUP: tl.constexpr, TOP2: tl.constexpr,
              SOFTMAX: tl.constexpr, HAS_BIAS: tl.constexpr, NORM: tl.constexpr,
              TOP_K: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """ROWS tokens, their experts as [GROUPS, MEMBERS]: N_GROUP groups of SIZE, padded.

    The order of positions is that of the experts, so the lowest position is the lowest expert.
    Scores err by a few ulps (ex2.approx: 2^-22), equal logits score equally.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    group, member = tl.arange(0, GROUPS), tl.arange(0, MEMBERS)
    column = group[:, None] * SIZE + member[None, :]
    real = (group < N_GROUP)[:, None] & (member < SIZE)[None, :]
    there = (row < tokens)[:, None, None] & real[None, :, :]
    v = tl.load(x + (row * x_m)[:, None, None] + (column * x_e)[None, :, :], mask=there,
                other=float("-inf") if SOFTMAX else 0.0).to(tl.float32)
    if SOFTMAX:
        top = tl.max(tl.max(v, 2), 1)
        top = tl.where(row < tokens, top, 0.0)           # -inf - -inf would be NaN
        e = tl.exp(v - top[:, None, None])
        total = tl.where(row < tokens, tl.sum(tl.sum(e, 2), 1), 1.0)
        scores = tl.div_rn(e, tl.broadcast_to(total[:, None, None], e.shape))
    else:
        scores = tl.div_rn(tl.full(v.shape, 1.0, tl.float32), 1.0 + tl.exp(-v))
    choice = scores
    if HAS_BIAS:
        choice += tl.load(bias + column, mask=real, other=0.0)[None, :, :]
    if TOPK_GROUP < N_GROUP:
        keys = tl.where(real[None, :, :], ordered(choice), _TAKEN)
        kept = kept_groups(keys, ROWS, GROUPS, N_GROUP, TOPK_GROUP, TOP2, MEMBERS)
        choice = tl.where(kept[:, :, None] != 0, choice, MASKED)
    if MASKED == 0.0:                # V2 weighs by the masked scores
        scores = choice
    keys = tl.where(real[None, :, :], ordered(choice), _TAKEN)
    keys = tl.reshape(keys, (ROWS, GROUPS * MEMBERS))
    scores = tl.reshape(scores, (ROWS, GROUPS * MEMBERS))
    position = tl.arange(0, GROUPS * MEMBERS)[None, :]
    slot = tl.arange(0, WIDTH)[None, :]
    w = tl.zeros((ROWS, WIDTH), tl.float32)
    chosen = tl.zeros((ROWS, WIDTH), tl.int32)
    for p in tl.static_range(TOP_K):
        at = tl.argmax(keys, 1)[:, None]
        keys = tl.where(position == at, _TAKEN, keys)
        score = tl.sum(tl.where(position == at, scores, 0.0), 1)[:, None]
        w = tl.where(slot == p, score, w)
        chosen = tl.where(slot == p, at // MEMBERS * SIZE + at % MEMBERS, chosen)
    if NORM:
        total = tl.sum(w, 1)[:, None] + floor
        w = tl.div_rn(w, tl.broadcast_to(total, w.shape))
    out = (row * TOP_K)[:, None] + slot
    mask = (row < tokens)[:, None] & (slot < TOP_K)
    tl.store(weights + out, w * factor, mask=mask)
    tl.store(ids + out, chosen, mask=mask)


def _padded(shape: Shape) -> tuple[int, int]:
    """Groups and members of a group, as powers of two; one group where all of them stay."""
    groups = int(shape["n_group"]) if int(shape["topk_group"]) < int(shape["n_group"]) else 1
    return (triton.next_power_of_2(groups),
            triton.next_power_of_2(int(shape["experts"]) // groups))


def space(target: GridTarget, shape: Shape) -> Space:
    """Tokens a program, and its warps: 1 to 32 scores a thread."""
    groups, members = _padded(shape)
    experts = groups * members

    def fits(config: Config) -> bool:
        rows, warps = int(config["rows"]), int(config["warps"])
        threads = target.warp_size * warps
        return (rows, warps) == (1, 1) or threads <= rows * experts <= 32 * threads

    return Space({"rows": (1, 2, 4, 8, 16), "warps": (1, 2, 4, 8)}, fits)


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """One launch; rows and columns of the logits may be strided."""
    groups, members = _padded(shape)
    grouped = int(shape["topk_group"]) < int(shape["n_group"])
    n_group, topk_group = (int(shape["n_group"]), int(shape["topk_group"])) if grouped else (1, 1)
    rows, size = int(config["rows"]), int(shape["experts"]) // n_group

    def run(logits: Tensor, bias: Tensor | None, top_k: int, scoring: str, _: int, __: int,
            group_score: str, norm_topk_prob: bool, routed_scaling_factor: float, *,
            out: Outputs) -> None:
        target.launch(moe_route, (triton.cdiv(logits.shape[0], rows),), logits,
                      out[0] if bias is None else bias.contiguous(), *out, logits.shape[0],
                      routed_scaling_factor, NORM_FLOOR, *logits.stride(),
                      MASKED=mask_value(scoring, bias is not None), SIZE=size, MEMBERS=members,
                      N_GROUP=n_group, GROUPS=groups, TOPK_GROUP=topk_group,
                      TOP2=group_score == "top2_sum", SOFTMAX=scoring == "softmax",
                      HAS_BIAS=bias is not None, NORM=norm_topk_prob, TOP_K=top_k,
                      WIDTH=triton.next_power_of_2(top_k), ROWS=rows,
                      num_warps=int(config["warps"]))

    return run
