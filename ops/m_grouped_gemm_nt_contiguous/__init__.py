"""Each row of `a` times its expert's weight; rows of one expert stand together in runs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..gemm_nt.operand import (
    FLOATS,
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
from ..models import Load, ModelDims
from ..numerics import as_dtype, blank, dtype_name, poison
from ..routing import draw
from ..spec import Args, Operator, Outputs, Shape, Work


def shape_of(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None,
             m_indices: Tensor, block_n: int, block_k: int, out_dtype: torch.dtype) -> Shape:
    """Axes of a call."""
    check_block(block_n, block_k)
    check_operand("a", a, a_scale, "M, K", (1, block_k), FLOATS)
    check_operand("b", b, b_scale, "E, N, K", (1, block_n, block_k), FLOATS)
    check_together(a, b)
    check_out_dtype(out_dtype)
    if a.shape[1] != b.shape[2]:
        raise ValueError(f"a[M, K] and b[E, N, K] must share K, got {list(a.shape)}, "
                         f"{list(b.shape)}")
    if m_indices.dtype != torch.int32 or m_indices.shape != a.shape[:1]:
        raise ValueError(f"m_indices must be int32[{a.shape[0]}], one expert for each row of a, "
                         f"got {m_indices.dtype}{list(m_indices.shape)}")
    return {"e": b.shape[0], "n": b.shape[1], "k": b.shape[2], "a_dtype": dtype_name(a.dtype),
            "w_dtype": dtype_name(b.dtype), "out_dtype": dtype_name(out_dtype),
            "block_n": block_n, "block_k": block_k, "tokens": a.shape[0]}


def empty(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None,
          m_indices: Tensor, block_n: int, block_k: int, out_dtype: torch.dtype) -> Outputs:
    """[M, N], zero so that skipped rows are defined."""
    return (torch.zeros((a.shape[0], b.shape[1]), dtype=out_dtype, device=a.device),)


def reference(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None,
              m_indices: Tensor, block_n: int, block_k: int, out_dtype: torch.dtype, *,
              out: Outputs) -> None:
    """In float64, expert by expert; rows of no expert are left alone."""
    for e in m_indices.unique().tolist():
        if 0 <= e < b.shape[0]:
            rows = (m_indices == e).nonzero()[:, 0]
            x = plain64(a[rows], None if a_scale is None else a_scale[rows], (1, block_k))
            w = plain64(b[e], None if b_scale is None else b_scale[e], (block_n, block_k))
            out[0][rows] = (x @ w.T).to(out_dtype)


def _weights(shape: Shape, seed: int) -> tuple[Tensor, Tensor | None]:
    return random_operand((int(shape["e"]), int(shape["n"]), int(shape["k"])),
                          str(shape["w_dtype"]),
                          (1, int(shape["block_n"]), int(shape["block_k"])), seed + 1, 0.03)


def _args(shape: Shape, b: Tensor, b_scale: Tensor | None, indices: Tensor, seed: int) -> Args:
    """Activations for the indices; rows that must not be read are NaN."""
    block_n, block_k = int(shape["block_n"]), int(shape["block_k"])
    a, a_scale = random_operand((len(indices), int(shape["k"])), str(shape["a_dtype"]),
                                (1, block_k), seed, 1.0)
    skipped = (indices < 0) | (indices >= int(shape["e"]))
    a[skipped] = poison(a[skipped])
    if a_scale is not None:
        a_scale[skipped] = poison(a_scale[skipped])
    return (a, a_scale, b, b_scale, indices.to(torch.int32), block_n, block_k,
            as_dtype(str(shape["out_dtype"])))


def _balanced(tokens: int, experts: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(experts, (tokens,), generator=g).sort().values


def signature(shape: Shape) -> Args:
    """Operands without data."""
    e, n, k, m = (int(shape[a]) for a in ("e", "n", "k", "tokens"))
    block_n, block_k = int(shape["block_n"]), int(shape["block_k"])
    return (*blank_operand((m, k), str(shape["a_dtype"]), (1, block_k)),
            *blank_operand((e, n, k), str(shape["w_dtype"]), (1, block_n, block_k)),
            blank("int32", m), block_n, block_k, as_dtype(str(shape["out_dtype"])))


def inputs(shape: Shape, seed: int) -> Args:
    """Rows of experts drawn at random, in order."""
    indices = _balanced(int(shape["tokens"]), int(shape["e"]), seed)
    return _args(shape, *_weights(shape, seed), indices, seed)


def redraw(args: Args, seed: int, shares: Tensor | None = None) -> Args:
    """Other experts, the same weights."""
    a, a_scale, b, b_scale, indices, *rest = args
    drawn = draw(len(indices), 1, b.shape[0], seed, shares)[:, 0].sort().values.to(torch.int32)
    return (a, a_scale, b, b_scale, drawn, *rest)


def experts_of(args: Args) -> tuple[Tensor, Tensor]:
    """The experts, and which of them each row is of."""
    return args[2], args[4]


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """Runs of every length, an expert in several runs, skipped rows, an unused poisoned expert."""
    experts = int(shape["e"])
    b, b_scale = _weights(shape, seed)
    used = max(experts - 1, 1)
    if used < experts:               # the last expert is never used: reading it shows
        poison(b[used])
        if b_scale is not None:
            poison(b_scale[used])

    def call(indices: Tensor) -> Args:
        return _args(shape, b, b_scale, indices, seed)

    yield "typical", call(_balanced(40, used, seed))
    yield "no row", call(torch.empty(0))
    yield "one row", call(torch.zeros(1))
    yield "one expert", call(torch.full((150,), used - 1))
    runs = torch.tensor([0] * 5 + [-1] * 3 + [used - 1] * 7 + [experts] * 2 + [0] * 13
                        + [2_000_000_000, -2_000_000_000] + [used - 1])
    yield "skipped rows and repeated runs", call(runs)
    yield "all skipped", call(torch.full((4,), -1))


def work(shape: Shape) -> Work:
    """Weights of the experts that a balanced draw touches, every row once."""
    m, n, k = int(shape["tokens"]), int(shape["n"]), int(shape["k"])
    block = int(shape["block_n"]), int(shape["block_k"])
    active = min(m, int(shape["e"]))
    return Work(2 * m * n * k, active * weight_bytes(n, k, str(shape["w_dtype"]), block)
                + weight_bytes(m, k, str(shape["a_dtype"]), (1, block[1]))
                + m * n * as_dtype(str(shape["out_dtype"])).itemsize)


def regime(shape: Shape) -> str:
    """Few rows an expert wait for memory, many for the multipliers."""
    return "decode" if int(shape["tokens"]) <= 4 * int(shape["e"]) else "prefill"


def expert_gemms(model: ModelDims) -> tuple[tuple[int, int], ...]:
    """(N, K) of an expert's two GEMMs."""
    return ((2 * model.moe_inter, model.hidden), (model.hidden, model.moe_inter))


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """Both expert GEMMs on every number of routed rows."""
    return tuple({"e": model.experts, "n": n, "k": k, "a_dtype": a,
                  "w_dtype": model.weight_dtype, "out_dtype": model.act_dtype,
                  "block_n": model.scale_block(k)[0], "block_k": model.scale_block(k)[1],
                  "tokens": t * model.top_k}
                 for n, k in expert_gemms(model) for a, _ in activation_dtypes(model)
                 for t in load.tokens)


