"""Routing of tokens to experts as DeepSeek-V2 and -V3 define it.

    scores  = softmax(logits) over all experts, or sigmoid(logits); in float32
    choice  = scores + bias                      the bias selects ...
    a group's score is its best choice ("max", V2) or the sum of its two best ("top2_sum", V3);
    the topk_group best groups stay; choice elsewhere is 0 (V2: softmax without bias) or -inf
    ids     = the top_k best of choice           in descending order, ties to the lower id
    weights = scores[ids]                        ... and the unbiased score weighs
    weights = weights / (sum(weights) + 1e-20)   if norm_topk_prob
    weights = weights * routed_scaling_factor    always

Same values as the gates of transformers 5.23 (deepseek_v2, deepseek_v3), whose torch.topk leaves
the order open. Release code of V2 scales only what it does not normalise, transformers' V2 never
normalises: a V2 model with norm_topk_prob passes routed_scaling_factor=1 to get the former. No
released V2 sets it.

Scores are rounded to float32 before they compete: choices that differ by the last bits may fall
either way between two right kernels. `inputs` and `cases` hold exact ties but no such near ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..models import Load, ModelDims
from ..numerics import as_dtype, blank, dtype_name
from ..spec import Args, Operator, Outputs, Shape, Work

NORM_FLOOR = 1e-20
_NEAR = 2e-6                         # `inputs` has no two choices closer than that, but equal ones


def mask_value(scoring: str, has_bias: bool) -> float:
    """What an expert of a group that is out competes with."""
    return 0.0 if scoring == "softmax" and not has_bias else float("-inf")


def shape_of(logits: Tensor, bias: Tensor | None, top_k: int, scoring: str, n_group: int,
             topk_group: int, group_score: str, norm_topk_prob: bool,
             routed_scaling_factor: float) -> Shape:
    """Axes of a call."""
    if logits.ndim != 2 or logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError("logits must be a float32, bfloat16 or float16 tensor [T, E], "
                        f"got {logits.dtype}{list(logits.shape)}")
    tokens, e = logits.shape
    if bias is not None and (bias.dtype != torch.float32 or list(bias.shape) != [e]):
        raise TypeError(f"bias must be float32 [{e}], got {bias.dtype}{list(bias.shape)}")
    for rule, value, known in (("scoring", scoring, ("softmax", "sigmoid")),
                               ("group_score", group_score, ("max", "top2_sum"))):
        if value not in known:
            raise ValueError(f"{rule} must be one of {known}, got {value!r}")
    if n_group < 1 or e % n_group or not 1 <= topk_group <= n_group:
        raise ValueError("n_group must divide the experts and 1 <= topk_group <= n_group, got "
                         f"{e} experts, {n_group=}, {topk_group=}")
    if group_score == "top2_sum" and n_group > 1 and e // n_group < 2:
        raise ValueError(f"top2_sum needs groups of at least 2 experts, got {e} in {n_group=}")
    if not 1 <= top_k <= topk_group * (e // n_group):
        raise ValueError(f"top_k must be between 1 and the {topk_group * (e // n_group)} experts "
                         f"of the {topk_group} groups that stay, got {top_k}")
    return {"experts": e, "top_k": top_k, "scoring": scoring, "n_group": n_group,
            "topk_group": topk_group, "group_score": group_score, "norm": norm_topk_prob,
            "has_bias": bias is not None, "dtype": dtype_name(logits.dtype), "tokens": tokens}


def empty(logits: Tensor, bias: Tensor | None, top_k: int, scoring: str, n_group: int,
          topk_group: int, group_score: str, norm_topk_prob: bool,
          routed_scaling_factor: float) -> Outputs:
    """topk_weights [T, k] float32, topk_ids [T, k] int32."""
    size, device = (logits.shape[0], top_k), logits.device
    return (torch.empty(size, dtype=torch.float32, device=device),
            torch.empty(size, dtype=torch.int32, device=device))


def _best(values: Tensor, count: int) -> Tensor:
    """Positions of the `count` largest of the last axis, ties to the lower position."""
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _choice(scores: Tensor, bias: Tensor | None, n_group: int, topk_group: int, group_score: str,
            masked: float) -> tuple[Tensor, Tensor]:
    """What competes: the groups' scores [T, n_group], and the experts' [T, E], masked by group."""
    choice = scores if bias is None else scores + bias
    groups = choice.unflatten(-1, (n_group, -1))
    best = 2 if group_score == "top2_sum" and groups.shape[-1] > 1 else 1
    group_scores = groups.topk(best, dim=-1).values.sum(-1)
    keep = torch.zeros_like(group_scores, dtype=torch.bool)
    keep.scatter_(1, _best(group_scores, topk_group), True)
    return group_scores, groups.masked_fill(~keep[..., None], masked).flatten(-2)


def reference(logits: Tensor, bias: Tensor | None, top_k: int, scoring: str, n_group: int,
              topk_group: int, group_score: str, norm_topk_prob: bool,
              routed_scaling_factor: float, *, out: Outputs) -> None:
    """In float32, as the models do."""
    x = logits.float()
    scores = x.softmax(-1) if scoring == "softmax" else 1.0 / (1.0 + torch.exp(-x))
    masked = mask_value(scoring, bias is not None)
    ids = _best(_choice(scores, bias, n_group, topk_group, group_score, masked)[1], top_k)
    if masked == 0.0:                # V2 weighs by the masked scores; both are 0 where they differ
        scores = _choice(scores, None, n_group, topk_group, group_score, masked)[1]
    weights = scores.gather(1, ids)
    if norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + NORM_FLOOR)
    out[0].copy_(weights * routed_scaling_factor)
    out[1].copy_(ids)


def _call(logits: Tensor, shape: Shape, bias: Tensor | None, factor: float = 2.5) -> Args:
    return (logits.to(as_dtype(str(shape["dtype"]))), bias, int(shape["top_k"]),
            str(shape["scoring"]), int(shape["n_group"]), int(shape["topk_group"]),
            str(shape["group_score"]), bool(shape["norm"]), factor)


def _bias(shape: Shape, g: torch.Generator) -> Tensor | None:
    return torch.randn(int(shape["experts"]), generator=g) * 0.05 if shape["has_bias"] else None


def _near_ties(logits: Tensor, shape: Shape, bias: Tensor | None) -> Tensor:
    """Rows [T] whose result hangs on the last bits of float32."""
    _, _, _, scoring, n_group, topk_group, group_score, _, _ = _call(logits[:0], shape, bias)
    x = logits.to(as_dtype(str(shape["dtype"]))).double()
    scores = x.softmax(-1) if scoring == "softmax" else x.sigmoid()
    near = torch.zeros(len(logits), dtype=torch.bool)
    for values in _choice(scores, bias, n_group, topk_group, group_score, -torch.inf):
        ranked = values.sort(-1, descending=True).values[:, :int(shape["top_k"]) + 1]
        gap = ranked[:, :-1] - ranked[:, 1:]
        near |= ((gap > 0) & (gap < _NEAR * scores.amax(-1, keepdim=True))).any(-1)
    return near


def _logits(shape: Shape, g: torch.Generator, bias: Tensor | None) -> Tensor:
    """Logits of a trained gate: some experts are liked more than others."""
    tokens, e = int(shape["tokens"]), int(shape["experts"])
    liked = torch.randn(e, generator=g)
    x = torch.randn(tokens, e, generator=g) + liked
    while (again := _near_ties(x, shape, bias)).any():
        x[again] = torch.randn(int(again.sum()), e, generator=g) + liked
    return x


def signature(shape: Shape) -> Args:
    """A call without data."""
    e = int(shape["experts"])
    return _call(blank(str(shape["dtype"]), int(shape["tokens"]), e), shape,
                 blank("float32", e) if shape["has_bias"] else None)


def inputs(shape: Shape, seed: int) -> Args:
    """Logits of a trained gate, and a bias of the size that balancing leaves."""
    g = torch.Generator().manual_seed(seed)
    bias = _bias(shape, g)
    return _call(_logits(shape, g, bias), shape, bias)


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """No token, all equal, few distinct values, extreme logits, strided rows, other factors."""
    e, g = int(shape["experts"]), torch.Generator().manual_seed(seed)
    bias = _bias(shape, g)
    zero = torch.zeros(e) if shape["has_bias"] else None
    x = _logits({**shape, "tokens": 9}, g, bias)
    yield "typical", _call(x, shape, bias)
    yield "no token", _call(x[:0], shape, bias)
    yield "one token, factor 1", _call(x[:1], shape, bias, 1.0)
    yield "all equal", _call(torch.full((3, e), 0.25), shape, zero)
    steps = torch.randint(-3, 4, (9, e), generator=g).float()
    yield "few distinct values", _call(steps, shape, zero)
    yield "extreme", _call(torch.where(steps > 0, 80.0, -80.0), shape, zero)
    yield "extreme ramp", _call(torch.linspace(-80, 80, e)[torch.randperm(e, generator=g)][None],
                                shape, zero)
    yield "all underflow", _call(torch.full((2, e), -100.0), shape, zero)
    peak = torch.full((2, e), -120.0)
    peak[0, e // 2], peak[1, -1] = 120.0, 120.0
    yield "one expert takes all", _call(peak, shape, zero)
    if bias is not None:
        yield "bias decides", _call(torch.zeros(3, e), shape, torch.arange(e).roll(3) / -64.0)
    wide = torch.full((9, e + 3), torch.nan)
    wide[:, 1:-2] = x
    dtype = as_dtype(str(shape["dtype"]))
    yield "columns of a wider tensor", (wide.to(dtype)[:, 1:-2], *_call(x, shape, bias)[1:])


def work(shape: Shape) -> Work:
    """Read the logits once, write weights and ids once; about 30 operations a score."""
    t, e, k = int(shape["tokens"]), int(shape["experts"]), int(shape["top_k"])
    return Work(t * e * (30 + k), t * e * as_dtype(str(shape["dtype"])).itemsize + 8 * t * k)


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """The model's gate: it sees all experts, also under expert parallelism, in float32."""
    return tuple(_shape(t, model.total_experts or model.experts, model.top_k, model.scoring,
                        model.n_group, model.topk_group, model.group_score, model.norm_topk_prob,
                        model.has_bias) for t in load.tokens)


