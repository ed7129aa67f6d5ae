"""The parity oracle: random checkpoints in the releases' format, and transformers' answers.

A checkpoint has the releases' tensor names and config keys, several shards, and YaRN whose original
length (32) is shorter than the text (80 tokens), so that every part of the scaling matters. Seeds
whose routing is nearly tied are skipped: two correct float32 implementations may disagree there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from expertile.model.config import ModelConfig
from expertile.model.tensor_names import expected_tensors

TOKENS, BATCH, GREEDY = 80, 2, 12
SMALLEST_GAP = 2e-5                  # of routing scores; float32 implementations differ by ~1e-6
BLOCK = 128
TOLERANCE = 1e-4                     # absolute, at logit std 2; two references differ by 3e-5

# Sizes coincide where they may (kv_b and q_b, o and down ...): a cold test run compiles a kernel
# for each distinct pair.
_COMMON = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 128, "moe_intermediate_size": 128,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 128,
    "q_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 32,
    "n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "hidden_act": "silu", "attention_bias": False,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 1280, "rope_theta": 10000,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float32",
}
_YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 32, "beta_fast": 32,
         "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
_V2 = {"model_type": "deepseek_v2", "scoring_func": "softmax", "norm_topk_prob": False}
_V3 = {"model_type": "deepseek_v3", "scoring_func": "sigmoid", "topk_method": "noaux_tc",
       "norm_topk_prob": True, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
_ONE_GROUP = {"n_group": 1, "topk_group": 1}

# FP8 checkpoints whose expert and MLP sizes end inside a scale block.
_UNEVEN = {"intermediate_size": 72, "moe_intermediate_size": 96}

VARIANTS: dict[str, dict[str, Any]] = {
    "v2_lite": _COMMON | _V2 | _ONE_GROUP | {
        "topk_method": "greedy", "q_lora_rank": None, "n_shared_experts": 2,
        "routed_scaling_factor": 1.0,
        "rope_scaling": _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    "v2": _COMMON | _V2 | {
        "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
        "n_shared_experts": 2, "routed_scaling_factor": 16.0,
        "rope_scaling": _YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}},
    "v3": _COMMON | _V3 | {"rope_scaling": _YARN, "num_nextn_predict_layers": 1},
    "kimi_k2": _COMMON | _V3 | _ONE_GROUP | {
        "model_type": "kimi_k2", "routed_scaling_factor": 2.827, "rope_theta": 50000,
        "rope_scaling": _YARN | {"factor": 32, "beta_fast": 1.0}},
    "moonlight": _COMMON | _V3 | _ONE_GROUP | {
        "q_lora_rank": None, "n_shared_experts": 2, "routed_scaling_factor": 2.446,
        "rms_norm_eps": 1e-5, "rope_theta": 50000},
    "glm4_moe_lite": _COMMON | _V3 | _ONE_GROUP | {
        "model_type": "glm4_moe_lite", "num_attention_heads": 5, "num_key_value_heads": 5,
        "qk_nope_head_dim": 48, "v_head_dim": 80, "routed_scaling_factor": 1.8,
        "rms_norm_eps": 1e-5, "rope_theta": 1000000, "rope_scaling": None},
}


@dataclass(frozen=True)
class Reference:
    """What transformers computes in float32 from a checkpoint."""

    ids: Tensor                      # [B, T]
    logits: Tensor                   # [B, T, V]
    routes: dict[int, Tensor]        # layer -> [B * T, k], expert ids in ascending order
    greedy: list[int]                # continuation of the first row
    smallest_gap: float


@dataclass(frozen=True)
class Made:
    """A checkpoint on disk and its reference."""

    path: Path
    reference: Reference


def make(root: Path, variant: str, fp8: str | None = None) -> Made:
    """Write a checkpoint of a variant and compute its reference (from dequantised weights).

    fp8: None, "float" or "ue8m0" (power-of-two scales, as V3.1).
    """
    for seed in range(20):
        path = root / f"{variant}-{fp8 or 'plain'}-{seed}"
        config = VARIANTS[variant] | (_UNEVEN if fp8 else {})
        tensors = random_tensors(config, seed)
        plain = path
        if fp8:
            stored, tensors = quantized(tensors, fp8)
            quant = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                     "weight_block_size": [BLOCK, BLOCK]}
            quant |= {"scale_fmt": "ue8m0"} if fp8 == "ue8m0" else {}
            write(path, config | {"quantization_config": quant}, stored)
            plain = path / "dequantised"
        write(plain, config, tensors)
        reference = transformers_reference(plain, config, seed)
        if reference.smallest_gap > SMALLEST_GAP:
            return Made(path, reference)
    raise AssertionError(f"no seed of {variant} has well separated routing")


def random_tensors(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Weights that keep activations at rms 1 and logits at std 2, MTP tensors included."""
    g = torch.Generator().manual_seed(seed)
    tensors = {name: _random(name, shape, g)
               for name, shape in expected_tensors(ModelConfig.from_dict(config)).items()}
    last = config["num_hidden_layers"]
    for extra in range(config.get("num_nextn_predict_layers", 0)):
        hidden, prefix = config["hidden_size"], f"model.layers.{last + extra}"
        for name, tensor in list(tensors.items()):
            if name.startswith(f"model.layers.{last - 1}."):
                tensors[name.replace(f"layers.{last - 1}", f"layers.{last + extra}")] = (
                    torch.full_like(tensor, float("nan")))       # must never be read
        tensors |= {f"{prefix}.eh_proj.weight": torch.randn(hidden, 2 * hidden, generator=g),
                    f"{prefix}.enorm.weight": torch.ones(hidden),
                    f"{prefix}.hnorm.weight": torch.ones(hidden),
                    f"{prefix}.shared_head.norm.weight": torch.ones(hidden)}
    return tensors


