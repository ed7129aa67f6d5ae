"""One normalised description of a model from the config.json keys of every release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config_keys import mapping, need, number, read_json, size, token_ids
from .rope import RopeConfig

# The normalisations inside MLA use the default of the releases' modeling code, whatever
# rms_norm_eps says (modeling_deepseek.py: DeepseekV3RMSNorm(config.kv_lora_rank)).
LATENT_NORM_EPS = 1e-6

_V3_LIKE = ("deepseek_v3", "kimi_k2", "glm4_moe_lite")
MODEL_TYPES = ("deepseek_v2", *_V3_LIKE)
# topk_method -> (the scoring it is defined for, what a group of experts is worth)
_TOPK_METHODS = {
    "greedy": ("softmax", "max"),
    "group_limited_greedy": ("softmax", "max"),
    "noaux_tc": ("sigmoid", "top2_sum"),
}
# Keys whose other values change the architecture: accepted only with these values.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "moe_layer_freq": (1, None),
    "rope_interleave": (True, None),
    "partial_rotary_factor": (1.0, None),
}


@dataclass(frozen=True)
class RoutingConfig:
    """How tokens choose experts; the fields are `moe_route`'s options."""

    top_k: int
    scoring: str
    n_group: int
    topk_group: int
    group_score: str
    norm_topk_prob: bool
    routed_scaling_factor: float
    has_bias: bool


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a DeepSeek-V2/V3-family model."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    q_lora_rank: int                 # 0 = queries are projected directly
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    num_shared_experts: int
    first_moe_layer: int
    routing: RoutingConfig
    rms_norm_eps: float
    max_positions: int
    rope: RopeConfig
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    fp8_block: int                   # rows and columns per scale of FP8 weights, 0 = no FP8

    @property
    def qk_dim(self) -> int:
        """Width of a head's query and expanded key."""
        return self.nope_dim + self.rope_dim

    @property
    def latent_dim(self) -> int:
        """Width of a token in the cache."""
        return self.kv_lora_rank + self.rope_dim

    @property
    def softmax_scale(self) -> float:
        """1 / sqrt(width), times YaRN's mscale of all dimensions twice."""
        return float(self.qk_dim**-0.5 * self.rope.attention_mscale**2)

    @staticmethod
    def from_dir(path: str | Path) -> ModelConfig:
        """Read config.json, and the end-of-text tokens of generation_config.json if present."""
        folder = Path(path)
        config = read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        if generation.exists() and "eos_token_id" in (more := read_json(generation)):
            config["eos_token_id"] = [*token_ids(config.get("eos_token_id")),
                                      *token_ids(more["eos_token_id"])]
        return ModelConfig.from_dict(config)

    @staticmethod
    def from_dict(c: Mapping[str, Any]) -> ModelConfig:
        """Normalise a config.json; ValueError names the key that is absent or not understood."""
        model_type = need(c, "model_type")
        if model_type not in MODEL_TYPES:
            raise ValueError(f"config.json: model_type must be one of {', '.join(MODEL_TYPES)}, "
                             f"got {model_type!r}")
        for key, allowed in _FIXED.items():
            if c.get(key, allowed[0]) not in allowed:
                raise ValueError(f"config.json: {key} must be {allowed[0]!r}, got {c[key]!r}; "
                                 f"the bundled model has no other variant")
        max_positions = size(c, "max_position_embeddings")
        experts = size(c, "n_routed_experts")
        return ModelConfig(
            model_type=model_type, vocab_size=size(c, "vocab_size"),
            hidden_size=size(c, "hidden_size"), num_layers=size(c, "num_hidden_layers"),
            num_heads=size(c, "num_attention_heads"),
            q_lora_rank=size(c, "q_lora_rank", at_least=0, null=0),
            kv_lora_rank=size(c, "kv_lora_rank"), nope_dim=size(c, "qk_nope_head_dim"),
            rope_dim=size(c, "qk_rope_head_dim", multiple=2), v_dim=size(c, "v_head_dim"),
            intermediate_size=size(c, "intermediate_size"),
            moe_intermediate_size=size(c, "moe_intermediate_size"), num_experts=experts,
            num_shared_experts=size(c, "n_shared_experts", at_least=0, null=0),
            first_moe_layer=_first_moe_layer(c), routing=_routing(c, experts),
            rms_norm_eps=number(c, "rms_norm_eps"), max_positions=max_positions,
            rope=RopeConfig.from_dict(c),
            tie_word_embeddings=bool(c.get("tie_word_embeddings", False)),
            eos_token_ids=token_ids(c.get("eos_token_id")), fp8_block=_fp8_block(c))


