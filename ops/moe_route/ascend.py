"""Ascend lowering: a tile of tokens, its experts by groups; each round takes every row's best.

Positions are float32 so that one kind of reduction, the maximum, finds values and positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from tvm.script.ir_builder import tirx as T

from .._ascend.casts import compiler_flags, row_space, widened
from .._ascend.tile import Kernel as Tiles
from .._ascend.tile import constant, kernel
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape
from . import NORM_FLOOR, mask_value

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget

# Of a tile's columns: then rows touch, of float16 too (masks pass through it). Else masks are made
# row by row over the rows that they are made of, while the vector unit may be reading these.
_LANES = 16
_OUT, _TAKEN, _NOWHERE = -3.0e38, -3.3e38, -1e9  # finite: -inf minus -inf would be NaN


def space(target: AscendTarget, shape: Shape) -> Space:
    """Tokens of a tile."""
    return row_space(target, int(shape["tokens"]), int(shape["experts"]) * 28)


class _Rows:
    """Vectors and tiles over the rows of one program."""

    def __init__(self, k: Tiles, rows: int, size: int):
        self.k, self.rows, self.size = k, rows, size

    def vector(self, value: Any) -> Any:
        """A float32 for each row."""
        return self.k.new((self.rows,), "float32", value)

    def tile(self, value: Any) -> Any:
        """A float32 for each row and expert of a group."""
        return self.k.new((self.rows, self.size), "float32", value)

    def fence(self, tiles: list[Any], size: int) -> list[Any]:
        """The tiles with what nobody chooses in the columns from `size` on."""
        real, taken = (self.k.new((self.size,), "float32", lambda j, a=a, b=b: T.Select(
            j < size, T.float32(a), T.float32(b))) for a, b in ((1, 0), (0, _TAKEN)))
        return [self.tile(lambda i, j, x=x: x[i, j] * real[j] + taken[j]) for x in tiles]

    def reduce(self, kind: str, start: float, value: Any) -> Any:
        """A number for each row from its experts."""
        into = self.k.fill((self.rows,), "float32", start)
        self.k.reduce(kind, into, (self.rows, self.size), value)
        return into

    def best(self, tile: Any, first: int) -> tuple[Any, Any]:
        """Each row's largest value, and minus the lowest expert that has it."""
        top = self.reduce("max", _TAKEN, lambda i, j: tile[i, j])
        at = self.reduce("max", _NOWHERE, lambda i, j: T.Select(
            tile[i, j] == top[i], T.float32(-first) - T.Cast("float32", j), T.float32(_NOWHERE)))
        return top, at

    def largest(self, vectors: list[Any]) -> Any:
        """The largest of several vectors."""
        made = vectors[0]
        for v in vectors[1:]:
            made = self.vector(lambda i, made=made, v=v: T.max(made[i], v[i]))
        return made

    def is_at(self, at: Any, first: int, i: Any, j: Any) -> Any:
        """Whether expert first + j is the one at minus at[i]."""
        return T.float32(-first) - T.Cast("float32", j) == at[i]


def _scores(r: _Rows, softmax: bool, logits: list[Any]) -> list[Any]:
    """Softmax over all groups' experts, or sigmoid."""
    if not softmax:
        return [r.tile(lambda i, j, x=x: T.float32(1) / (
            T.float32(1) + T.exp(T.float32(0) - x[i, j]))) for x in logits]
    top = r.largest([r.reduce("max", _TAKEN, lambda i, j, x=x: x[i, j]) for x in logits])
    powers = [r.tile(lambda i, j, x=x: T.exp(x[i, j] - top[i])) for x in logits]
    total = r.vector(lambda i: T.float32(0))
    for p in powers:
        one = r.reduce("add", 0, lambda i, j, p=p: p[i, j])
        total = r.vector(lambda i, one=one, total=total: total[i] + one[i])
    return [r.tile(lambda i, j, p=p: p[i, j] / total[i]) for p in powers]


def _kept(r: _Rows, choices: list[Any], topk_group: int, top2: bool) -> list[Any] | None:
    """1 for each row whose group stays, else 0; None where all stay."""
    if topk_group == len(choices):
        return None
    values = []
    for c in choices:
        top, at = r.best(c, 0)
        if top2:
            rest = r.tile(lambda i, j, c=c, at=at: T.Select(
                r.is_at(at, 0, i, j), T.float32(_TAKEN), c[i, j]))
            second = r.reduce("max", _TAKEN, lambda i, j, rest=rest: rest[i, j])
            top = r.vector(lambda i, top=top, second=second: top[i] + second[i])
        values.append(top)
    kept = []
    for g, v in enumerate(values):
        rank = r.vector(lambda i: T.float32(0))
        for h, w in enumerate(values):
            if h != g:                   # of equal groups the lower one stays
                rank = r.vector(lambda i, rank=rank, v=v, w=w, h=h, g=g: rank[i] + T.Select(
                    w[i] >= v[i] if h < g else w[i] > v[i], T.float32(1), T.float32(0)))
        kept.append(r.vector(lambda i, rank=rank: T.Select(
            rank[i] < T.float32(topk_group), T.float32(1), T.float32(0))))
    return kept


