"""For each expert e: the first masked_m[e] rows of a[e] times b[e].T."""

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
    is_quantised,
    plain64,
    random_operand,
    weight_bytes,
)
from ..m_grouped_gemm_nt_contiguous import expert_gemms
from ..models import Load, ModelDims
from ..numerics import as_dtype, blank, dtype_name, poison
from ..spec import Args, Operator, Outputs, Shape, Value, Work


def shape_of(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None,
             masked_m: Tensor, expected_m: int | None, block_n: int, block_k: int,
             out_dtype: torch.dtype) -> Shape:
    """Axes of a call; without expected_m every row is expected."""
    check_block(block_n, block_k)
    check_operand("a", a, a_scale, "E, Mmax, K", (1, 1, block_k), FLOATS)
    check_operand("b", b, b_scale, "E, N, K", (1, block_n, block_k), FLOATS)
    check_together(a, b)
    check_out_dtype(out_dtype)
    if a.shape[0] != b.shape[0] or a.shape[2] != b.shape[2]:
        raise ValueError(f"a[E, Mmax, K] and b[E, N, K] must share E and K, got {list(a.shape)}, "
                         f"{list(b.shape)}")
    if masked_m.dtype != torch.int32 or masked_m.shape != b.shape[:1]:
        raise ValueError(f"masked_m must be int32[{b.shape[0]}], the rows of each expert, got "
                         f"{masked_m.dtype}{list(masked_m.shape)}")
    if expected_m is not None and expected_m < 0:
        raise ValueError(f"expected_m must be None or at least 0, got {expected_m}")
    return {"e": b.shape[0], "n": b.shape[1], "k": b.shape[2], "a_dtype": dtype_name(a.dtype),
            "w_dtype": dtype_name(b.dtype), "out_dtype": dtype_name(out_dtype),
            "block_n": block_n, "block_k": block_k, "m_max": a.shape[1],
            "expected_m": a.shape[1] if expected_m is None else min(expected_m, a.shape[1])}


def empty(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, masked_m: Tensor,
          expected_m: int | None, block_n: int, block_k: int, out_dtype: torch.dtype) -> Outputs:
    """[E, Mmax, N], zero in rows past masked_m so that the functional form is defined."""
    return (torch.zeros((*a.shape[:2], b.shape[1]), dtype=out_dtype, device=a.device),)


def reference(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None,
              masked_m: Tensor, expected_m: int | None, block_n: int, block_k: int,
              out_dtype: torch.dtype, *, out: Outputs) -> None:
    """In float64, expert by expert."""
    for e, rows in enumerate(masked_m.clamp(0, a.shape[1]).tolist()):
        if rows:
            x = plain64(a[e, :rows], None if a_scale is None else a_scale[e, :rows], (1, block_k))
            w = plain64(b[e], None if b_scale is None else b_scale[e], (block_n, block_k))
            out[0][e, :rows] = (x @ w.T).to(out_dtype)


def _weights(shape: Shape, seed: int) -> tuple[Tensor, Tensor | None]:
    return random_operand((int(shape["e"]), int(shape["n"]), int(shape["k"])),
                          str(shape["w_dtype"]),
                          (1, int(shape["block_n"]), int(shape["block_k"])), seed + 1, 0.03)


def _args(shape: Shape, m_max: int, b: Tensor, b_scale: Tensor | None, masked: Tensor,
          seed: int) -> Args:
    """Activations; rows past masked_m are NaN."""
    block_n, block_k = int(shape["block_n"]), int(shape["block_k"])
    a, a_scale = random_operand((int(shape["e"]), m_max, int(shape["k"])), str(shape["a_dtype"]),
                                (1, 1, block_k), seed, 1.0)
    for e, rows in enumerate(masked.clamp(0, m_max).tolist()):
        poison(a[e, rows:])
        if a_scale is not None:
            poison(a_scale[e, rows:])
    return (a, a_scale, b, b_scale, masked.to(torch.int32), int(shape["expected_m"]), block_n,
            block_k, as_dtype(str(shape["out_dtype"])))


def _counts(shape: Shape, seed: int) -> Tensor:
    """Rows for each expert, around the expected number."""
    g = torch.Generator().manual_seed(seed)
    expected = int(shape["expected_m"])
    drawn = torch.randint(2 * expected + 1, (int(shape["e"]),), generator=g)
    return drawn.clamp(max=int(shape["m_max"]))


def signature(shape: Shape) -> Args:
    """Operands without data."""
    e, n, k, m = (int(shape[a]) for a in ("e", "n", "k", "m_max"))
    block_n, block_k = int(shape["block_n"]), int(shape["block_k"])
    return (*blank_operand((e, m, k), str(shape["a_dtype"]), (1, 1, block_k)),
            *blank_operand((e, n, k), str(shape["w_dtype"]), (1, block_n, block_k)),
            blank("int32", e), int(shape["expected_m"]), block_n, block_k,
            as_dtype(str(shape["out_dtype"])))