def _first_moe_layer(c: Mapping[str, Any]) -> int:
    if kinds := c.get("mlp_layer_types"):            # transformers' own key for GLM
        first = kinds.index("sparse") if "sparse" in kinds else len(kinds)
        if set(kinds[:first]) - {"dense"} or set(kinds[first:]) - {"sparse"}:
            raise ValueError(f"config.json: mlp_layer_types must be 'dense' layers followed by "
                             f"'sparse' ones, got {kinds}")
        return int(first)
    if c["model_type"] == "glm4_moe_lite" and "first_k_dense_replace" not in c:
        return 1
    return size(c, "first_k_dense_replace", at_least=0)


def _routing(c: Mapping[str, Any], experts: int) -> RoutingConfig:
    v3 = c["model_type"] in _V3_LIKE
    method = c.get("topk_method") or ("noaux_tc" if v3 else "greedy")
    if method not in _TOPK_METHODS:
        raise ValueError(f"config.json: topk_method must be one of {', '.join(_TOPK_METHODS)}, "
                         f"got {method!r}")
    scoring, group_score = _TOPK_METHODS[method]
    if (given := c.get("scoring_func") or scoring) != scoring:
        raise ValueError(f"config.json: scoring_func must be {scoring!r} with topk_method "
                         f"{method!r}, got {given!r}")
    n_group, topk_group = (1, 1) if method == "greedy" else (
        size({"n_group": 1, **c}, "n_group", null=1),
        size({"topk_group": 1, **c}, "topk_group", null=1))
    top_k = size(c, "num_experts_per_tok")
    if experts % n_group or topk_group > n_group or top_k > experts // n_group * topk_group:
        raise ValueError(f"config.json: n_group must divide n_routed_experts and topk_group groups "
                         f"must hold num_experts_per_tok experts, got {n_group=}, {topk_group=}, "
                         f"n_routed_experts={experts}, num_experts_per_tok={top_k}")
    norm = bool(c.get("norm_topk_prob", v3))
    factor = float(c.get("routed_scaling_factor") or 1.0)
    if norm and not v3:
        factor = 1.0     # V2's modeling_deepseek.py scales only weights that it does not normalise
    return RoutingConfig(top_k, scoring, n_group, topk_group, group_score, norm, factor,
                         has_bias=method == "noaux_tc")


def _fp8_block(c: Mapping[str, Any]) -> int:
    quant = mapping(c, "quantization_config")
    if not quant:
        return 0
    if (how := quant.get("quant_method")) != "fp8":
        raise ValueError(f"config.json: quantization_config.quant_method must be 'fp8', got "
                         f"{how!r}; convert the checkpoint to bf16 or to FP8 blocks")
    if (fmt := quant.get("fmt") or "e4m3") != "e4m3":
        raise ValueError(f"config.json: quantization_config.fmt must be 'e4m3', got {fmt!r}")
    scales = quant.get("scale_fmt") or "float"
    if scales not in ("float", "ue8m0"):
        raise ValueError(f"config.json: quantization_config.scale_fmt must be 'float' or 'ue8m0', "
                         f"got {scales!r}")
    block = quant.get("weight_block_size") or (None, None)
    if len(block) != 2 or block[0] != block[1] or not isinstance(block[0], int) or block[0] < 1:
        raise ValueError(f"config.json: quantization_config.weight_block_size must be two equal "
                         f"positive integers such as [128, 128], got {block!r}")
    return int(block[0])
