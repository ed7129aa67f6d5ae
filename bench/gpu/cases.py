"""What is measured on a GPU: the operators of DeepSeek-V3 at sizes of published figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ... import ops
from ...ops.models import Load, preset
from ...ops.spec import Operator, Shape, Value

_FP8: dict[str, Value] = {
    "a_dtype": "float8_e4m3fn", "w_dtype": "float8_e4m3fn", "out_dtype": "bfloat16",
    "block_n": 128, "block_k": 128}
# (N, K) and groups of DeepGEMM's tables (its README and tests/generators.py)
_DENSE = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
_GROUPED = ((4096, 7168), (7168, 2048))


@dataclass(frozen=True)
class Case:
    """One shape to time."""

    op: Operator
    shape: Shape

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.op.name} " + " ".join(f"{k}={v}" for k, v in self.shape.items())


def casts() -> Iterator[Case]:
    """FP8 casts of activations: from 4096 rows on at least 85 % of copy bandwidth is asked for."""
    for tokens in (1, 128, 4096, 16384):
        yield Case(ops.load("per_token_group_quant_fp8"), {
            "k": 7168, "group_size": 128, "dtype": "bfloat16", "ue8m0": False, "tokens": tokens})
        yield Case(ops.load("silu_mul_quant_fp8"), {
            "h": 2048, "group_size": 128, "dtype": "bfloat16", "ue8m0": False, "tokens": tokens})
    yield Case(ops.load("weight_dequant"), {
        "k": 7168, "block_size": 128, "dtype": "bfloat16", "n": 18432})


def gemm() -> Iterator[Case]:
    """Dense and grouped block-scaled FP8 products, and their bfloat16 twins."""
    for tokens in (1, 64, 4096):
        for n, k in _DENSE:
            yield Case(ops.load("gemm_nt"), {"n": n, "k": k, **_FP8, "tokens": tokens})
    bf16: dict[str, Value] = {**_FP8, "a_dtype": "bfloat16", "w_dtype": "bfloat16"}
    yield Case(ops.load("gemm_nt"), {"n": 4096, "k": 7168, **bf16, "tokens": 4096})
    for e, rows in ((4, 8192), (8, 4096)):
        for n, k in _GROUPED:
            yield Case(ops.load("m_grouped_gemm_nt_contiguous"),
                       {"e": e, "n": n, "k": k, **_FP8, "tokens": e * rows})
    for e, rows in ((32, 4), (32, 16), (32, 64), (4, 256)):
        for n, k in _GROUPED:
            yield Case(ops.load("m_grouped_gemm_nt_masked"),
                       {"e": e, "n": n, "k": k, **_FP8, "m_max": 4 * rows, "expected_m": rows})


def moe() -> Iterator[Case]:
    """The MoE layer of V3, one rank of TP8, and its routing."""
    rank = preset("v3").split(tp=8)
    for tokens in (1, 8, 32, 128, 512, 4096):
        load = Load(tokens=(tokens,))
        for shape in ops.load("fused_moe").shapes(rank, load):
            yield Case(ops.load("fused_moe"), {**shape, "w8a8": True})
            yield Case(ops.load("fused_moe"), shape)
        for shape in ops.load("moe_route").shapes(rank, load):
            yield Case(ops.load("moe_route"), shape)


def attention() -> Iterator[Case]:
    """Absorbed decode with all heads and with one rank's of TP8, and prefill."""
    decode, prefill = ops.load("mla_decode"), ops.load("mla_prefill")
    for heads in (16, 128):
        model = replace(preset("v3"), heads=heads)
        for batch, ctx in ((1, 4096), (32, 1024), (32, 8192), (128, 4096)):
            for shape in decode.shapes(model, Load(batch=(batch,), ctx=(ctx,))):
                yield Case(decode, shape)
                if batch == 128:
                    yield Case(decode, {**shape, "kv_dtype": "fp8"})
    for tokens in (1024, 4096):
        yield Case(prefill, {"heads": 128, "d_qk": 192, "d_v": 128, "dtype": "bfloat16",
                             "causal": True, "tokens": tokens, "ctx": tokens, "batch": 1})


TIMED = {"casts": casts, "gemm": gemm, "moe": moe, "attention": attention}
