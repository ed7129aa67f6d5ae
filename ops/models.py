"""The models whose operators are tuned: their dimensions, and the load they are put under.

Sources: the released config.json files of deepseek-ai (V2-Lite, V2, V3/R1/V3.1), moonshotai
(Kimi-K2, Moonlight) and zai-org (GLM-4.x lite, as in transformers 5.23's defaults).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class ModelDims:
    """The sizes that decide operator shapes, after any tensor- or expert-parallel split."""

    name: str
    hidden: int
    heads: int
    q_lora: int                      # 0 = none
    kv_lora: int
    nope: int
    rope: int
    v_dim: int
    experts: int
    top_k: int
    moe_inter: int
    dense_inter: int
    shared_experts: int
    vocab: int
    scoring: str                     # "softmax" | "sigmoid"
    n_group: int = 1
    topk_group: int = 1
    group_score: str = "max"         # "max" (V2) | "top2_sum" (V3)
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    has_bias: bool = False
    layers: int = 1
    page: int = 64
    weight_dtype: str = "bfloat16"   # what the checkpoint stores
    act_dtype: str = "bfloat16"
    block: int = 128                 # FP8 scale block; int8 has a scale per row of a weight
    total_experts: int = 0           # of the whole model when split by EP; 0 = experts

    def scale_block(self, k: int) -> tuple[int, int]:
        """(block_n, block_k) of the scales of a weight [N, K]; int8: per output channel."""
        return (1, max(k, 1)) if self.weight_dtype == "int8" else (self.block, self.block)

    def split(self, tp: int = 1, ep: int = 1) -> ModelDims:
        """The sizes of one rank: TP divides heads and inner sizes, EP divides the experts."""
        for rule, size, by in (("heads", self.heads, tp), ("moe_inter", self.moe_inter, tp),
                               ("experts", self.experts, ep)):
            if by < 1 or size % by:
                raise ValueError(f"{rule} must be divisible by the split, got {size} / {by}")
        return replace(self, heads=self.heads // tp, moe_inter=self.moe_inter // tp,
                       dense_inter=-(-self.dense_inter // tp), experts=self.experts // ep,
                       total_experts=self.experts)


@dataclass(frozen=True)
class Load:
    """The ladder of dynamic sizes for which operators are tuned and measured."""

    tokens: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
    batch: tuple[int, ...] = (1, 4, 16)
    ctx: tuple[int, ...] = (128, 1024, 4096)


_V2_LITE = ModelDims(
    "v2-lite", hidden=2048, heads=16, q_lora=0, kv_lora=512, nope=128, rope=64, v_dim=128,
    experts=64, top_k=6, moe_inter=1408, dense_inter=10944, shared_experts=2, vocab=102400,
    scoring="softmax", layers=27)
_V3 = ModelDims(
    "v3", hidden=7168, heads=128, q_lora=1536, kv_lora=512, nope=128, rope=64, v_dim=128,
    experts=256, top_k=8, moe_inter=2048, dense_inter=18432, shared_experts=1, vocab=129280,
    scoring="sigmoid", n_group=8, topk_group=4, group_score="top2_sum", norm_topk_prob=True,
    routed_scaling_factor=2.5, has_bias=True, layers=61, weight_dtype="float8_e4m3fn")

PRESETS: Mapping[str, ModelDims] = {m.name: m for m in (
    replace(_V3, name="tiny", hidden=256, heads=4, q_lora=128, kv_lora=128, nope=64, rope=32,
            v_dim=64, experts=16, top_k=4, moe_inter=128, dense_inter=768, vocab=1024, n_group=4,
            topk_group=2, layers=4, act_dtype="float32"),
    _V2_LITE,
    replace(_V2_LITE, name="v2", hidden=5120, heads=128, q_lora=1536, experts=160, moe_inter=1536,
            dense_inter=12288, n_group=8, topk_group=3, routed_scaling_factor=16.0, layers=60),
    _V3,
    replace(_V3, name="kimi-k2", heads=64, experts=384, n_group=1, topk_group=1, vocab=163840,
            routed_scaling_factor=2.827),
    replace(_V2_LITE, name="moonlight", dense_inter=11264, vocab=163840, scoring="sigmoid",
            group_score="top2_sum", norm_topk_prob=True, routed_scaling_factor=2.446,
            has_bias=True),
    replace(_V2_LITE, name="glm-lite", heads=20, q_lora=768, nope=192, v_dim=256, top_k=4,
            moe_inter=1536, dense_inter=10240, shared_experts=1, vocab=154880, scoring="sigmoid",
            group_score="top2_sum", norm_topk_prob=True, routed_scaling_factor=1.8, has_bias=True,
            layers=47),
)}

TINY_LOAD = Load(tokens=(1, 16, 64), batch=(1, 4), ctx=(256,))


def preset(name: str) -> ModelDims:
    """A named model's sizes."""
    if name not in PRESETS:
        raise ValueError(f"a preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


def from_hf_config(config: Mapping[str, Any], name: str = "model") -> ModelDims:
    """The sizes in a Hugging Face DeepSeek-family config.json.

    Raises ValueError that names the key when one is missing.
    """
    def need(key: str) -> Any:
        if key not in config:
            raise ValueError(f"config.json must hold {key!r} to derive operator shapes, and "
                             "does not")
        return config[key]

    quant = config.get("quantization_config") or {}
    biased = config.get("topk_method", "noaux_tc") == "noaux_tc" and "n_routed_experts" in config
    scoring = config.get("scoring_func") or ("sigmoid" if biased else "softmax")
    return ModelDims(
        name=name, hidden=need("hidden_size"), heads=need("num_attention_heads"),
        q_lora=config.get("q_lora_rank") or 0, kv_lora=need("kv_lora_rank"),
        nope=need("qk_nope_head_dim"), rope=need("qk_rope_head_dim"), v_dim=need("v_head_dim"),
        experts=need("n_routed_experts"), top_k=need("num_experts_per_tok"),
        moe_inter=need("moe_intermediate_size"), dense_inter=need("intermediate_size"),
        shared_experts=config.get("n_shared_experts") or 0, vocab=need("vocab_size"),
        scoring=scoring, n_group=config.get("n_group") or 1,
        topk_group=config.get("topk_group") or 1,
        group_score="top2_sum" if scoring == "sigmoid" else "max",
        norm_topk_prob=bool(config.get("norm_topk_prob", scoring == "sigmoid")),
        routed_scaling_factor=float(config.get("routed_scaling_factor", 1.0)),
        has_bias=scoring == "sigmoid", layers=need("num_hidden_layers"),
        weight_dtype="float8_e4m3fn" if quant.get("quant_method") == "fp8" else
        str(config.get("torch_dtype") or config.get("dtype") or "bfloat16"),
        block=int((quant.get("weight_block_size") or (128,))[0]))
