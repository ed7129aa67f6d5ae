"""GPU lowering: flash attention, a block of queries of one head a program, ragged sequences listed
by a small kernel before."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..numerics import as_dtype
from ..space import Config, Knob, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.base import GridTarget

LN_2 = tl.constexpr(math.log(2))
LOG2_E = math.log2(math.e)
_FIELDS = 5                          # of a block: first query, queries, first key, keys, sees
_LIST_SLOTS, _LIST_SEQS = 64, 64     # of a program of `list_blocks`


@triton.jit
def larger(a, b):
    """The combination of a running maximum."""
    return tl.maximum(a, b)


@triton.jit(do_not_specialize=["tokens", "ctx", "batch", "slots"])
def list_blocks(cu_q, cu_k, table, tokens, ctx, batch, slots, BLOCK_M: tl.constexpr,
                CAUSAL: tl.constexpr, SLOTS: tl.constexpr, SEQS: tl.constexpr):
    """table [5, slots]: which queries and keys each block has; unneeded slots get 0 queries.

    Sequence e of batch + 2 begins at slot start // BLOCK_M + e, so its blocks have room without a
    count of the others'. The first and the last one are the tokens outside, which see no key.
    Offsets are clamped and made non-decreasing. sees = keys that the first query may see.
    """
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    begin = tl.zeros([SLOTS], tl.int32)          # of the slot's sequence: its first slot
    first, end = tl.zeros([SLOTS], tl.int32), tl.zeros([SLOTS], tl.int32)
    key, key_end = tl.zeros([SLOTS], tl.int32), tl.zeros([SLOTS], tl.int32)
    most_q = tokens * 0                          # largest offset of the sequences before
    most_k = tokens * 0
    for at in range(0, batch + 2, SEQS):
        e = at + tl.arange(0, SEQS)
        low_q = tl.load(cu_q + e - 1, mask=(e > 0) & (e <= batch + 1), other=0)
        low_k = tl.load(cu_k + e - 1, mask=(e > 0) & (e <= batch + 1), other=0)
        high_q = tl.where(e > batch, tokens, tl.load(cu_q + e, mask=e <= batch, other=0))
        high_k = tl.load(cu_k + e, mask=(e > 0) & (e <= batch), other=0)
        low_q = tl.associative_scan(tl.minimum(tl.maximum(low_q, most_q), tokens), 0, larger)
        low_k = tl.associative_scan(tl.minimum(tl.maximum(low_k, most_k), ctx), 0, larger)
        high_q = tl.maximum(low_q, tl.minimum(high_q, tokens))
        high_k = tl.maximum(low_k, tl.minimum(high_k, ctx))
        # everything grows with e, so the last sequence that begins at or before a slot is a maximum
        owns = (low_q // BLOCK_M + e)[None, :] <= slot[:, None]
        owns = owns & (e <= batch + 1)[None, :]
        begin = tl.maximum(begin, tl.max(tl.where(owns, (low_q // BLOCK_M + e)[None, :], 0), 1))
        first = tl.maximum(first, tl.max(tl.where(owns, low_q[None, :], 0), 1))
        end = tl.maximum(end, tl.max(tl.where(owns, high_q[None, :], 0), 1))
        key = tl.maximum(key, tl.max(tl.where(owns, low_k[None, :], 0), 1))
        key_end = tl.maximum(key_end, tl.max(tl.where(owns, high_k[None, :], 0), 1))
        most_q = tl.max(low_q, 0)
        most_k = tl.max(low_k, 0)
    row = (slot - begin) * BLOCK_M               # of the sequence
    rows = tl.minimum(tl.maximum(end - first - row, 0), BLOCK_M)
    keys = key_end - key
    sees = keys
    if CAUSAL:
        sees = keys - (end - first) + 1 + row
    there = slot < slots
    tl.store(table + slot, first + row, mask=there)
    tl.store(table + slots + slot, rows, mask=there)
    tl.store(table + 2 * slots + slot, key, mask=there)
    tl.store(table + 3 * slots + slot, keys, mask=there)
    tl.store(table + 4 * slots + slot, sees, mask=there)


@triton.jit
def tile(x, rows, stride, here, FROM: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
         MASKED: tl.constexpr):
    """Columns FROM to FROM + WIDTH of x's rows; zeros where not `here` (if MASKED) and past D."""
    column = FROM + tl.arange(0, WIDTH)
    at = x + rows[:, None] * stride + column[None, :]
    if FROM + WIDTH > D:
        return tl.load(at, mask=here[:, None] & (column < D)[None, :], other=0.0)
    elif MASKED:
        return tl.load(at, mask=here[:, None], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def attend(acc0, acc1, acc2, top, total, q0, q1, q2, k, v, k_t, v_t, start, sees, last, scale,
           BLOCK_N: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
           D2: tl.constexpr, V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr,
           V2: tl.constexpr, MASKED: tl.constexpr, NEGATIVE: tl.constexpr,
           PRECISION: tl.constexpr):
    """One block of keys: scores, online softmax in powers of two, weighted values.

    D = D0 + D1 + D2 and V = V0 + V1 + V2 but for padding in the last part that is not 0.
    """
    n = tl.arange(0, BLOCK_N)
    here = start + n < last
    k += (tl.zeros([], tl.int64) + start) * k_t
    v += (tl.zeros([], tl.int64) + start) * v_t
    s = tl.dot(q0, tl.trans(tile(k, n, k_t, here, 0, D0, D, MASKED)), input_precision=PRECISION)
    if D1:
        s = tl.dot(q1, tl.trans(tile(k, n, k_t, here, D0, D1, D, MASKED)), s,
                   input_precision=PRECISION)
    if D2:
        s = tl.dot(q2, tl.trans(tile(k, n, k_t, here, D0 + D1, D2, D, MASKED)), s,
                   input_precision=PRECISION)
    if NEGATIVE:
        s = -s
    if MASKED:
        s = tl.where((start + n)[None, :] < sees[:, None], s, float("-inf"))
    new = tl.maximum(top, tl.max(s, 1) * scale)
    shift = new
    if MASKED:                                   # no key yet: -inf - -inf would be NaN
        shift = tl.where(new == float("-inf"), 0.0, new)
    p = tl.exp2(s * scale - shift[:, None])
    fade = tl.exp2(top - shift)
    total = total * fade + tl.sum(p, 1)
    p = p.to(v.dtype.element_ty)
    acc0 = tl.dot(p, tile(v, n, v_t, here, 0, V0, V, MASKED), acc0 * fade[:, None],
                  input_precision=PRECISION)
    if V1:
        acc1 = tl.dot(p, tile(v, n, v_t, here, V0, V1, V, MASKED), acc1 * fade[:, None],
                      input_precision=PRECISION)
    if V2:
        acc2 = tl.dot(p, tile(v, n, v_t, here, V0 + V1, V2, V, MASKED), acc2 * fade[:, None],
                      input_precision=PRECISION)
    return acc0, acc1, acc2, new, total


@triton.jit
def put(o, rows, stride, o_d, here, acc, FROM: tl.constexpr, WIDTH: tl.constexpr,
        V: tl.constexpr):
    """Store acc as columns FROM to FROM + WIDTH, without those past V."""
    column = FROM + tl.arange(0, WIDTH)
    tl.store(o + rows[:, None] * stride + column[None, :] * o_d, acc.to(o.dtype.element_ty),
             mask=here[:, None] & (column < V)[None, :])


@triton.jit(do_not_specialize=["slots", "scale"])
def mla_prefill(q, k, v, table, o, lse, slots, scale, q_t, q_h, k_t, k_h, v_t, v_h, o_t, o_h, o_d,
                lse_h, lse_t, HEADS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
                V: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr,
                CAUSAL: tl.constexpr, HEADS_FASTEST: tl.constexpr, NEGATIVE: tl.constexpr,
                PRECISION: tl.constexpr):
    """Softmax attention of one block of `table` and one head; scale = |softmax_scale| * log2(e).

    FlashAttention-2 (Dao, arXiv 2307.08691) with the mask applied to the last blocks only. Blocks
    are taken from the end: those of a causal sequence's end have most keys, and what is left for
    the last programs is short.
    """
    if HEADS_FASTEST:
        head, slot = tl.program_id(0) % HEADS, slots - 1 - tl.program_id(0) // HEADS
    else:
        head, slot = tl.program_id(0) // slots, slots - 1 - tl.program_id(0) % slots
    rows = tl.load(table + slots + slot)
    if rows > 0:
        first = tl.load(table + slot).to(tl.int64)
        key = tl.load(table + 2 * slots + slot).to(tl.int64)
        keys = tl.load(table + 3 * slots + slot)
        least = tl.load(table + 4 * slots + slot)
        m = tl.arange(0, BLOCK_M)
        there = m < rows
        q += first * q_t + head.to(tl.int64) * q_h
        k += key * k_t + head.to(tl.int64) * k_h
        v += key * v_t + head.to(tl.int64) * v_h
        q0 = tile(q, m, q_t, there, 0, D0, D, True)
        q1, q2 = q0, q0                          # stand for parts that do not exist
        if D1:
            q1 = tile(q, m, q_t, there, D0, D1, D, True)
        if D2:
            q2 = tile(q, m, q_t, there, D0 + D1, D2, D, True)
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc0 = tl.zeros([BLOCK_M, V0], tl.float32)
        acc1, acc2 = total, total
        if V1:
            acc1 = tl.zeros([BLOCK_M, V1], tl.float32)
        if V2:
            acc2 = tl.zeros([BLOCK_M, V2], tl.float32)
        sees = tl.zeros([BLOCK_M], tl.int32) + keys
        last = keys                              # what the last row sees
        if CAUSAL:
            sees = tl.minimum(least + m, keys)
            last = tl.maximum(tl.minimum(least + rows - 1, keys), 0)
        whole = tl.maximum(tl.minimum(least, keys), 0) // BLOCK_N * BLOCK_N
        for start in range(0, whole, BLOCK_N):
            acc0, acc1, acc2, top, total = attend(
                acc0, acc1, acc2, top, total, q0, q1, q2, k, v, k_t, v_t, start, sees, last, scale,
                BLOCK_N, D, D0, D1, D2, V, V0, V1, V2, False, NEGATIVE, PRECISION)
        for start in range(whole, last, BLOCK_N):
            acc0, acc1, acc2, top, total = attend(
                acc0, acc1, acc2, top, total, q0, q1, q2, k, v, k_t, v_t, start, sees, last, scale,
                BLOCK_N, D, D0, D1, D2, V, V0, V1, V2, True, NEGATIVE, PRECISION)
        share = tl.where(total > 0, 1 / total, 0.0)[:, None]
        o += first * o_t + head.to(tl.int64) * o_h
        put(o, m, o_t, o_d, there, acc0 * share, 0, V0, V)
        if V1:
            put(o, m, o_t, o_d, there, acc1 * share, V0, V1, V)
        if V2:
            put(o, m, o_t, o_d, there, acc2 * share, V0 + V1, V2, V)
        logs = tl.where(total > 0, (top + tl.log2(total)) * LN_2, float("-inf"))
        tl.store(lse + head.to(tl.int64) * lse_h + (first + m) * lse_t, logs, mask=there)


def parts(width: int) -> tuple[int, int, int]:
    """A width as up to three powers of two from 16 on (192 = 128 + 64), the last one rounded up.

    Parts above 128 cost registers: at a width of 256, sm_90 spills with one part, not with two.
    """
    found: list[int] = []
    left = width
    while left > 0:
        part = min(128, 1 << (left.bit_length() - 1))
        if part < 16 or len(found) == 2:
            part = max(16, triton.next_power_of_2(left))
        found.append(part)
        left -= part
    a, b, c, *_ = *found, 0, 0
    return a, b, c


def _first(default: int, *others: int) -> tuple[Knob, ...]:
    return (default, *(x for x in others if x != default))


def space(target: GridTarget, shape: Shape) -> Space:
    """Tiles, warps, pipeline stages, and what runs fastest: heads or blocks of queries.

    The default has no spills on sm_80 to sm_120, gfx90a, gfx942 and gfx950 at 192/192/128 and
    256/256/256 in bfloat16 (compiled with triton 3.6.0 and 3.9.0).
    """
    amd, f32 = target.arch.startswith("gfx"), shape["dtype"] == "float32"
    operands_in_shared = target.arch in ("sm_90", "sm_100")      # wgmma, tcgen05
    wide = int(shape["d_v"]) > 128
    rows = int(shape["tokens"]) // max(int(shape["batch"]), 1)   # of a sequence, about
    most = 128 if operands_in_shared or target.arch == "gfx950" or not wide else 64
    if f32:
        most = 32
    block_m = max(16, min(most, triton.next_power_of_2(max(rows, 1))))
    short = amd or f32 or wide or target.arch == "sm_120" or block_m < 64
    few = amd or (not f32 and block_m < 32)
    knobs: dict[str, tuple[Knob, ...]] = {
        "block_m": _first(block_m, 128, 64, 32, 16),
        "block_n": _first(32 if short else 64, 64, 128, 32, 16),
        "warps": _first(4 if few else 8, 4, 8, 2),
        "stages": (2, 3, 4, 1), "fastest": ("blocks", "heads")}
    if amd:
        knobs["waves_per_eu"] = (0, 1, 2)
    elif f32:
        knobs["precision"] = ("tf32x3", "ieee")
    d_qk, d_v = (sum(parts(int(shape[a]))) for a in ("d_qk", "d_v"))
    size = as_dtype(str(shape["dtype"])).itemsize

    def where(c: Config) -> bool:
        m, n, warps, stages = (int(c[a]) for a in ("block_m", "block_n", "warps", "stages"))
        threads = warps * target.warp_size
        buffers = stages if target.arch == "gfx950" or not amd else max(1, stages - 1)
        shared = buffers * n * (d_qk + d_v) * size + operands_in_shared * m * d_qk * size
        state = m * (d_v + n) / threads          # float32 registers of a thread that must live
        if amd:                                  # 512 registers a thread, 256 at two waves a SIMD
            room = 16 if warps > 4 else 64 if c["waves_per_eu"] == 2 else 160
        else:
            room = 60 if m < 64 else 144 if operands_in_shared else 100
        return (shared < target.shared_bytes and state <= room
                and m * n >= 2 * threads) or c == first

    first = {name: choices[0] for name, choices in knobs.items()}
    return Space(knobs, where)


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """Two launches; q, k and v may be slices whose last axis is dense."""
    heads, d_qk, d_v = (int(shape[a]) for a in ("heads", "d_qk", "d_v"))
    block_m = int(config["block_m"])
    (d0, d1, d2), (v0, v1, v2) = parts(d_qk), parts(d_v)
    hints = {a: int(config[a]) for a in ("waves_per_eu",) if a in config}

    def dense(x: Tensor) -> Tensor:
        return x if x.stride(-1) == 1 else x.contiguous()

    def run(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
            softmax_scale: float, causal: bool, *, out: Outputs) -> None:
        if not q.shape[0]:
            return
        o, lse = out
        q, k, v = dense(q), dense(k), dense(v)
        batch = cu_seqlens_q.shape[0] - 1
        slots = q.shape[0] // block_m + batch + 2
        table = torch.empty(_FIELDS, slots, dtype=torch.int32, device=q.device)
        target.launch(list_blocks, (triton.cdiv(slots, _LIST_SLOTS),), cu_seqlens_q.contiguous(),
                      cu_seqlens_k.contiguous(), table, q.shape[0], k.shape[0], batch, slots,
                      BLOCK_M=block_m, CAUSAL=causal, SLOTS=_LIST_SLOTS, SEQS=_LIST_SEQS,
                      num_warps=4)
        # a scale of 0 would turn the mask's -inf into NaN
        target.launch(mla_prefill, (slots * heads,), q, k, v, table, o, lse, slots,
                      max(abs(softmax_scale), 1e-30) * LOG2_E, *q.stride()[:2], *k.stride()[:2],
                      *v.stride()[:2], *o.stride(), *lse.stride(), HEADS=heads, BLOCK_M=block_m,
                      BLOCK_N=int(config["block_n"]), D=d_qk, D0=d0, D1=d1, D2=d2, V=d_v, V0=v0,
                      V1=v1, V2=v2, CAUSAL=causal, HEADS_FASTEST=config["fastest"] == "heads",
                      NEGATIVE=softmax_scale < 0, PRECISION=config.get("precision", "ieee"),
                      num_warps=int(config["warps"]), num_stages=int(config["stages"]), **hints)

    return run
