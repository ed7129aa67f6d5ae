"""config.json of every release, and errors that name the key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from expertile.model import ModelConfig

from .oracle import VARIANTS

# What distinguishes the releases' config.json files, with their own spelling.
_V3 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
    "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1,
    "n_routed_experts": 256, "routed_scaling_factor": 2.5, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
    "topk_method": "noaux_tc", "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8,
    "moe_layer_freq": 1, "first_k_dense_replace": 3, "norm_topk_prob": True,
    "scoring_func": "sigmoid", "max_position_embeddings": 163840, "rope_theta": 10000,
    "rms_norm_eps": 1e-06, "hidden_act": "silu", "attention_bias": False,
    "num_nextn_predict_layers": 1, "bos_token_id": 0, "eos_token_id": 1,
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "weight_block_size": [128, 128]},
}
RELEASES: dict[str, dict[str, Any]] = {
    "v3": _V3,
    "v3.1": _V3 | {"quantization_config": _V3["quantization_config"] | {"scale_fmt": "ue8m0"}},
    "v2-lite": _V3 | {
        "model_type": "deepseek_v2", "hidden_size": 2048, "num_hidden_layers": 27,
        "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
        "q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
        "scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 1, "quantization_config": None,
        "rope_scaling": _V3["rope_scaling"] | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    "v2": _V3 | {
        "model_type": "deepseek_v2", "n_routed_experts": 160, "num_experts_per_tok": 6,
        "topk_method": "group_limited_greedy", "topk_group": 3, "scoring_func": "softmax",
        "norm_topk_prob": False, "routed_scaling_factor": 16.0, "quantization_config": None},
    "kimi-k2": _V3 | {"model_type": "kimi_k2", "n_routed_experts": 384, "n_group": 1,
                      "topk_group": 1, "eos_token_id": 163585},
    "moonlight": _V3 | {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "rope_scaling": None,
                        "rms_norm_eps": 1e-5, "quantization_config": None},
    "glm": {k: v for k, v in _V3.items() if k not in ("first_k_dense_replace", "scoring_func")} | {
        "model_type": "glm4_moe_lite", "qk_nope_head_dim": 192, "v_head_dim": 256,
        "num_attention_heads": 20, "n_routed_experts": 64, "num_experts_per_tok": 4, "n_group": 1,
        "topk_group": 1, "rope_scaling": None, "partial_rotary_factor": 1.0,
        "eos_token_id": [154820, 154827], "quantization_config": None},
}


@pytest.mark.parametrize("name", RELEASES)
def test_releases_are_understood(name: str) -> None:
    c = ModelConfig.from_dict(RELEASES[name])
    v2 = name.startswith("v2")
    assert c.routing.scoring == ("softmax" if v2 else "sigmoid")
    assert c.routing.group_score == ("max" if v2 else "top2_sum")
    assert c.routing.has_bias is not v2 and c.routing.norm_topk_prob is not v2
    assert c.q_lora_rank == (RELEASES[name]["q_lora_rank"] or 0)
    assert c.first_moe_layer == (1 if name in ("v2-lite", "glm") else 3)
    assert c.fp8_block == (128 if name in ("v3", "v3.1", "kimi-k2") else 0)
    assert c.rope.kind == ("default" if name in ("moonlight", "glm") else "yarn")


def test_softmax_scale_has_mscale_twice() -> None:
    c = ModelConfig.from_dict(RELEASES["v2-lite"])
    mscale = 0.1 * 0.707 * math.log(40) + 1
    assert c.softmax_scale == pytest.approx(192**-0.5 * mscale**2, rel=1e-12)
    assert c.rope.rotary_mscale == 1.0


def test_transformers_5_spelling_is_the_same() -> None:
    scaling = {"rope_type": "yarn", "rope_theta": 10000,
               **{k: v for k, v in _V3["rope_scaling"].items() if k != "type"}}
    new = {k: v for k, v in _V3.items() if k not in ("rope_scaling", "rope_theta")}
    assert ModelConfig.from_dict(new | {"rope_parameters": scaling}) == ModelConfig.from_dict(_V3)


def _without(key: str) -> dict[str, Any]:
    return {k: v for k, v in _V3.items() if k != key}


_REQUIRED = ("model_type", "hidden_size", "num_hidden_layers", "kv_lora_rank", "q_lora_rank",
             "n_routed_experts", "rms_norm_eps", "rope_theta", "vocab_size", "v_head_dim",
             "max_position_embeddings", "num_experts_per_tok", "first_k_dense_replace")


@pytest.mark.parametrize("key", _REQUIRED)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        ModelConfig.from_dict(_without(key))


@pytest.mark.parametrize(("change", "named"), [
    ({"model_type": "llama"}, "model_type.*'llama'"),
    ({"topk_method": "best"}, "topk_method.*'best'"),
    ({"scoring_func": "softmax"}, "scoring_func.*'sigmoid'.*'softmax'"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope type.*'linear'"),
    ({"rope_scaling": {"type": "yarn", "factor": 2}}, "original_max_position_embeddings"),
    ({"attention_bias": True}, "attention_bias.*True"),
    ({"hidden_act": "gelu"}, "hidden_act.*'gelu'"),
    ({"rope_interleave": False}, "rope_interleave"),
    ({"hidden_size": -5}, "hidden_size.*-5"),
    ({"rms_norm_eps": None}, "rms_norm_eps.*None"),
    ({"rope_theta": 0}, "rope_theta.*0"),
    ({"rope_scaling": "yarn"}, "rope_scaling.*'yarn'"),
    ({"hidden_size": "7168"}, "hidden_size.*'7168'"),
    ({"n_group": 7}, "n_group.*7"),
    ({"num_experts_per_tok": 129}, "num_experts_per_tok.*129"),
    ({"quantization_config": {"quant_method": "awq"}}, "quant_method.*'awq'"),
    ({"quantization_config": {"quant_method": "fp8"}}, "weight_block_size"),
], ids=lambda v: str(v)[:40])
def test_what_is_not_understood_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ModelConfig.from_dict(_V3 | change)


def test_directory_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config.json does not exist"):
        ModelConfig.from_dir(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match="config.json cannot be read as JSON"):
        ModelConfig.from_dir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(VARIANTS["v3"]))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    assert ModelConfig.from_dir(tmp_path).eos_token_ids == (1, 7)
