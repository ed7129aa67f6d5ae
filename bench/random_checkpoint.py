"""Write a checkpoint of random weights in a named model's sizes, to measure without the real one.

    python -m expertile.bench.random_checkpoint v2-lite OUT --layers 2 --vocab 1024
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..model import ModelConfig
from ..model.tensor_names import expected_tensors
from ..ops.models import ModelDims, preset


def hf_config(model: ModelDims, layers: int, vocab: int) -> dict[str, Any]:
    """config.json in the keys of DeepSeek's releases; the first layer is dense."""
    sigmoid = model.scoring == "sigmoid"
    grouped = model.n_group > 1
    return {
        "model_type": "deepseek_v3" if sigmoid else "deepseek_v2",
        "hidden_size": model.hidden, "num_attention_heads": model.heads,
        "num_key_value_heads": model.heads, "q_lora_rank": model.q_lora or None,
        "kv_lora_rank": model.kv_lora, "qk_nope_head_dim": model.nope,
        "qk_rope_head_dim": model.rope, "v_head_dim": model.v_dim,
        "n_routed_experts": model.experts, "num_experts_per_tok": model.top_k,
        "moe_intermediate_size": model.moe_inter, "intermediate_size": model.dense_inter,
        "n_shared_experts": model.shared_experts, "vocab_size": vocab,
        "num_hidden_layers": layers, "first_k_dense_replace": 1, "moe_layer_freq": 1,
        "norm_topk_prob": model.norm_topk_prob, "scoring_func": model.scoring,
        "routed_scaling_factor": model.routed_scaling_factor, "n_group": model.n_group,
        "topk_group": model.topk_group, "topk_method":
            "noaux_tc" if sigmoid else "group_limited_greedy" if grouped else "greedy",
        "rms_norm_eps": 1e-6, "rope_theta": 10000, "rope_scaling": None, "hidden_act": "silu",
        "max_position_embeddings": 4096, "tie_word_embeddings": False, "attention_bias": False,
        "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1}


def write(model: ModelDims, out: Path, layers: int, vocab: int) -> None:
    """config.json and one bfloat16 safetensors file under the release's tensor names."""
    out.mkdir(parents=True, exist_ok=True)
    config = hf_config(model, layers, vocab)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    g = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in expected_tensors(ModelConfig.from_dir(out)).items():
        tensors[name] = torch.ones(shape, dtype=torch.bfloat16) if "norm" in name else (
            torch.randn(shape, generator=g) / shape[-1] ** 0.5).bfloat16()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=1024)
    args = parser.parse_args()
    write(preset(args.preset), args.out, args.layers, args.vocab)


if __name__ == "__main__":
    main()
