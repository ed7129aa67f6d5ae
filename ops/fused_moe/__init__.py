"""All routed experts of a MoE layer: gather, GEMM 1, SwiGLU, GEMM 2, weighted sum."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..fp8 import group_cast
from ..gemm_nt.operand import (
    FP8,
    PLAIN,
    QUANTISED,
    RTOL,
    blank_operand,
    check_block,
    check_operand,
    plain64,
    random_operand,
    weight_bytes,
)
from ..int8 import int8_cast
from ..models import Load, ModelDims
from ..numerics import as_dtype, blank, dtype_name, poison
from ..routing import draw
from ..spec import Args, Operator, Outputs, Shape, Work

# With w8a8 the SwiGLU output is cast like the weights. A float32 result one ulp off the float64 one
# can round to the neighbouring code (about one element in 10^5), which moves an output by up to
# 2^-3 of that element's share (FP8), some 1e-2 of the row maximum at small inner sizes. A tune asks
# ties.py which elements those are; tests of other kinds compare float32 outputs with W8A8_RTOL.
W8A8_RTOL = {"float32": 1e-2, "bfloat16": 1e-2}


def shape_of(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor,
             w1_scale: Tensor | None, w2_scale: Tensor | None, block_n: int, block_k: int,
             w8a8: bool) -> Shape:
    """Axes of a call."""
    check_block(block_n, block_k)
    if hidden.ndim != 2 or hidden.dtype not in PLAIN:
        raise TypeError(f"hidden must be float32 or bfloat16 [T, K], got "
                        f"{hidden.dtype}{list(hidden.shape)}")
    check_operand("w1", w1, w1_scale, "E, 2I, K", (1, block_n, block_k))
    check_operand("w2", w2, w2_scale, "E, K, I", (1, block_n, block_k))
    tokens, k = hidden.shape
    e, twice, inter = w1.shape[0], w1.shape[1], w2.shape[2]
    if w1.shape != (e, 2 * inter, k) or w2.shape != (e, k, inter) or w1.dtype != w2.dtype:
        raise ValueError("w1[E, 2I, K] and w2[E, K, I] must fit each other and hidden[T, K] and "
                         f"have one dtype, got {w1.dtype}{[e, twice, w1.shape[2]]}, "
                         f"{w2.dtype}{list(w2.shape)}, {[tokens, k]}")
    if topk_ids.ndim != 2 or topk_ids.dtype != torch.int32 or topk_ids.shape[0] != tokens:
        raise ValueError(f"topk_ids must be int32[{tokens}, top_k], got "
                         f"{topk_ids.dtype}{list(topk_ids.shape)}")
    if topk_weights.dtype != torch.float32 or topk_weights.shape != topk_ids.shape:
        raise ValueError(f"topk_weights must be float32{list(topk_ids.shape)} like topk_ids, got "
                         f"{topk_weights.dtype}{list(topk_weights.shape)}")
    if w8a8 and w1.dtype not in QUANTISED:
        raise TypeError(f"w8a8 needs float8_e4m3fn or int8 weights, got {w1.dtype}")
    return {"e": e, "inter": inter, "hidden": k, "top_k": topk_ids.shape[1],
            "w_dtype": dtype_name(w1.dtype), "dtype": dtype_name(hidden.dtype),
            "block_n": block_n, "block_k": block_k, "w8a8": w8a8, "tokens": tokens}


def empty(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor,
          w1_scale: Tensor | None, w2_scale: Tensor | None, block_n: int, block_k: int,
          w8a8: bool) -> Outputs:
    """[T, K] like hidden."""
    return (torch.empty_like(hidden, memory_format=torch.contiguous_format),)


def round_trip(x: Tensor, group: int, codes: torch.dtype = FP8) -> Tensor:
    """float64 values after a cast in groups, as per_token_group_quant_fp8 or _int8 defines it."""
    k = x.shape[-1]
    groups = -(-k // group)
    padded = torch.nn.functional.pad(x.float(), (0, groups * group - k))
    blocks = padded.unflatten(-1, (groups, group))
    if codes == FP8:
        q, scale = group_cast(blocks, 1e-10, False, (-1,))
        q = q.to(FP8)
    else:
        q, scale = int8_cast(blocks, 1e-10, (-1,))
    wide: Tensor = (q.double() * scale.double()).flatten(-2)
    return wide[..., :k]


def reference(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor,
              w1_scale: Tensor | None, w2_scale: Tensor | None, block_n: int, block_k: int,
              w8a8: bool, *, out: Outputs) -> None:
    """In float64, expert by expert over those that appear."""
    x = round_trip(hidden, block_k, w1.dtype) if w8a8 else hidden.double()
    total = torch.zeros(hidden.shape, dtype=torch.float64)
    inter = w2.shape[2]
    for e in topk_ids.unique().tolist():
        if not 0 <= e < w1.shape[0]:
            continue
        token, slot = (topk_ids == e).nonzero().T
        up = x[token] @ plain64(w1[e], None if w1_scale is None else w1_scale[e],
                                (block_n, block_k)).T
        act = up[:, :inter] * up[:, :inter].sigmoid() * up[:, inter:]
        if w8a8:
            act = round_trip(act, block_k, w1.dtype)
        down = act @ plain64(w2[e], None if w2_scale is None else w2_scale[e],
                             (block_n, block_k)).T
        total.index_add_(0, token, down * topk_weights[token, slot].double()[:, None])
    out[0].copy_(total)


def _weights(shape: Shape, seed: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    e, k, inter = int(shape["e"]), int(shape["hidden"]), int(shape["inter"])
    dtype, blocks = str(shape["w_dtype"]), (1, int(shape["block_n"]), int(shape["block_k"]))
    w1, w1_scale = random_operand((e, 2 * inter, k), dtype, blocks, seed + 1, k**-0.5)
    w2, w2_scale = random_operand((e, k, inter), dtype, blocks, seed + 2, inter**-0.5)
    return w1, w2, w1_scale, w2_scale


def route(tokens: int, top_k: int, experts: int, seed: int, shares: Tensor | None = None
          ) -> tuple[Tensor, Tensor]:
    """Weights that sum to one, and distinct experts for each token."""
    ids = draw(tokens, top_k, experts, seed, shares)
    ids = ids.repeat(1, -(-top_k // max(experts, 1)))[:, :top_k].to(torch.int32)
    weights = torch.rand(tokens, top_k, generator=torch.Generator().manual_seed(seed)) + 0.1
    return weights / weights.sum(-1, keepdim=True), ids


def _hidden(shape: Shape, tokens: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, int(shape["hidden"]), generator=g)
    return x.to(as_dtype(str(shape["dtype"])))


def _args(shape: Shape, hidden: Tensor, weights: tuple[Tensor, Tensor, Tensor | None,
          Tensor | None], topk_weights: Tensor, topk_ids: Tensor) -> Args:
    w1, w2, w1_scale, w2_scale = weights
    return (hidden, w1, w2, topk_weights, topk_ids, w1_scale, w2_scale, int(shape["block_n"]),
            int(shape["block_k"]), bool(shape["w8a8"]))


def signature(shape: Shape) -> Args:
    """Operands without data."""
    tokens, k, e, inter, top_k = (int(shape[a]) for a in (
        "tokens", "hidden", "e", "inter", "top_k"))
    dtype, blocks = str(shape["w_dtype"]), (1, int(shape["block_n"]), int(shape["block_k"]))
    w1, w1_scale = blank_operand((e, 2 * inter, k), dtype, blocks)
    w2, w2_scale = blank_operand((e, k, inter), dtype, blocks)
    return _args(shape, blank(str(shape["dtype"]), tokens, k), (w1, w2, w1_scale, w2_scale),
                 blank("float32", tokens, top_k), blank("int32", tokens, top_k))


def inputs(shape: Shape, seed: int) -> Args:
    """Normal activations and weights, experts drawn evenly."""
    tokens = int(shape["tokens"])
    return _args(shape, _hidden(shape, tokens, seed), _weights(shape, seed),
                 *route(tokens, int(shape["top_k"]), int(shape["e"]), seed))


def redraw(args: Args, seed: int, shares: Tensor | None = None) -> Args:
    """Other experts, the same weights."""
    hidden, w1, w2, _, ids, *rest = args
    return (hidden, w1, w2, *route(ids.shape[0], ids.shape[1], w1.shape[0], seed, shares), *rest)


def experts_of(args: Args) -> tuple[Tensor, Tensor]:
    """The experts, and which of them each token goes to."""
    return args[1], args[4]


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """Row counts around the tiles, one expert for all, foreign ids; the last expert is poison."""
    experts, top_k = int(shape["e"]), int(shape["top_k"])
    weights = _weights(shape, seed)
    used = max(experts - 1, 1)
    if used < experts:               # never routed to: reading it shows
        for w in weights:
            if w is not None:
                poison(w[used])

    def call(tokens: int, ids: Tensor | None = None, size: float = 1.0) -> Args:
        topk_weights, drawn = route(tokens, top_k, used, seed)
        ids = drawn if ids is None else ids.to(torch.int32)
        foreign = (ids < 0) | (ids >= experts)
        topk_weights[foreign] = poison(topk_weights[foreign])
        return _args(shape, _hidden(shape, tokens, seed) * size, weights, topk_weights, ids)

    yield "typical", call(min(int(shape["tokens"]), 40))
    for tokens in (0, 1, 13):
        yield f"{tokens} tokens", call(tokens)
    one = torch.full((150, top_k), -1)
    one[:, 0] = used - 1
    yield "one expert for all", call(150, one)
    yield "the same expert in every slot", call(5, torch.zeros(5, top_k))
    foreign = route(7, top_k, used, seed)[1]
    foreign[::2, 0] = -1
    foreign[1::3, -1] = experts
    foreign[4] = torch.tensor([2_000_000_000, -2_000_000_000]).repeat(top_k)[:top_k]
    yield "foreign ids", call(7, foreign)
    yield "no expert of ours", call(3, torch.full((3, top_k), experts + 5))
    yield "large", call(5, size=1e4)


def work(shape: Shape) -> Work:
    """Weights of the experts that tokens reach if they agree on none, activations once."""
    tokens, k, inter = int(shape["tokens"]), int(shape["hidden"]), int(shape["inter"])
    pairs = tokens * int(shape["top_k"])
    block, dtype = (int(shape["block_n"]), int(shape["block_k"])), str(shape["w_dtype"])
    expert = weight_bytes(2 * inter, k, dtype, block) + weight_bytes(k, inter, dtype, block)
    e = int(shape["e"])
    reached = round(e * (1.0 - (1.0 - int(shape["top_k"]) / max(e, 1)) ** tokens)) if e else 0
    return Work(6 * pairs * k * inter, reached * expert
                + 2 * tokens * k * as_dtype(str(shape["dtype"])).itemsize)


def regime(shape: Shape) -> str:
    """Few rows an expert wait for memory, many for the multipliers."""
    few = int(shape["tokens"]) * int(shape["top_k"]) <= 2 * int(shape["e"])
    return "decode" if few else "prefill"


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """The MoE layer on every number of tokens."""
    block_n, block_k = model.scale_block(max(model.hidden, model.moe_inter))
    return tuple({"e": model.experts, "inter": model.moe_inter, "hidden": model.hidden,
                  "top_k": model.top_k, "w_dtype": model.weight_dtype, "dtype": model.act_dtype,
                  "block_n": block_n, "block_k": block_k, "w8a8": False, "tokens": t}
                 for t in load.tokens)


def _odd(tokens: int, hidden: int, inter: int, w: str, dtype: str, block: int,
         w8a8: bool = False) -> Shape:
    return {"e": 5, "inter": inter, "hidden": hidden, "top_k": 3, "w_dtype": w, "dtype": dtype,
            "block_n": block, "block_k": block, "w8a8": w8a8, "tokens": tokens}


OP = Operator(
    name="fused_moe",
    static=("e", "inter", "hidden", "top_k", "w_dtype", "dtype", "block_n", "block_k", "w8a8"),
    dynamic=("tokens",),
    shape_of=shape_of, empty=empty, reference=reference, signature=signature, inputs=inputs,
    cases=cases, work=work,
    shapes=shapes, regime=regime, redraw=redraw, experts_of=experts_of, rtol=RTOL,
    odd_shapes=(_odd(7, 200, 72, "float32", "float32", 128),
                _odd(40, 200, 77, "bfloat16", "bfloat16", 128),
                _odd(3, 331, 150, "float8_e4m3fn", "float32", 64),
                _odd(40, 200, 72, "float8_e4m3fn", "float32", 128),
                _odd(11, 300, 200, "float8_e4m3fn", "bfloat16", 128),
                _odd(9, 300, 200, "float8_e4m3fn", "bfloat16", 128, w8a8=True),
                _odd(7, 200, 150, "int8", "float32", 64),
                {**_odd(9, 300, 200, "int8", "bfloat16", 300, w8a8=True), "block_n": 1}),
)
