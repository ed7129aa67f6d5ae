"""The two kernels of MLA decode on GPUs: one split of the keys for a block of rows, and the merge.

Split-KV is flash-decoding (Dao et al., 2023). With few rows the products are transposed, as in
FlashMLA-ETAP: keys then stand on the side of the matrix unit that wants 64 of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton.fp8 import decode


@triton.jit
def queries(q, row, there, first, DV: tl.constexpr, CHUNK: tl.constexpr, AXIS: tl.constexpr,
            WIDE: tl.constexpr):
    """Features first .. first + CHUNK of some rows; rows stand along axis 1 - AXIS."""
    column = first + tl.arange(0, CHUNK)
    at = tl.expand_dims(row, AXIS) + tl.expand_dims(column, 1 - AXIS)
    mask = tl.expand_dims(there, AXIS)
    if DV % CHUNK != 0:
        mask = mask & tl.expand_dims(column < DV, 1 - AXIS)
    x = tl.load(q + at, mask=mask, other=0.0)
    return x.to(tl.float32) if WIDE else x


@triton.jit
def latents(kv, row, there, first, DV: tl.constexpr, CHUNK: tl.constexpr, FP8: tl.constexpr,
            WIDE: tl.constexpr):
    """Features first .. first + CHUNK of some tokens, [BLOCK_N, CHUNK]; FP8 ones are codes."""
    column = tl.arange(0, CHUNK)
    mask = there[:, None]
    if DV % CHUNK != 0:
        mask = mask & (first + column < DV)[None, :]
    # the chunk moves the pointer alone: all chunks share the registers of their rows' addresses
    at = kv + first + (row[:, None] + column[None, :])
    if FP8 == "none":
        x = tl.load(at, mask=mask, other=0.0)
        return x.to(tl.float32) if WIDE else x
    else:
        zero: tl.constexpr = 0.0 if FP8 == "native" else 0
        x = decode(tl.load(at, mask=mask, other=zero), FP8)
        return x if WIDE else x.to(tl.bfloat16)


@triton.jit
def scales_of(scales, slot, group, there, DV: tl.constexpr, GROUPS: tl.constexpr,
              ROW: tl.constexpr):
    """The scale of one group of some tokens of an FP8 cache; beyond the last, any one will do."""
    at = slot * (ROW // 4) + DV // 4 + tl.minimum(group, GROUPS - 1)
    return tl.load(scales + at, mask=there, other=0.0)


@triton.jit
def add_scores(s, q, k, scale, AXIS: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr):
    """s + q k^T, or its transpose. An FP8 token's scale is applied to its float32 product, so that
    the matrix unit sees exact codes."""
    if FP8 == "none":
        return product(q, k, s, AXIS, PRECISION)
    else:
        return s + product(q, k, tl.zeros_like(s), AXIS, PRECISION) * tl.expand_dims(
            scale, 1 - AXIS)


@triton.jit
def add_other(s, q, kv, scales, slot, there, chunk, DV: tl.constexpr, GROUPS: tl.constexpr,
              ROW: tl.constexpr, CHUNK: tl.constexpr, AXIS: tl.constexpr, FP8: tl.constexpr,
              WIDE: tl.constexpr, PRECISION: tl.constexpr):
    """Scores of a chunk whose values another program adds up."""
    scale = there
    if FP8 != "none":
        scale = scales_of(scales, slot, chunk, there, DV, GROUPS, ROW)
    k = latents(kv, slot * ROW, there, chunk * CHUNK, DV, CHUNK, FP8, WIDE)
    return add_scores(s, q, k, scale, AXIS, FP8, PRECISION)


@triton.jit
def product(q, k, s, AXIS: tl.constexpr, PRECISION: tl.constexpr):
    """s [rows, tokens] + q k^T, or transposed."""
    if AXIS == 1:
        return tl.dot(q, tl.trans(k), s, input_precision=PRECISION)
    else:
        return tl.dot(k, q, s, input_precision=PRECISION)


@triton.jit
def add_values(acc, p, v, scale, shrink, AXIS: tl.constexpr, FP8: tl.constexpr,
               PRECISION: tl.constexpr):
    """acc [rows, features] * shrink + p v, or transposed; the scale of an FP8 token joins p."""
    if FP8 != "none":
        p = p * tl.expand_dims(scale, 1 - AXIS)
    acc = acc * tl.expand_dims(shrink, AXIS)
    if AXIS == 1:
        return tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    else:
        return tl.dot(tl.trans(v), p.to(v.dtype), acc, input_precision=PRECISION)


@triton.jit
def store_values(o, acc, total, row, there, first, DV: tl.constexpr, CHUNK: tl.constexpr,
                 AXIS: tl.constexpr):
    """acc / total to rows of o; 0 where total is 0: nothing was seen."""
    column = first + tl.arange(0, CHUNK)
    mask = tl.expand_dims(there, AXIS)
    if DV % CHUNK != 0:
        mask = mask & tl.expand_dims(column < DV, 1 - AXIS)
    acc = acc * tl.expand_dims(1.0 / tl.where(total > 0.0, total, 1.0), AXIS)
    tl.store(o + (tl.expand_dims(row, AXIS) + tl.expand_dims(column, 1 - AXIS)),
             acc.to(o.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["softmax_scale", "splits", "pages", "capacity", "table_width"])
def mla_decode_split(q, kv, scales, ropes, table, lengths, o, lse, softmax_scale, splits, pages,
                     capacity, table_width,
                     HEADS: tl.constexpr, S_Q: tl.constexpr, DV: tl.constexpr, ROPE: tl.constexpr,
                     PAGE: tl.constexpr, CAUSAL: tl.constexpr, FP8: tl.constexpr,
                     WIDE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
                     CHUNK: tl.constexpr, OWN: tl.constexpr, PARTS: tl.constexpr,
                     DR: tl.constexpr, TRANSPOSED: tl.constexpr, DIRECT: tl.constexpr,
                     PRECISION: tl.constexpr):
    """Attention of BLOCK_H rows (s_q x heads) to the tokens of one split.

    A program holds OWN of the OWN * PARTS chunks of the output, and reads all of the latent for
    the scores. DIRECT writes o [B, s_q, H, Dv] and lse [B, H, s_q]; else the parts of a split:
    o [B, s_q, H, splits, Dv], lse [B, s_q, H, splits] of base 2, -inf where o is not written.
    """
    AXIS: tl.constexpr = 0 if TRANSPOSED else 1          # of the tokens in the scores
    ROWS: tl.constexpr = HEADS * S_Q
    D: tl.constexpr = DV + ROPE
    GROUPS: tl.constexpr = (DV + 127) // 128
    # elements of a cache row, and where its rope begins, in units of its pointer's type
    ROW: tl.constexpr = D if FP8 == "none" else DV + 4 * GROUPS + 2 * ROPE
    ROPE_ROW: tl.constexpr = D if FP8 == "none" else ROW // 2
    ROPE_AT: tl.constexpr = DV if FP8 == "none" else DV // 2 + 2 * GROUPS
    ALL: tl.constexpr = OWN * PARTS                      # chunks of the latent
    OTHERS: tl.constexpr = ALL - OWN
    BLOCKS: tl.constexpr = (ROWS + BLOCK_H - 1) // BLOCK_H
    program, split = tl.program_id(0), tl.program_id(1)
    part = program % PARTS
    block = program // PARTS % BLOCKS
    b = (program // (PARTS * BLOCKS)).to(tl.int64)
    n = tl.minimum(tl.maximum(tl.load(lengths + b), 0), capacity)
    per = tl.cdiv(tl.cdiv(n, BLOCK_N), splits) * BLOCK_N
    begin = split * per
    end = tl.minimum(begin + per, n)

    r = block * BLOCK_H + tl.arange(0, BLOCK_H)
    there = r < ROWS
    q_row = (b * ROWS + r) * D
    own = part * OWN
    q0 = queries(q, q_row, there, own * CHUNK, DV, CHUNK, AXIS, WIDE)
    acc0 = tl.zeros((CHUNK, BLOCK_H) if TRANSPOSED else (BLOCK_H, CHUNK), tl.float32)
    if OWN > 1:
        q1 = queries(q, q_row, there, own * CHUNK + CHUNK, DV, CHUNK, AXIS, WIDE)
        acc1 = tl.zeros_like(acc0)
    if OWN > 2:
        q2 = queries(q, q_row, there, own * CHUNK + 2 * CHUNK, DV, CHUNK, AXIS, WIDE)
        q3 = queries(q, q_row, there, own * CHUNK + 3 * CHUNK, DV, CHUNK, AXIS, WIDE)
        acc2 = tl.zeros_like(acc0)
        acc3 = tl.zeros_like(acc0)
    # what other programs hold of the output, this one needs for its scores
    if OTHERS > 0:
        q4 = queries(q, q_row, there, (own + OWN) % ALL * CHUNK, DV, CHUNK, AXIS, WIDE)
    if OTHERS > 1:
        q5 = queries(q, q_row, there, (own + OWN + 1) % ALL * CHUNK, DV, CHUNK, AXIS, WIDE)
    if OTHERS > 2:
        q6 = queries(q, q_row, there, (own + OWN + 2) % ALL * CHUNK, DV, CHUNK, AXIS, WIDE)
    if ROPE > 0:
        q_rope = queries(q + DV, q_row, there, 0, ROPE, DR, AXIS, WIDE)
    top = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    to_log2 = softmax_scale * 1.4426950408889634

    for at in range(begin, end, BLOCK_N):
        token = at + tl.arange(0, BLOCK_N)
        seen = token < end
        if PAGE % BLOCK_N == 0:      # a step lies within one page
            page = tl.load(table + b * table_width + at // PAGE)
            first = tl.minimum(tl.maximum(page, 0), pages - 1).to(tl.int64) * PAGE + at % PAGE
            slot = tl.arange(0, BLOCK_N)
        else:
            page = tl.load(table + b * table_width + token // PAGE, mask=seen, other=0)
            first = at * 0
            slot = tl.minimum(tl.maximum(page, 0), pages - 1).to(tl.int64) * PAGE + token % PAGE
        row = slot * ROW
        kv_at = kv + first * ROW
        scales_at = scales + first * (ROW // 4)
        ropes_at = ropes + (first * ROPE_ROW + ROPE_AT)
        scale0 = seen
        scale1 = seen
        scale2 = seen
        scale3 = seen
        s = tl.zeros((BLOCK_N, BLOCK_H) if TRANSPOSED else (BLOCK_H, BLOCK_N), tl.float32)
        if FP8 != "none":
            scale0 = scales_of(scales_at, slot, own, seen, DV, GROUPS, ROW)
        k0 = latents(kv_at, row, seen, own * CHUNK, DV, CHUNK, FP8, WIDE)
        s = add_scores(s, q0, k0, scale0, AXIS, FP8, PRECISION)
        if OWN > 1:
            if FP8 != "none":
                scale1 = scales_of(scales_at, slot, own + 1, seen, DV, GROUPS, ROW)
            k1 = latents(kv_at, row, seen, own * CHUNK + CHUNK, DV, CHUNK, FP8, WIDE)
            s = add_scores(s, q1, k1, scale1, AXIS, FP8, PRECISION)
        if OWN > 2:
            if FP8 != "none":
                scale2 = scales_of(scales_at, slot, own + 2, seen, DV, GROUPS, ROW)
                scale3 = scales_of(scales_at, slot, own + 3, seen, DV, GROUPS, ROW)
            k2 = latents(kv_at, row, seen, own * CHUNK + 2 * CHUNK, DV, CHUNK, FP8, WIDE)
            s = add_scores(s, q2, k2, scale2, AXIS, FP8, PRECISION)
            k3 = latents(kv_at, row, seen, own * CHUNK + 3 * CHUNK, DV, CHUNK, FP8, WIDE)
            s = add_scores(s, q3, k3, scale3, AXIS, FP8, PRECISION)
        if OTHERS > 0:
            s = add_other(s, q4, kv_at, scales_at, slot, seen, (own + OWN) % ALL, DV, GROUPS, ROW,
                          CHUNK, AXIS, FP8, WIDE, PRECISION)
        if OTHERS > 1:
            s = add_other(s, q5, kv_at, scales_at, slot, seen, (own + OWN + 1) % ALL, DV, GROUPS,
                          ROW, CHUNK, AXIS, FP8, WIDE, PRECISION)
        if OTHERS > 2:
            s = add_other(s, q6, kv_at, scales_at, slot, seen, (own + OWN + 2) % ALL, DV, GROUPS,
                          ROW, CHUNK, AXIS, FP8, WIDE, PRECISION)
        for j in tl.static_range(OWN + 3, ALL):      # of a head_dim_v beyond 512
            q_j = queries(q, q_row, there, (own + j) % ALL * CHUNK, DV, CHUNK, AXIS, WIDE)
            s = add_other(s, q_j, kv_at, scales_at, slot, seen, (own + j) % ALL, DV, GROUPS, ROW,
                          CHUNK, AXIS, FP8, WIDE, PRECISION)
        if ROPE > 0:
            k_rope = latents(ropes_at, slot * ROPE_ROW, seen, 0, ROPE, DR, "none", WIDE)
            s = product(q_rope, k_rope, s, AXIS, PRECISION)

        visible = tl.expand_dims(seen, 1 - AXIS)
        if CAUSAL and S_Q > 1:
            visible = visible & (tl.expand_dims(token, 1 - AXIS)
                                 < tl.expand_dims(n - S_Q + 1 + r // HEADS, AXIS))
        s = tl.where(visible, s * to_log2, float("-inf"))
        higher = tl.maximum(top, tl.max(s, AXIS))
        base = higher
        if CAUSAL and S_Q > 1:       # a row may not have seen anything yet: -inf - -inf is NaN
            base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - tl.expand_dims(base, AXIS))
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(p, AXIS)
        top = higher
        acc0 = add_values(acc0, p, k0, scale0, shrink, AXIS, FP8, PRECISION)
        if OWN > 1:
            acc1 = add_values(acc1, p, k1, scale1, shrink, AXIS, FP8, PRECISION)
        if OWN > 2:
            acc2 = add_values(acc2, p, k2, scale2, shrink, AXIS, FP8, PRECISION)
            acc3 = add_values(acc3, p, k3, scale3, shrink, AXIS, FP8, PRECISION)

    log2_sum = top + tl.log2(total)
    if DIRECT:
        o_row = (b * ROWS + r) * DV
        written = there
        if part == 0:
            tl.store(lse + (b * ROWS + r % HEADS * S_Q + r // HEADS),
                     log2_sum * 0.6931471805599453, mask=there)
    else:
        o_row = ((b * ROWS + r) * splits + split) * DV
        written = there & (total > 0.0)
        if part == 0:
            tl.store(lse + ((b * ROWS + r) * splits + split), log2_sum, mask=there)
    store_values(o, acc0, total, o_row, written, own * CHUNK, DV, CHUNK, AXIS)
    if OWN > 1:
        store_values(o, acc1, total, o_row, written, own * CHUNK + CHUNK, DV, CHUNK, AXIS)
    if OWN > 2:
        store_values(o, acc2, total, o_row, written, own * CHUNK + 2 * CHUNK, DV, CHUNK, AXIS)
        store_values(o, acc3, total, o_row, written, own * CHUNK + 3 * CHUNK, DV, CHUNK, AXIS)


@triton.jit(do_not_specialize=["rows"])
def mla_decode_combine(parts, part_lse, o, lse, rows, HEADS: tl.constexpr, S_Q: tl.constexpr,
                       DV: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
                       COLUMNS: tl.constexpr):
    """Merge the splits of TILE rows and COLUMNS features; reads o only where lse is not -inf."""
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = row < rows
    of_splits = tl.load(part_lse + (row[:, None] * SPLITS + tl.arange(0, SPLITS)[None, :]),
                        mask=there[:, None], other=float("-inf"))
    top = tl.max(of_splits, 1)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2(of_splits - base[:, None]), 1)
    acc = tl.zeros((TILE, COLUMNS), tl.float32)
    for split in tl.static_range(SPLITS):
        one = tl.load(part_lse + (row * SPLITS + split), mask=there, other=float("-inf"))
        x = tl.load(parts + ((row * SPLITS + split) * DV)[:, None] + column[None, :],
                    mask=(one > float("-inf"))[:, None] & (column < DV)[None, :], other=0.0)
        acc += x * tl.exp2(one - base)[:, None]
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(o + (row * DV)[:, None] + column[None, :], acc.to(o.dtype.element_ty),
             mask=there[:, None] & (column < DV)[None, :])
    if tl.program_id(1) == 0:
        r = row % (HEADS * S_Q)
        tl.store(lse + (row - r + r % HEADS * S_Q + r // HEADS),
                 (base + tl.log2(total)) * 0.6931471805599453, mask=there)
