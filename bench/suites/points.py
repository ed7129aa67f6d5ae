"""The ladder of `cpu-ops`: which shapes are measured for which row of the goals' table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ...ops.models import preset
from ...ops.spec import Shape, Value

FP8, BF16, F32, INT8 = "float8_e4m3fn", "bfloat16", "float32", "int8"
# Experts of V3 that fit beside torch's float32 copy in 16 GiB; each of a token's 8 is still cold.
V3_EXPERTS = 16
_DOT_TOKENS = 8                      # below, memory is all that counts
_SHORT = {FP8: "fp8", BF16: "bf16"}


@dataclass(frozen=True)
class Point:
    """One case: a shape at a thread count, its peers, and the row that it belongs to."""

    row: str
    op: str
    label: str                       # what tells it from the row's other cases
    threads: int
    shapes: Mapping[str, Shape]      # our variants by name; the first has float32 activations
    limit: str                       # "read", "FMA float32" or "copy": what its floor is made of
    ggml: str = ""                   # ggml's type, or "" where it has no such operator
    beside: Mapping[str, Shape] = field(default_factory=dict)    # other kernels of ours
    peers: bool = True               # whether torch has something to say here
    tokens: int = 0                  # sizes that growth is plotted over
    ctx: int = 0
    experts: int = 0
    series: str = ""                 # cases of one series differ in one of those sizes only
    quick: bool = False              # part of the short form
    compiled: bool = False           # torch.compile and flex attention are tried as well

    @property
    def name(self) -> str:
        """Stays the same from run to run."""
        return f"{self.row}[{self.label},{self.threads}T]"

    @property
    def shape(self) -> Shape:
        """Of the first variant."""
        return next(iter(self.shapes.values()))


def _moe(model: str, weights: str, experts: int, top_k: int, tokens: int, dtype: str,
         block: tuple[int, int] = (128, 128), w8a8: bool = False) -> dict[str, Value]:
    dims = preset(model)
    return {"e": experts, "inter": dims.moe_inter, "hidden": dims.hidden, "top_k": top_k,
            "w_dtype": weights, "dtype": dtype, "block_n": block[0], "block_k": block[1],
            "w8a8": w8a8, "tokens": tokens}


def _both(dots: bool, make: Callable[..., Shape], *arguments: Any) -> dict[str, Shape]:
    """float32 activations, and bfloat16 ones where the CPU has dot products of them."""
    found = {"ours f32": make(*arguments, F32)}
    return {**found, "ours bf16": make(*arguments, BF16)} if dots else found


def moe_decode(threads: int, dots: bool) -> Iterator[Point]:
    """1 to 32 tokens; V2-Lite with all experts, V3 with as many as fit."""
    for weights, ggml in ((FP8, "q8_0"), (BF16, "bf16")):
        for model, experts, ladder in (("v2-lite", 64, (1, 2, 4, 8, 16, 32)),
                                       ("v3", V3_EXPERTS, (1, 4, 32))):
            for tokens in ladder:
                top_k = preset(model).top_k
                yield Point(
                    f"moe-decode-{_SHORT[weights]}", "fused_moe", f"{model},tokens={tokens}",
                    threads, _both(dots and tokens >= _DOT_TOKENS, _moe, model, weights, experts,
                                   top_k, tokens),
                    "read", ggml, tokens=tokens, experts=experts,
                    series=f"{model} {_SHORT[weights]} tokens",
                    quick=model == "v2-lite" and tokens in (1, 16),
                    compiled=model == "v2-lite" and tokens in (1, 16))


def moe_int8(threads: int, dots: bool) -> Iterator[Point]:
    """int8 weights in groups of 128 and in whole rows, activations cast or not, beside fp8."""
    most = max(preset("v2-lite").hidden, preset("v2-lite").moe_inter)
    for tokens, experts in ((1, 64), (4, 64), (16, 64), (32, 64), (171, 16)):
        make = partial(_moe, "v2-lite", experts=experts, top_k=6, tokens=tokens, dtype=F32)
        label = f"tokens={tokens}" if experts == 64 else "64 rows an expert"
        yield Point(
            "moe-int8", "fused_moe", f"v2-lite,{label}", threads,
            {"ours f32": make(INT8, block=(1, 128)),
             "ours f32, a scale a row": make(INT8, block=(1, most)),
             "ours w8a8": make(INT8, block=(1, 128), w8a8=True)},
            "read", "q8_0", {"fp8 weights": make(FP8)}, tokens=tokens, experts=experts,
            series="v2-lite int8 tokens" if experts == 64 else "", quick=tokens == 4)


def moe_prefill(threads: int, dots: bool) -> Iterator[Point]:
    """Rows of one expert decide; few experts stand for all, as on a rank of expert parallelism."""
    for weights in (FP8, BF16):
        for model, rows, experts, top_k in (
                ("v2-lite", 16, 16, 6), ("v2-lite", 64, 16, 6), ("v2-lite", 256, 16, 6),
                ("v3", 16, 8, 8), ("v3", 64, 4, 4), ("v3", 256, 2, 2)):
            tokens = round(rows * experts / top_k)
            yield Point(
                f"moe-prefill-{rows}", "fused_moe", f"{model},{_SHORT[weights]}", threads,
                _both(dots, _moe, model, weights, experts, top_k, tokens), "FMA float32", "q8_0",
                tokens=tokens, experts=experts,
                series=f"{model} {_SHORT[weights]} prefill tokens" if experts == 16 else "",
                quick=model == "v2-lite" and weights == FP8 and rows == 64,
                compiled=model == "v2-lite" and rows == 64)


def _dense(n: int, k: int, tokens: int, dtype: str) -> dict[str, Value]:
    return {"n": n, "k": k, "a_dtype": dtype, "w_dtype": FP8, "out_dtype": dtype,
            "block_n": 128, "block_k": 128, "tokens": tokens}


def dense(threads: int, dots: bool) -> Iterator[Point]:
    """Gate and up of the shared experts of V2-Lite and V3, from 192 rows on."""
    for name, n, k, ladder in (("v2-lite 5632x2048", 5632, 2048, (192, 512, 1024)),
                               ("v3 4096x7168", 4096, 7168, (192,))):
        for tokens in ladder:
            yield Point("dense-fp8", "gemm_nt", f"{name},tokens={tokens}", threads,
                        _both(dots, _dense, n, k, tokens), "FMA float32", tokens=tokens,
                        series=f"{name} tokens", quick=tokens == 512)


def _decode(heads: int, batch: int, ctx: int, dtype: str) -> dict[str, Value]:
    return {"heads": heads, "head_dim_v": 512, "rope": 64, "page": 64, "s_q": 1, "dtype": dtype,
            "kv_dtype": BF16, "causal": True, "batch": batch, "ctx": ctx}


def mla_decode(threads: int, dots: bool) -> Iterator[Point]:
    """Context 1k to 32k, batch 1 to 8."""
    for heads, ladder in (
            (16, ((1, 1024), (1, 2048), (1, 4096), (1, 8192), (1, 32768), (8, 4096))),
            (128, ((1, 1024), (1, 4096), (1, 32768), (8, 1024)))):
        for batch, ctx in ladder:
            yield Point(f"mla-decode-{heads}", "mla_decode", f"batch={batch},ctx={ctx}", threads,
                        _both(dots, _decode, heads, batch, ctx), "FMA float32", "f16", ctx=ctx,
                        series=f"H={heads} context" if batch == 1 else "",
                        quick=(batch, ctx) == (1, 4096),
                        compiled=(batch, ctx) in ((1, 1024), (1, 4096), (1, 32768)))


def _prefill(heads: int, tokens: int, dtype: str) -> dict[str, Value]:
    return {"heads": heads, "d_qk": 192, "d_v": 128, "dtype": dtype, "causal": True,
            "tokens": tokens, "ctx": tokens, "batch": 1}


def mla_prefill(threads: int, dots: bool) -> Iterator[Point]:
    """One prompt of 512 to 4096 tokens."""
    for tokens in (512, 1024, 2048, 4096):
        yield Point("mla-prefill", "mla_prefill", f"tokens={tokens}", threads,
                    _both(dots, _prefill, 16, tokens), "FMA float32", tokens=tokens,
                    series="prompt tokens", quick=tokens == 1024,
                    compiled=tokens in (512, 1024, 2048))


def casts(threads: int, dots: bool) -> Iterator[Point]:
    """Larger than the caches."""
    common: dict[str, Value] = {"group_size": 128, "ue8m0": False}
    found: tuple[tuple[str, str, dict[str, Value]], ...] = (
            ("per_token_group_quant_fp8", "4096x7168 bf16",
             {"k": 7168, **common, "dtype": BF16, "tokens": 4096}),
            ("silu_mul_quant_fp8", "8192x2048 bf16",
             {"h": 2048, **common, "dtype": BF16, "tokens": 8192}),
            ("weight_dequant", "7168x4096 to f32",
             {"k": 4096, "block_size": 128, "dtype": F32, "n": 7168}),
            ("weight_dequant", "7168x4096 to bf16",
             {"k": 4096, "block_size": 128, "dtype": BF16, "n": 7168}))
    for op, label, shape in found:
        yield Point("casts", op, f"{op} {label}", threads, {"ours f32": shape}, "copy",
                    quick=op != "weight_dequant" or shape["dtype"] == F32)


def growth(threads: int, dots: bool) -> Iterator[Point]:
    """Time over experts, at four tokens; without peers."""
    for experts in (8, 16, 32, 64, 128):
        yield Point("growth-experts", "fused_moe", f"v2-lite,experts={experts}", threads,
                    {"ours f32": _moe("v2-lite", FP8, experts, 6, 4, F32)}, "read", peers=False,
                    tokens=4, experts=experts, series="experts at 4 tokens")


def cpu_ops(threads: tuple[int, ...], quick: bool, dots: bool) -> list[Point]:
    """All cases, those with the same weights one after the other.

    `dots`: the CPU has dot products of bfloat16.
    """
    found: list[Point] = []
    for make in (casts, moe_decode, dense, mla_decode, mla_prefill, moe_prefill, moe_int8, growth):
        columns = [list(make(t, dots)) for t in threads]
        found += [p for same in zip(*columns, strict=True) for p in same]
    return [p for p in found if p.quick] if quick else found