def inputs(shape: Shape, seed: int) -> Args:
    """Between no row and twice the expected ones for each expert."""
    return _args(shape, int(shape["m_max"]), *_weights(shape, seed), _counts(shape, seed), seed)


def cases(shape: Shape, seed: int) -> Iterator[tuple[str, Args]]:
    """Every row count around the tiles, none, all, counts out of range, poisoned idle experts."""
    experts = int(shape["e"])
    b, b_scale = _weights(shape, seed)
    if experts > 1:                  # the last expert never has a row: reading it shows
        poison(b[-1])
        if b_scale is not None:
            poison(b_scale[-1])

    def call(m_max: int, counts: list[int]) -> Args:
        masked = torch.tensor(counts).repeat(-(-experts // len(counts)))[:experts]
        if experts > 1:
            masked[-1] = 0
        return _args(shape, m_max, b, b_scale, masked, seed)

    yield "typical", call(9, [3, 0, 9, 5])
    yield "no row", call(4, [0])
    yield "no room", call(0, [0])
    yield "odd counts", call(13, [13, 5, 7, 1])
    yield "counts out of range", call(4, [-3, 2_000_000_000, 4, 1])
    yield "long", call(140, [140] + [0] * (experts - 1))


def work(shape: Shape) -> Work:
    """Weights of all experts once, the expected rows once."""
    m, n, k = int(shape["expected_m"]), int(shape["n"]), int(shape["k"])
    e, block = int(shape["e"]), (int(shape["block_n"]), int(shape["block_k"]))
    return Work(2 * e * m * n * k, e * (weight_bytes(n, k, str(shape["w_dtype"]), block)
                + weight_bytes(m, k, str(shape["a_dtype"]), (1, block[1]))
                + m * n * as_dtype(str(shape["out_dtype"])).itemsize))


def regime(shape: Shape) -> str:
    """Few rows an expert wait for memory, many for the multipliers."""
    return "decode" if int(shape["expected_m"]) <= 4 else "prefill"


def shapes(model: ModelDims, load: Load) -> tuple[Shape, ...]:
    """Both expert GEMMs, with room for four times the expected rows (decode with EP), and the
    per-head GEMMs of absorbed attention (W_UK, W_UV), whose groups are the heads.
    """
    rows = dict.fromkeys(max(t * model.top_k // model.experts, 1) for t in load.tokens)

    def block(k: int) -> dict[str, Value]:
        block_n, block_k = model.scale_block(k)
        return {"out_dtype": model.act_dtype, "block_n": block_n, "block_k": block_k}

    experts: tuple[Shape, ...] = tuple({"e": model.experts, "n": n, "k": k, "a_dtype": a,
                     "w_dtype": model.weight_dtype, **block(k), "m_max": 4 * m, "expected_m": m}
                    for n, k in expert_gemms(model) for a, _ in activation_dtypes(model)
                    for m in rows)
    # A quantised kv_b is dequantised once for this form (DeepSeek-V3's inference/model.py).
    plain = "float32" if is_quantised(model.weight_dtype) else model.weight_dtype
    heads: tuple[Shape, ...] = tuple({"e": model.heads, "n": n, "k": k, "a_dtype": model.act_dtype,
                   "w_dtype": plain, **block(k), "m_max": b, "expected_m": b}
                  for n, k in ((model.kv_lora, model.nope), (model.v_dim, model.kv_lora))
                  for b in load.batch)
    return experts + heads


def _odd(m: int, n: int, k: int, a: str, w: str, out: str, block: int) -> Shape:
    return {"e": 5, "n": n, "k": k, "a_dtype": a, "w_dtype": w, "out_dtype": out,
            "block_n": block, "block_k": block, "m_max": m + 3, "expected_m": m}


OP = Operator(
    name="m_grouped_gemm_nt_masked",
    static=("e", "n", "k", "a_dtype", "w_dtype", "out_dtype", "block_n", "block_k"),
    dynamic=("m_max", "expected_m"),
    shape_of=shape_of, empty=empty, reference=reference, signature=signature, inputs=inputs,
    cases=cases, work=work,
    shapes=shapes, regime=regime, rtol=RTOL,
    odd_shapes=(_odd(7, 77, 200, "float32", "float32", "float32", 128),
                _odd(3, 72, 200, "bfloat16", "bfloat16", "bfloat16", 128),
                _odd(9, 77, 200, "float32", "float8_e4m3fn", "float32", 64),
                _odd(13, 150, 331, "float8_e4m3fn", "float8_e4m3fn", "bfloat16", 128),
                {**_odd(9, 77, 200, "float32", "int8", "float32", 200), "block_n": 1},
                _odd(13, 150, 331, "int8", "int8", "bfloat16", 128),
                _odd(7, 77, 331, "float16", "float16", "float16", 128),
                {**_odd(9, 77, 200, "float16", "int8", "float16", 200), "block_n": 1}),
)
