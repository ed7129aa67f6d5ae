"""Writes a checkpoint folder: config, tokenizer settings, tensors and held-out tokens."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from .corpus import BOS, BOS_ID, EOS, EOS_ID
from .layers import Config

# The model continues documents and knows no roles: messages are paragraphs of one document.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n' }}{% endif %}"
)
# The release's remaining keys: what is fixed by the architecture, not by its size.
_FIXED = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "ep_size": 1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "deepseek_v3",
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 0,
    "rope_scaling": None,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "float32",
    "use_cache": True,
}
_GENERATION = {
    "bos_token_id": BOS_ID,
    "do_sample": True,
    "eos_token_id": EOS_ID,
    "max_new_tokens": 200,
    "temperature": 0.7,
    "top_k": 40,
}


def release_config(c: Config) -> dict[str, Any]:
    """Return config.json's content."""
    return _FIXED | asdict(c) | {"num_key_value_heads": c.num_attention_heads}


def tokenizer_config(c: Config) -> dict[str, Any]:
    """Return tokenizer_config.json's content."""
    return {
        "bos_token": BOS,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_max_length": c.max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def write_json(path: Path, content: object) -> None:
    """Write JSON with sorted keys, so that two runs differ only where they differ."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_tensors(out: Path, tensors: dict[str, Tensor]) -> None:
    """Write model.safetensors; its `format` entry is what transformers asks for."""
    held = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
    save_file(held, out / "model.safetensors", metadata={"format": "pt"})


def write_checkpoint(
    out: Path, c: Config, tensors: dict[str, Tensor], tokenizer: Tokenizer, heldout: Tensor
) -> None:
    """Write the whole folder in float32."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", release_config(c))
    write_json(out / "generation_config.json", _GENERATION)
    write_json(out / "tokenizer_config.json", tokenizer_config(c))
    write_tensors(out, tensors)
    tokenizer.save(str(out / "tokenizer.json"))
    np.save(out / "heldout_tokens.npy", heldout.numpy().astype(np.int32))