def _random(name: str, shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    x = torch.randn(shape, generator=g)
    if len(shape) == 1:
        return x * 0.1 if name.endswith("bias") else 1 + 0.1 * x
    if name.startswith("model.embed"):
        return x
    gain = 2.0 if name == "lm_head.weight" else 1.5 if ".q_" in name or "kv_a" in name else 0.7
    x *= gain * shape[-1]**-0.5
    if "q_a_proj" in name or "kv_a" in name:
        x[:128] *= 0.01              # a latent so small that the eps of its norm shows
    return x


def quantized(tensors: dict[str, Tensor], fmt: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Projections as FP8 blocks with scales, and what they dequantise to."""
    stored, plain = {}, {}
    for name, w in tensors.items():
        if "_proj" not in name or "eh_proj" in name:
            stored[name] = plain[name] = w
            continue
        n, k = w.shape
        grid = torch.nn.functional.pad(w, (0, -k % BLOCK, 0, -n % BLOCK))
        grid = grid.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))  # [N/128, 128, K/128, 128]
        scale = grid.abs().amax((1, 3), keepdim=True).nan_to_num(1.0).clamp_min(1e-10) / 448
        if fmt == "ue8m0":
            scale = torch.exp2(torch.ceil(torch.log2(scale)))
        q = (grid / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        back = (q.float() * scale).flatten(2).flatten(0, 1)[:n, :k]
        stored[name] = q.view(torch.uint8).flatten(2).flatten(0, 1)[:n, :k].contiguous().view(
            torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"], plain[name] = scale[:, 0, :, 0].contiguous(), back.contiguous()
    return stored, plain


def write(path: Path, config: dict[str, Any], tensors: dict[str, Tensor], shards: int = 3) -> None:
    """Write config.json, shards and their index."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    names, where = sorted(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: tensors[n].contiguous() for n in names[i::shards]}
        save_file(part, path / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


@cache
def _classes() -> dict[str, tuple[Any, Any]]:
    import transformers as tf

    v3 = (tf.DeepseekV3Config, tf.DeepseekV3ForCausalLM)
    return {"deepseek_v2": (tf.DeepseekV2Config, tf.DeepseekV2ForCausalLM), "deepseek_v3": v3,
            "kimi_k2": v3, "glm4_moe_lite": (tf.Glm4MoeLiteConfig, tf.Glm4MoeLiteForCausalLM)}


def transformers_reference(path: Path, config: dict[str, Any], seed: int) -> Reference:
    """Run transformers, float32 and eager, on a plain checkpoint."""
    config_class, model_class = _classes()[config["model_type"]]
    keys = {k: v for k, v in config.items() if k != "model_type"}
    model, info = model_class.from_pretrained(
        path, config=config_class(**keys), dtype=torch.float32, attn_implementation="eager",
        output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    routes: dict[int, Tensor] = {}
    gaps: list[float] = []

    def record(layer: int) -> Any:
        def hook(gate: Any, args: Any, output: Any) -> None:
            logits, _, ids = output
            routes[layer] = ids.sort(-1).values
            gaps.append(_gap(logits, config, getattr(gate, "e_score_correction_bias", None)))
        return hook

    for i, layer in enumerate(model.model.layers):
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.register_forward_hook(record(i))
    g = torch.Generator().manual_seed(1000 + seed)
    ids = torch.randint(2, config["vocab_size"], (BATCH, TOKENS), generator=g)
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
        routed = dict(routes)
        text = ids[:1]
        for _ in range(GREEDY):
            text = torch.cat((text, model(text, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    assert 1.5 < float(logits.std()) < 2.5, f"logit std {float(logits.std())}"
    return Reference(ids, logits, routed, text[0, TOKENS:].tolist(), min(gaps))


def _gap(logits: Tensor, config: dict[str, Any], bias: Tensor | None) -> float:
    """The least distance between a chosen and a not chosen expert or group."""
    scores = logits.softmax(-1) if bias is None else logits.sigmoid() + bias
    gap = torch.inf
    if (n := config["n_group"]) > 1 and config["topk_method"] != "greedy":
        groups = scores.unflatten(-1, (n, -1))
        worth = groups.amax(-1) if bias is None else groups.topk(2, -1).values.sum(-1)
        order = worth.sort(-1, descending=True)
        kept = config["topk_group"]
        gap = float((order.values[:, kept - 1] - order.values[:, kept]).min())
        keep = torch.zeros_like(worth, dtype=torch.bool).scatter_(1, order.indices[:, :kept], True)
        scores = groups.masked_fill(~keep[..., None], -1.0).flatten(-2)
    best = scores.sort(-1, descending=True).values
    k = config["num_experts_per_tok"]
    return min(gap, float((best[:, k - 1] - best[:, k]).min()))