def _shape(tokens: int, experts: int, top_k: int, scoring: str, n_group: int, topk_group: int,
           group_score: str, norm: bool, has_bias: bool, dtype: str = "float32") -> Shape:
    return {"experts": experts, "top_k": top_k, "scoring": scoring, "n_group": n_group,
            "topk_group": topk_group, "group_score": group_score, "norm": norm,
            "has_bias": has_bias, "dtype": dtype, "tokens": tokens}


OP = Operator(
    name="moe_route",
    static=("experts", "top_k", "scoring", "n_group", "topk_group", "group_score", "norm",
            "has_bias", "dtype"),
    dynamic=("tokens",),
    shape_of=shape_of, empty=empty, reference=reference, signature=signature, inputs=inputs,
    cases=cases, work=work,
    shapes=shapes,
    rtol={"float32": 1e-6},          # ids are compared bit for bit
    odd_shapes=(_shape(5, 64, 6, "softmax", 1, 1, "max", False, False),
                _shape(5, 160, 6, "softmax", 8, 3, "max", False, False),
                _shape(5, 256, 8, "sigmoid", 8, 4, "top2_sum", True, True),
                _shape(5, 384, 8, "sigmoid", 1, 1, "top2_sum", True, True),
                _shape(5, 20, 3, "sigmoid", 4, 4, "top2_sum", True, False, "bfloat16"),
                _shape(5, 20, 5, "softmax", 5, 2, "max", True, True),
                _shape(5, 7, 7, "softmax", 1, 1, "max", True, False)),
)
