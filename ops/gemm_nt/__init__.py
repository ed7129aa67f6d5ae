"""a @ b.T for plain or block-scaled FP8 or int8 operands, accumulated in float32.

float16 results beyond 65504 become infinite, as torch's do: a cast of the float32 sum.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..models import Load, ModelDims
from ..numerics import as_dtype, dtype_name
from ..spec import Args, Operator, Outputs, Shape, Work
from .operand import (
    FLOATS,
    INT8,
    RTOL,
    activation_dtypes,
    blank_operand,
    check_block,
    check_operand,
    check_out_dtype,
    check_together,
    plain64,
    random_operand,
    weight_bytes,
)


def shape_of(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, block_n: int,
             block_k: int, out_dtype: torch.dtype) -> Shape:
    """Axes of a call."""
    check_block(block_n, block_k)
    check_operand("a", a, a_scale, "M, K", (1, block_k), FLOATS)
    check_operand("b", b, b_scale, "N, K", (block_n, block_k), FLOATS)
    check_together(a, b)
    check_out_dtype(out_dtype)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a[M, K] and b[N, K] must share K, got {list(a.shape)}, {list(b.shape)}")
    return {"n": b.shape[0], "k": b.shape[1], "a_dtype": dtype_name(a.dtype),
            "w_dtype": dtype_name(b.dtype), "out_dtype": dtype_name(out_dtype),
            "block_n": block_n, "block_k": block_k, "tokens": a.shape[0]}


def empty(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, block_n: int,
          block_k: int, out_dtype: torch.dtype) -> Outputs:
    """[M, N]."""
    return (torch.empty((a.shape[0], b.shape[0]), dtype=out_dtype, device=a.device),)


def reference(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, block_n: int,
              block_k: int, out_dtype: torch.dtype, *, out: Outputs) -> None:
    """In float64."""
    block = block_n, block_k
    out[0].copy_(plain64(a, a_scale, (1, block_k)) @ plain64(b, b_scale, block).T)


def _args(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None,
          shape: Shape) -> Args:
    return (a, a_scale, b, b_scale, int(shape["block_n"]), int(shape["block_k"]),
            as_dtype(str(shape["out_dtype"])))


def _weights(shape: Shape, seed: int) -> tuple[Tensor, Tensor | None]:
    return random_operand((int(shape["n"]), int(shape["k"])), str(shape["w_dtype"]),
                          (int(shape["block_n"]), int(shape["block_k"])), seed + 1, 0.03)


def _rows(shape: Shape, tokens: int, seed: int, std: float = 1.0) -> tuple[Tensor, Tensor | None]:
    return random_operand((tokens, int(shape["k"])), str(shape["a_dtype"]),
                          (1, int(shape["block_k"])), seed, std)


def signature(shape: Shape) -> Args:
    """Operands without data."""
    n, k, block_n, block_k = (int(shape[a]) for a in ("n", "k", "block_n", "block_k"))
    rows = blank_operand((int(shape["tokens"]), k), str(shape["a_dtype"]), (1, block_k))
    weights = blank_operand((n, k), str(shape["w_dtype"]), (block_n, block_k))
    return _args(*rows, *weights, shape)


def inputs(shape: Shape, seed: int) -> Args:
    """Normal activations and weights."""
    return _args(*_rows(shape, int(shape["tokens"]), seed), *_weights(shape, seed), shape)


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """Row counts around the tiles, no row, huge and tiny values, NaN in one row only.

    For int8, also the sums of the largest size: -128 times -128 throughout, which overflows what
    adds pairs of products in 16 bits. float16 stays within its range (tiny: subnormal) but for
    sums on both sides of the largest number that a float16 result holds.
    """
    b, b_scale = _weights(shape, seed)
    for tokens in (0, 1, 5, 7, 13, 150):
        yield f"{tokens} rows", _args(*_rows(shape, tokens, seed), b, b_scale, shape)
    half = "float16" in (shape["a_dtype"], shape["w_dtype"], shape["out_dtype"])
    for name, std in (("huge", 1e4 if half else 1e18), ("tiny", 1e-5 if half else 1e-18)):
        yield name, _args(*_rows(shape, 3, seed, std), b, b_scale, shape)
    if half:
        large, large_scale = (b * 16, None) if b_scale is None else (b, b_scale * 16)
        yield "past 65504", _args(*_rows(shape, 5, seed, 1e4), large, large_scale, shape)
    a, a_scale = _rows(shape, 9, seed)
    if a_scale is None:
        a[4] = float("nan")
    else:
        a_scale[4] = float("nan")
    yield "NaN in one row", _args(a, a_scale, b, b_scale, shape)
    if b.dtype == INT8:
        a, a_scale = _rows(shape, 4, seed)
        low = b.clone()
        low[:3] = -128
        a[:2] = -128
        yield "-128 throughout", _args(a, a_scale, low, b_scale, shape)


def work(shape: Shape) -> Work:
    """Each operand once."""
    m, n, k = int(shape["tokens"]), int(shape["n"]), int(shape["k"])
    block = int(shape["block_n"]), int(shape["block_k"])
    return Work(2 * m * n * k, weight_bytes(n, k, str(shape["w_dtype"]), block)
                + weight_bytes(m, k, str(shape["a_dtype"]), (1, block[1]))
                + m * n * as_dtype(str(shape["out_dtype"])).itemsize)


def regime(shape: Shape) -> str:
    """Few rows wait for memory, many for the multipliers."""
    return "decode" if int(shape["tokens"]) <= 8 else "prefill"


def projections(model: ModelDims) -> tuple[tuple[int, int], ...]:
    """(N, K) of every dense projection of a model."""
    h, heads = model.hidden, model.heads
    q_out = heads * (model.nope + model.rope)
    q = ((model.q_lora, h), (q_out, model.q_lora)) if model.q_lora else ((q_out, h),)
    shared = model.moe_inter * model.shared_experts
    pairs = (*q, (model.kv_lora + model.rope, h),
             (heads * (model.nope + model.v_dim), model.kv_lora), (h, heads * model.v_dim),
             (2 * shared, h), (h, shared), (2 * model.dense_inter, h), (h, model.dense_inter))
    return tuple(dict.fromkeys((n, k) for n, k in pairs if n and k))


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """The dense projections and the router on every number of tokens, and the LM head on a batch's
    last ones. Quantised releases store the head in bfloat16 (converted to float16 for float16
    activations); the router is float32 in all of them.
    """
    def one(n: int, k: int, w: str, tokens: int) -> Shape:
        block_n, block_k = model.scale_block(k)
        return {"n": n, "k": k, "a_dtype": model.act_dtype, "w_dtype": w,
                "out_dtype": model.act_dtype, "block_n": block_n, "block_k": block_k,
                "tokens": tokens}

    weights = [(n, k, model.weight_dtype) for n, k in projections(model)]
    router = (model.total_experts or model.experts, model.hidden, "float32")
    head_dtype = model.weight_dtype
    if len(activation_dtypes(model)) > 1:
        head_dtype = "float16" if model.act_dtype == "float16" else "bfloat16"
    return (*(one(n, k, w, tokens) for n, k, w in (*weights, router) for tokens in load.tokens),
            *(one(model.vocab, model.hidden, head_dtype, batch) for batch in load.batch))


def _odd(tokens: int, n: int, k: int, a: str, w: str, out: str, block: int) -> Shape:
    return {"tokens": tokens, "n": n, "k": k, "a_dtype": a, "w_dtype": w, "out_dtype": out,
            "block_n": block, "block_k": block}


OP = Operator(
    name="gemm_nt",
    static=("n", "k", "a_dtype", "w_dtype", "out_dtype", "block_n", "block_k"),
    dynamic=("tokens",),
    shape_of=shape_of, empty=empty, reference=reference, signature=signature, inputs=inputs,
    cases=cases, work=work,
    shapes=shapes, regime=regime, rtol=RTOL,
    odd_shapes=(_odd(7, 77, 200, "float32", "float32", "float32", 128),
                _odd(40, 77, 520, "bfloat16", "bfloat16", "float32", 128),
                _odd(40, 150, 1100, "float32", "float8_e4m3fn", "float32", 64),
                _odd(13, 300, 260, "float8_e4m3fn", "float8_e4m3fn", "bfloat16", 128),
                _odd(9, 3, 20, "bfloat16", "float8_e4m3fn", "bfloat16", 24),
                _odd(33, 256, 256, "float32", "float8_e4m3fn", "float32", 128),
                _odd(9, 77, 200, "float32", "int8", "float32", 64),
                _odd(17, 150, 520, "int8", "int8", "bfloat16", 128),
                {**_odd(40, 77, 331, "bfloat16", "int8", "bfloat16", 331), "block_n": 1},
                {**_odd(33, 260, 512, "int8", "int8", "float32", 512), "block_n": 1},
                _odd(40, 77, 331, "float16", "float16", "float16", 128),
                _odd(9, 150, 520, "float16", "float8_e4m3fn", "float32", 128),
                {**_odd(13, 77, 200, "float16", "int8", "float16", 200), "block_n": 1}),
)
