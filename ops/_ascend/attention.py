"""Online softmax over tiles of keys (Milakov and Gimelshein, 2018), as tile programs hold it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from .tile import Kernel

# Below every real score, and finite: the difference of two of them is 0, not NaN.
NOTHING = -1e30


@dataclass(frozen=True)
class State:
    """Of each query row: its largest score, the sum of weights, the weighted values by chunks."""

    top: Any                         # [rows]
    total: Any                       # [rows]
    acc: tuple[Any, ...]             # [rows, width of the chunk]
    dtype: str                       # of the weights in the second product


def start(k: Kernel, rows: int, widths: Sequence[int], dtype: str) -> State:
    """No key seen."""
    return State(k.fill((rows,), "float32", NOTHING), k.fill((rows,), "float32", 0),
                 tuple(k.fill((rows, w), "float32", 0) for w in widths), dtype)


def scores(k: Kernel, queries: Sequence[Any], keys: Sequence[Any], factors: Sequence[Any]) -> Any:
    """Sum of query times key over pairs of tiles [rows, w] and [keys, w].

    factors[c][j] is the scale of key j's features in pair c, or None where they have none.
    """
    shape = int(queries[0].shape[0]), int(keys[0].shape[0])
    made = k.fill(shape, "float32", 0)
    plain = [c for c, factor in enumerate(factors) if factor is None]
    for c in plain:
        k.matmul(made, queries[c], keys[c], transposed=True)
    for c in range(len(keys)):
        if c not in plain:
            part, factor = k.fill(shape, "float32", 0), factors[c]
            k.matmul(part, queries[c], keys[c], transposed=True)
            k.put(made, lambda i, j, part=part, factor=factor:
                  made[i, j] + part[i, j] * factor[j])
    return made


def add(k: Kernel, s: State, raw: Any, scale: Any, seen: Callable[[Any, Any], Any],
        values: Sequence[Any], factors: Sequence[Any]) -> None:
    """Take in a tile of scores; key j counts for row i where seen(i, j). Factors as in `scores`."""
    shape = tuple(int(n) for n in raw.shape)
    score = k.new(shape, "float32", lambda i, j: T.Select(
        seen(i, j), raw[i, j] * scale, T.float32(NOTHING)))
    top = k.new(shape[:1], "float32", lambda i: s.top[i])
    k.reduce("max", top, shape, lambda i, j: score[i, j])
    # a row that has seen nothing yet would give its masked keys exp(0)
    weight = k.new(shape, "float32", lambda i, j: T.Select(
        seen(i, j), T.exp(score[i, j] - top[i]), T.float32(0)))
    shrink = k.new(shape[:1], "float32", lambda i: T.exp(s.top[i] - top[i]))
    sums = k.fill(shape[:1], "float32", 0)
    k.reduce("add", sums, shape, lambda i, j: weight[i, j])
    k.put(s.total, lambda i: s.total[i] * shrink[i] + sums[i])
    k.put(s.top, lambda i: top[i])
    for acc, value, factor in zip(s.acc, values, factors, strict=True):
        scaled = weight if factor is None else k.new(
            shape, "float32", lambda i, j, factor=factor: weight[i, j] * factor[j])
        narrow = scaled if s.dtype == "float32" else k.new(
            shape, s.dtype, lambda i, j, scaled=scaled: T.Cast(s.dtype, scaled[i, j]))
        part = k.fill(tuple(int(n) for n in acc.shape), "float32", 0)
        k.matmul(part, narrow, value)
        k.put(acc, lambda i, j, acc=acc, part=part: acc[i, j] * shrink[i] + part[i, j])


def divided(k: Kernel, s: State) -> tuple[Any, ...]:
    """The outputs by chunks; 0 for rows that saw no key."""
    safe = k.new((int(s.total.shape[0]),), "float32", lambda i: T.Select(
        s.total[i] > T.float32(0), s.total[i], T.float32(1)))
    return tuple(k.new(tuple(int(n) for n in acc.shape), "float32",
                       lambda i, j, acc=acc: acc[i, j] / safe[i]) for acc in s.acc)


def log_sum(k: Kernel, s: State, nothing: float) -> Any:
    """log(sum of exp) of each row; `nothing` for rows that saw no key."""
    rows = (int(s.total.shape[0]),)
    safe = k.new(rows, "float32", lambda i: T.max(s.total[i], T.float32(1e-30)))
    return k.new(rows, "float32", lambda i: T.Select(
        s.total[i] > T.float32(0), s.top[i] + T.log(safe[i]), T.FloatImm("float32", nothing)))