def odd(tokens: int, n: int, k: int, a: str, w: str, out: str, block: int) -> dict[str, str | int]:
    """A small shape with five experts."""
    return {"tokens": tokens, "e": 5, "n": n, "k": k, "a_dtype": a, "w_dtype": w,
            "out_dtype": out, "block_n": block, "block_k": block}


OP = Operator(
    name="m_grouped_gemm_nt_contiguous",
    static=("e", "n", "k", "a_dtype", "w_dtype", "out_dtype", "block_n", "block_k"),
    dynamic=("tokens",),
    shape_of=shape_of, empty=empty, reference=reference, signature=signature, inputs=inputs,
    cases=cases, work=work,
    shapes=shapes, regime=regime, redraw=redraw, experts_of=experts_of, rtol=RTOL,
    odd_shapes=(odd(30, 77, 200, "float32", "float32", "float32", 128),
                odd(30, 72, 200, "bfloat16", "bfloat16", "bfloat16", 128),
                odd(16, 77, 200, "float32", "float8_e4m3fn", "float32", 64),
                odd(60, 150, 331, "float8_e4m3fn", "float8_e4m3fn", "bfloat16", 128),
                {**odd(16, 77, 200, "float32", "int8", "float32", 200), "block_n": 1},
                odd(60, 150, 331, "int8", "int8", "bfloat16", 128),
                odd(30, 77, 331, "float16", "float16", "float16", 128),
                odd(16, 77, 200, "float16", "float8_e4m3fn", "float16", 64)),
)