def program(shape: Shape, config: Config) -> Any:
    """moe_route(tokens, factor, logits [T, E], bias [E], weights [T, k], ids [T, k])."""
    e, top_k, groups, topk_group = (int(shape[a]) for a in (
        "experts", "top_k", "n_group", "topk_group"))
    rows, size, dtype = int(config["rows"]), e // groups, str(shape["dtype"])
    masked = mask_value(str(shape["scoring"]), bool(shape["has_bias"]))
    with kernel("moe_route") as k:
        tokens, factor = k.scalar("tokens"), k.float_scalar("factor")
        logits = k.tensor("logits", (tokens, e), dtype)
        bias = k.tensor("bias", (e,), "float32") if shape["has_bias"] else None
        weights = k.tensor("weights", (tokens, top_k), "float32")
        ids = k.tensor("ids", (tokens, top_k), "int32")
        first = k.block("x", T.ceildiv(tokens, rows)) * rows
        r = _Rows(k, rows, -(-size // _LANES) * _LANES)

        def fenced(tiles: list[Any]) -> list[Any]:
            return tiles if r.size == size else r.fence(tiles, size)

        def there(i: Any, *_: Any) -> Any:
            return first + i < tokens

        def inside(i: Any, j: Any) -> Any:
            return there(i) if r.size == size else T.And(there(i), j < size)

        def group(g: int) -> Any:
            return widened(k, k.new((rows, r.size), dtype, lambda i, j: T.if_then_else(
                inside(i, j), logits[first + i, g * size + j], constant(0, dtype))))

        scores = _scores(r, shape["scoring"] == "softmax",
                         fenced([group(g) for g in range(groups)]))
        choices = scores
        if bias is not None:
            parts = [k.new((r.size,), "float32", lambda j, g=g: T.if_then_else(
                         j < size, bias[g * size + j], T.float32(0)) if r.size != size
                         else bias[g * size + j]) for g in range(groups)]
            choices = [r.tile(lambda i, j, s=s, b=b: s[i, j] + b[j])
                       for s, b in zip(scores, parts, strict=True)]
        top2 = shape["group_score"] == "top2_sum" and size > 1
        kept = _kept(r, fenced(choices), topk_group, top2)
        if kept is not None:
            out = T.float32(_OUT if masked else 0.0)
            choices = [r.tile(lambda i, j, c=c, keep=keep: T.Select(
                keep[i] > T.float32(0), c[i, j], out)) for c, keep in zip(choices, kept,
                                                                          strict=True)]
            if not masked:
                scores = choices
        left = [r.tile(lambda i, j, c=c: c[i, j]) for c in fenced(choices)]
        w, at = k.fill((rows, top_k), "float32", 0), k.fill((rows, top_k), "float32", 0)
        with k.loop(top_k) as turn:
            bests = [r.best(x, g * size) for g, x in enumerate(left)]
            top = r.largest([value for value, _ in bests])
            where = r.largest([r.vector(lambda i, v=v, p=p: T.Select(
                v[i] == top[i], p[i], T.float32(_NOWHERE))) for v, p in bests])
            weight = r.vector(lambda i: T.float32(0))
            for g, score in enumerate(scores):
                one = r.reduce("add", 0, lambda i, j, g=g, score=score: T.Select(
                    r.is_at(where, g * size, i, j), score[i, j], T.float32(0)))
                weight = r.vector(lambda i, one=one, weight=weight: weight[i] + one[i])
            for g, x in enumerate(left):
                k.put(x, lambda i, j, g=g, x=x: T.Select(
                    r.is_at(where, g * size, i, j), T.float32(_TAKEN), x[i, j]))
            k.put(w, lambda i, j: T.Select(j == turn, weight[i], w[i, j]))
            k.put(at, lambda i, j: T.Select(j == turn, T.float32(0) - where[i], at[i, j]))
        if shape["norm"]:
            total = k.fill((rows,), "float32", NORM_FLOOR)
            k.reduce("add", total, (rows, top_k), lambda i, j: w[i, j])
            w = k.new((rows, top_k), "float32", lambda i, j: w[i, j] / total[i])
        k.store(weights, (rows, top_k), lambda i, j: (first + i, j), lambda i, j: w[i, j] * factor,
                there)
        k.store(ids, (rows, top_k), lambda i, j: (first + i, j),
                lambda i, j: T.Cast("int32", at[i, j]), there)
    return k.func


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """Logits whose rows are not dense are copied."""
    made, rows = program(shape, config), int(config["rows"])

    def run(logits: Tensor, bias: Tensor | None, top_k: int, scoring: str, n_group: int,
            topk_group: int, group_score: str, norm_topk_prob: bool,
            routed_scaling_factor: float, *, out: Outputs) -> None:
        if not logits.shape[0]:
            return
        given = [logits.contiguous(), *([] if bias is None else [bias.contiguous()])]
        target.launch(made, (-(-logits.shape[0] // rows),), logits.shape[0],
                      float(routed_scaling_factor), *given, *out, **compiler_flags(config))

    return run
