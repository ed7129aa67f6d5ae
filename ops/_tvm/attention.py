"""One block of keys under online softmax (FlashAttention-2, Dao 2023), for decode and prefill.

All operands are float32 scratch with rows padded to whole vectors. Scores are dot products along
the feature axis in mr x nr register tiles, so nothing is transposed or packed; the softmax runs
along the keys, and probabilities are broadcast over the value features.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import Any, NamedTuple

from tvm.script import tirx as T

from ..space import Knob
from .exp2 import exp2_nonpositive

NO_KEY = -1e30                       # a row maximum that no score reaches: no key seen so far


@dataclass(frozen=True)
class Tile:
    """Compile-time sizes of one block. Widths are padded to whole vectors."""

    lanes: int
    keys: int                        # keys in a block
    d_qk: int
    d_v: int
    mr: int                          # score tile: mr rows x nr keys
    nr: int
    pr: int                          # output tile: pr rows x pv vectors
    pv: int
    unroll: int                      # of the dot product

    @property
    def key_rows(self) -> int:
        """Rows of the key scratch: whole score tiles."""
        return padded(self.keys, self.nr)

    @property
    def columns(self) -> int:
        """Columns of the score scratch: whole score tiles and whole vectors."""
        return max(self.key_rows, padded(self.keys, self.lanes))

    @property
    def sums(self) -> int:
        """Scores of a tile."""
        return self.mr * self.nr

    @property
    def registers(self) -> int:
        """float32 elements of the accumulators."""
        return self.lanes * max(self.mr * self.nr, self.pr * self.pv)


def padded(size: int, unit: int) -> int:
    """The smallest multiple of unit that holds size."""
    return -(-size // unit) * unit


class Steps(NamedTuple):
    """The macros of one block; each is a T.inline function."""

    start: Any                       # (acc, top, total, rows)
    scores: Any                      # (q, keys, s, sees, reg, half, quarter, rows, n)
    softmax: Any                     # (s, sees, top, total, rescale, lane, rows, n)
    accumulate: Any                  # (s, sees, values, acc, rescale, reg, rows)


def lane_sum(buffer: Any, base: Any, lanes: int) -> Any:
    """The sum of `lanes` neighbours as a tree, which LLVM turns into shuffles."""
    terms = [buffer[base + i] for i in range(lanes)]
    while len(terms) > 1:
        half = len(terms) // 2
        terms = [terms[i] + terms[i + half] for i in range(half)]
    return terms[0]


def steps(t: Tile) -> Steps:
    """The macros for one tile size.

    `rows` must be a multiple of mr and pr; the block holds n <= t.keys keys, of which row r sees
    the first sees[r] <= n; later rows see no fewer, so a tile's last row bounds its work.
    """
    V, mr, nr, pr, pv, unroll = t.lanes, t.mr, t.nr, t.pr, t.pv, t.unroll
    d_qk, d_v = t.d_qk, t.d_v

    @T.inline
    def start(acc, top, total, rows):  # type: ignore[no-untyped-def]
        for r in range(rows):
            top[r] = T.float32(NO_KEY)
            total[r] = T.float32(0)
            for d in range(d_v // V):
                for l in T.vectorized(V):
                    acc[r, d * V + l] = T.float32(0)

    def fold(reg: Any, half: Any, a: Any, l: Any) -> Any:
        """Lane l of four partial sums: 6 % faster scores than a tree of 16 scalars (AVX-512)."""
        if V == 4:
            return reg[a * V + l]
        wide = half if V == 16 else reg
        return wide[a * 8 + l] + wide[a * 8 + 4 + l]

    @T.inline
    def scores(q, keys, s, sees, reg, half, quarter, rows, n):  # type: ignore[no-untyped-def]
        for jt in range((n + (nr - 1)) // nr):
            for it in range(rows // mr):
                if jt * nr < sees[it * mr + (mr - 1)]:
                    for a in T.unroll(mr * nr):
                        for l in T.vectorized(V):
                            reg[a * V + l] = T.float32(0)
                    for d in range(d_qk // V // unroll):
                        for u in T.unroll(unroll):
                            for i in T.unroll(mr):
                                for j in T.unroll(nr):
                                    for l in T.vectorized(V):
                                        reg[(i * nr + j) * V + l] = (
                                            reg[(i * nr + j) * V + l]
                                            + q[it * mr + i, (d * unroll + u) * V + l]
                                            * keys[jt * nr + j, (d * unroll + u) * V + l])
                    for a in T.unroll(mr * nr):
                        if V == 16:
                            for l in T.vectorized(8):
                                half[a * 8 + l] = reg[a * V + l] + reg[a * V + 8 + l]
                        for l in T.vectorized(4):
                            quarter[a * 4 + l] = fold(reg, half, a, l)
                    for i in T.unroll(mr):
                        for j in T.unroll(nr):
                            s[it * mr + i, jt * nr + j] = lane_sum(quarter, (i * nr + j) * 4, 4)

    @T.inline
    def softmax(s, sees, top, total, rescale, lane, rows, n):  # type: ignore[no-untyped-def]
        for r in range(rows):
            for l in T.vectorized(V):
                lane[l] = top[r]
            for c in range((n + (V - 1)) // V):
                for l in T.vectorized(V):  # select, do not multiply: what is masked may be NaN
                    lane[l] = T.max(lane[l], T.Select(c * V + l < sees[r], s[r, c * V + l],
                                                      T.float32(NO_KEY)))
            rescale[r] = top[r]
            for l in range(V):
                top[r] = T.max(top[r], lane[l])
            rescale[r] = exp2_nonpositive(rescale[r] - top[r])
            for l in T.vectorized(V):
                lane[l] = T.float32(0)
            for c in range((n + (V - 1)) // V):
                for l in T.vectorized(V):
                    s[r, c * V + l] = T.Select(c * V + l < sees[r],
                                               exp2_nonpositive(s[r, c * V + l] - top[r]),
                                               T.float32(0))
                for l in T.vectorized(V):
                    lane[l] = lane[l] + s[r, c * V + l]
            total[r] = total[r] * rescale[r] + lane_sum(lane, 0, V)

    @T.inline
    def accumulate(s, sees, values, acc, rescale, reg, rows):  # type: ignore[no-untyped-def]
        for dt in range(d_v // (V * pv)):
            for it in range(rows // pr):
                for i in T.unroll(pr):
                    for j in T.unroll(pv):
                        for l in T.vectorized(V):
                            reg[(i * pv + j) * V + l] = (
                                acc[it * pr + i, (dt * pv + j) * V + l] * rescale[it * pr + i])
                for k in range(sees[it * pr + (pr - 1)]):
                    for i in T.unroll(pr):
                        for j in T.unroll(pv):
                            for l in T.vectorized(V):
                                reg[(i * pv + j) * V + l] = (
                                    reg[(i * pv + j) * V + l]
                                    + s[it * pr + i, k] * values[k, (dt * pv + j) * V + l])
                for i in T.unroll(pr):
                    for j in T.unroll(pv):
                        for l in T.vectorized(V):
                            acc[it * pr + i, (dt * pv + j) * V + l] = reg[(i * pv + j) * V + l]

    return Steps(start, scores, softmax, accumulate)


def tile_sizes(tile: Knob) -> tuple[int, int]:
    """The two numbers of a "rows x columns" knob."""
    rows, _, columns = str(tile).partition("x")
    return int(rows), int(columns)


def waste(rows: int, group: int, unit: int) -> float:
    """Rows computed, with groups padded to whole tiles, over rows asked for."""
    full, rest = divmod(rows, group)
    return (full * padded(group, unit) + padded(rest, unit)) / rows


def tile_choices(rows: int, lanes: int, vectors: int = 0, beside: int = 1) -> tuple[str, ...]:
    """The three "rows x columns" register tiles that load least per FMA, best first.

    Columns are keys, or with `vectors` vectors of the output that must divide; `beside` is the
    row count of the tile that shares the padding.
    """
    most = {16: 16, 8: 12}.get(lanes, 16)      # accumulators; AVX2 has 16 registers in all
    found = []
    for r in (1, 2, 3, 4, 5, 6, 8):
        for c in (1, 2, 3, 4, 6, 8):
            if r * c <= most and (not vectors or vectors % c == 0):
                loads = (r + c) / (r * c)
                stalls = max(1.0, 8 / (r * c))           # 2 FMAs a cycle take 4 cycles each
                padding = waste(rows, rows, lcm(r, beside))
                found.append((padding * max(stalls, 2 * loads), padding * loads, f"{r}x{c}"))
    return tuple(name for _, _, name in sorted(found)[:3])
